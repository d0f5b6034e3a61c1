"""Kubeconfig files: loads and checks the cluster and the user of one context, and their files."""

import base64
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import msgspec
import yaml

from svcproxy import limits
from svcproxy.files import UnusableFileError, read_bounded
from svcproxy.kube.core.apiserver import PemFile
from svcproxy.kube.core.validation import quoted
from svcproxy.kube.core.yaml_limits import YamlLimitError, check_yaml
from svcproxy.kube.source import SourceError, one_line

_NAMES_SHOWN = 10

# Accepts the same language as the pure Python loader and is ten times faster
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Kubeconfig(msgspec.Struct, frozen=True):
    """One context of a kubeconfig; ``cluster`` and ``user`` hold the file's unchecked fields."""

    path: Path
    cluster: dict[str, Any]
    user: dict[str, Any]

    @property
    def plugin(self) -> dict[str, Any]:
        """The credential plugin of the user; empty if there is none."""
        plugin: dict[str, Any] = self.user.get("exec") or {}
        return plugin

    @property
    def needs_library(self) -> bool:
        """Whether a credential plugin or an identity provider supplies the credentials.

        A token takes precedence over a plugin, and a token file over both.
        """
        user = self.user
        if user.get("tokenFile"):
            return False
        return bool(user.get("auth-provider") or (user.get("exec") and not user.get("token")))

    def text(self, section: str, field: str) -> str:
        """Return a field of ``cluster`` or ``user`` as text; empty if absent."""
        value = getattr(self, section).get(field)
        return "" if value is None else str(value)

    def flag(self, field: str) -> bool:
        """Return a boolean field of the cluster; false if absent.

        Raises:
            SourceError: the value is not a boolean.
        """
        value = self.cluster.get(field)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise SourceError(f"kubeconfig {self.path}: {field} is {value!r}: make it true or false")

    def pem(self, section: str, field: str) -> PemFile | None:
        """Return the PEM data of ``field-data``, or else the file that ``field`` names.

        Paths are relative to the kubeconfig. Data are kept in an anonymous file in memory.

        Raises:
            SourceError: the file does not exist, or the data are not valid base64.
        """
        data_field = f"{field}-data"
        if data := self.text(section, data_field):
            try:
                content = base64.b64decode(data)
            except ValueError as error:
                raise SourceError(
                    f"kubeconfig {self.path}: {data_field}: {one_line(error)}: correct the file"
                ) from error
            memory = _MemoryFile(content)
            return PemFile(memory.path, data_field, memory)
        if not (name := self.text(section, field)):
            return None
        path = os.path.normpath(self.path.absolute().parent / name)
        if not os.path.isfile(path):  # noqa: PTH113 - a path object would keep its dots
            raise SourceError(
                f"kubeconfig {self.path}: {field}: File does not exist: {path}: correct the file"
            )
        return PemFile(path, path)


class _MemoryFile:
    """An anonymous file in memory, closed with this object: keys are never written to disk."""

    def __init__(self, content: bytes) -> None:
        descriptor = os.memfd_create("svcproxy-credentials")
        weakref.finalize(self, os.close, descriptor)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        self.path = f"/proc/self/fd/{descriptor}"


def load_kubeconfig(path: Path, context: str) -> Kubeconfig:
    """Read a kubeconfig and select a context.

    Args:
        path: the path of the kubeconfig.
        context: the name of the context; empty for the file's ``current-context``.

    Raises:
        SourceError: something is missing or malformed; the message names the remedy.
    """
    document = _read(path)
    name = context or document.get("current-context")
    if not name:
        raise SourceError(
            f"kubeconfig {path} has no current-context: set one with kubectl config use-context"
        )
    chosen = _entry(document, "contexts", name, path)
    cluster = _entry(document, "clusters", chosen.get("cluster"), path)
    if not cluster.get("server"):
        raise SourceError(
            f"kubeconfig {path}: cluster {chosen.get('cluster')!r} has no server: add its URL"
        )
    user = _entry(document, "users", chosen["user"], path) if chosen.get("user") else {}
    if user.get("exec"):
        _check_plugin(user["exec"], path)
    return Kubeconfig(path, cluster, user)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_bounded(path, limits.KUBECONFIG_BYTES)
        check_yaml(data)
        document = yaml.load(data, Loader=_Loader)  # noqa: S506 - a safe loader
    except FileNotFoundError:
        raise SourceError(
            f"kubeconfig {path} does not exist: correct the path in --kubeconfig"
        ) from None
    except OSError as error:
        raise SourceError(
            f"kubeconfig {path} cannot be read ({error.strerror}): correct its path or mode"
        ) from error
    except UnusableFileError as error:
        raise SourceError(f"kubeconfig {path} {error}") from None
    except YamlLimitError as error:
        raise SourceError(f"kubeconfig {path}: line {error.line}: {error.reason}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SourceError(
            f"kubeconfig {path} is not YAML ({one_line(error)}): correct it"
        ) from error
    if not isinstance(document, dict):
        raise SourceError(f"kubeconfig {path} is empty or not a kubeconfig: write one there")
    return document


def _entry(document: dict[str, Any], section: str, name: object, path: Path) -> dict[str, Any]:
    """Return the entry ``name`` of ``clusters``, ``users`` or ``contexts``; the first one counts."""
    entries = document.get(section)
    named = {
        entry["name"]: entry.get(section.removesuffix("s"))
        for entry in reversed(entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    }
    if not isinstance(name, str) or name not in named:
        known = ", ".join(map(_shorten, sorted(named)[:_NAMES_SHOWN])) or "none, add it"
        raise SourceError(
            f"kubeconfig {path} has no entry {quoted(name)} in {section}: use one of {known}"
        )
    content = named[name]
    return content if isinstance(content, dict) else {}


def _shorten(name: str) -> str:
    return name if name.isprintable() and len(name) < limits.SHOWN_CHARACTERS else quoted(name)


def _check_plugin(plugin: object, path: Path) -> None:
    command = plugin.get("command") if isinstance(plugin, dict) else None
    if not command or not isinstance(command, str):
        raise SourceError(f"kubeconfig {path}: the user's exec has no command: add it")
    # As in kubectl, a command with a slash is relative to the kubeconfig.
    found = os.access(path.parent / command, os.X_OK) if "/" in command else shutil.which(command)
    if not found:
        raise SourceError(
            f"kubeconfig {path}: exec plugin {command!r} is missing or not executable: install it"
        )
