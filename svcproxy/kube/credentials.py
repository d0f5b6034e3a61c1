"""Where the API server is and how to prove who we are: the kubernetes client's configuration.

The client library reads kubeconfigs and in-cluster service accounts. What it does not do is
added here: ``tokenFile`` and the in-cluster token are read at every request (tokens of a
projected volume change every hour), their trailing newlines are cut, and whatever can be wrong
with the files is said in one line before the first request.
"""

import logging
import os
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import yaml
from kubernetes.client import Configuration
from kubernetes.config import kube_config
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.incluster_config import InClusterConfigLoader

from svcproxy.kube.source import SourceError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# What the library lets escape from malformed files, besides its own exception.
_LIBRARY_ERRORS = (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError)


OnRequest = Callable[[str, str, str, float], None]
"""Takes a request's method, host (with port), status code ("<error>" without an answer) and the
seconds until the head of the answer came."""


class ConnectionSettings(msgspec.Struct, frozen=True):
    """How to reach the API server; times are in seconds.

    Without ``kubeconfig`` and ``master`` the service account of the pod is used. ``master``
    overrides the server of the kubeconfig; alone, it means a server that asks no credentials.
    ``idle_seconds`` is how long a watch may be silent before it counts as dead: API servers
    send a bookmark about every minute. ``initial_seconds`` is the same for a stream of initial
    events, and ``backoff_seconds`` the longest wait between two attempts. ``on_request`` is told
    of every request, in the thread that makes it.
    """

    kubeconfig: str = ""
    context: str = ""
    master: str = ""
    connect_seconds: float = 5.0
    list_seconds: float = 60.0
    idle_seconds: float = 90.0
    initial_seconds: float = 20.0
    backoff_seconds: float = 30.0
    service_account: Path = SERVICE_ACCOUNT
    on_request: OnRequest | None = None


def load_configuration(settings: ConnectionSettings) -> Any:
    """Load the kubernetes client's configuration, credentials included.

    Returns:
        A ``kubernetes.client.Configuration`` that renews its credentials by itself.

    Raises:
        SourceError: something is missing or malformed; the message names the remedy.
    """
    configuration = Configuration()
    if settings.kubeconfig:
        _from_kubeconfig(settings, configuration)
    elif not settings.master:
        _from_service_account(settings.service_account, configuration)
    if settings.master:
        configuration.host = settings.master.rstrip("/")
    _check_server(configuration.host)
    _check_tls(configuration)
    # The reflector decides about retries; the library's own would only delay it.
    configuration.retries = False
    configuration.keep_alive = True
    return configuration


def _from_service_account(folder: Path, configuration: Any) -> None:
    token_file = folder / "token"
    loader = InClusterConfigLoader(
        token_filename=str(token_file),
        cert_filename=str(folder / "ca.crt"),
        try_refresh_token=False,
    )
    try:
        loader.load_and_set(configuration)
    except _LIBRARY_ERRORS as error:
        raise SourceError(
            f"no in-cluster credentials ({_line(error)}): give --kubeconfig or --master, or run "
            f"in a pod with a service account mounted at {folder}"
        ) from error
    _follow_token_file(configuration, token_file)


def _from_kubeconfig(settings: ConnectionSettings, configuration: Any) -> None:
    path = Path(settings.kubeconfig).expanduser()
    document = _read_kubeconfig(path)
    user = _check_context(document, path, settings.context)
    plugin = user.get("exec")
    if plugin:
        _check_plugin(plugin, path)
    with _logged_errors() as logged:
        try:
            kube_config.load_kube_config(
                config_file=str(path),
                context=settings.context or None,
                client_configuration=configuration,
                persist_config=False,
            )
        except _LIBRARY_ERRORS as error:
            raise SourceError(f"kubeconfig {path}: {_line(error)}: correct the file") from error
    if plugin and not (configuration.api_key or configuration.cert_file):
        # The library only logs what went wrong with a plugin, and goes on without credentials.
        reason = "; ".join(logged) or "it gave no credentials"
        raise SourceError(
            f"kubeconfig {path}: exec plugin {plugin['command']!r} failed: {reason}: "
            "run it by hand to see why"
        )
    if user.get("tokenFile"):
        _follow_token_file(configuration, path.parent / str(user["tokenFile"]))


def _read_kubeconfig(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        raise SourceError(
            f"kubeconfig {path} does not exist: give the right path to --kubeconfig"
        ) from None
    except OSError as error:
        raise SourceError(
            f"kubeconfig {path} cannot be read ({error.strerror}): correct its path or mode"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SourceError(f"kubeconfig {path} is not YAML ({_line(error)}): correct it") from error
    if not isinstance(document, dict):
        raise SourceError(f"kubeconfig {path} is empty or no kubeconfig: write one there")
    return document


def _check_context(document: dict[str, Any], path: Path, wanted: str) -> dict[str, Any]:
    """Check that context, cluster and user exist, and give the user's part."""
    name = wanted or document.get("current-context")
    if not name:
        raise SourceError(
            f"kubeconfig {path} has no current-context: set one with kubectl config use-context"
        )
    context = _named(document, "contexts", name, path)
    cluster = _named(document, "clusters", context.get("cluster"), path)
    if not cluster.get("server"):
        raise SourceError(
            f"kubeconfig {path}: cluster {context.get('cluster')!r} has no server: add its URL"
        )
    return _named(document, "users", context["user"], path) if context.get("user") else {}


def _named(document: dict[str, Any], section: str, name: object, path: Path) -> dict[str, Any]:
    """Give what an entry of ``clusters``, ``users`` or ``contexts`` holds."""
    entries = document.get(section)
    named = {
        entry.get("name"): entry.get(section.removesuffix("s"))
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
    }
    if name not in named:
        known = ", ".join(sorted(map(str, named))) or "none, add it"
        raise SourceError(
            f"kubeconfig {path} has no entry {name!r} in {section}: use one of {known}"
        )
    content = named[name]
    return content if isinstance(content, dict) else {}


def _check_plugin(plugin: object, path: Path) -> None:
    command = plugin.get("command") if isinstance(plugin, dict) else None
    if not command:
        raise SourceError(f"kubeconfig {path}: the user's exec has no command: add it")
    # A command with a slash is relative to the kubeconfig, as for kubectl.
    found = os.access(path.parent / command, os.X_OK) if "/" in command else shutil.which(command)
    if not found:
        raise SourceError(
            f"kubeconfig {path}: exec plugin {command!r} is not there or not executable: install it"
        )


def _follow_token_file(configuration: Any, token_file: Path) -> None:
    """Make every request read the token anew: it is one small file for some requests an hour."""

    def refresh(target: Any) -> None:
        target.api_key["BearerToken"] = f"Bearer {_read_token(token_file)}"

    configuration.refresh_api_key_hook = refresh
    refresh(configuration)


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"token file {path} cannot be read ({_line(error)}): restore it"
        ) from error
    if not token or any(not 0x21 <= ord(letter) < 0x7F for letter in token):
        raise SourceError(f"token file {path} holds no token: restore it")
    return token


def _check_server(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise SourceError(
            f"API server URL {url!r} is not valid: use one like https://10.0.0.1:6443"
        )


def _check_tls(configuration: Any) -> None:
    """Load the certificates once, to say now what every connection would fail with."""
    if not configuration.host.startswith("https"):
        return
    context = ssl.create_default_context()
    checks: tuple[tuple[str, str | None, Callable[[], None]], ...] = (
        (
            "CA certificate",
            configuration.ssl_ca_cert,
            lambda: context.load_verify_locations(cafile=configuration.ssl_ca_cert),
        ),
        (
            "client certificate",
            configuration.cert_file,
            lambda: context.load_cert_chain(configuration.cert_file, configuration.key_file),
        ),
    )
    for what, path, load in checks:
        if not path:
            continue
        try:
            load()
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{what} {path} cannot be used ({_line(error)}): correct it in the kubeconfig"
            ) from error


@contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """Collect what the library says only to the root logger, and keep it from configuring it."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    root = logging.getLogger()
    collector = Collector(logging.ERROR)
    root.addHandler(collector)
    try:
        yield messages
    finally:
        root.removeHandler(collector)


def _line(error: BaseException) -> str:
    """Give an exception's text in one line."""
    return " ".join(str(error).split()) or type(error).__name__
