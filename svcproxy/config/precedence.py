"""Combines a configuration file with flags.

With ``--config`` kube-proxy takes all settings from the file (source: Complete and
processV1Alpha1Flags in cmd/kube-proxy/app/options.go of 1.36). The exceptions are the flags for
logging, ``--hostname-override``, ``--master``, and those that concern this run only.
"""

from collections.abc import Iterator, Mapping

from svcproxy.config.collect import Given, collect, setting_message
from svcproxy.config.document import Document, decode
from svcproxy.config.file_fields import FIELDS
from svcproxy.config.flags import FLAGS, finish, flag_name_of
from svcproxy.config.model import Loaded

_EFFECTIVE = frozenset(
    {
        *("config", "write-config-to", "cleanup", "init-only", "manifests"),
        *("hostname-override", "master", "v", "vmodule", "logging-format", "log-flush-frequency"),
        *("log-text-split-stream", "log-text-info-buffer-size"),
        *("log-json-split-stream", "log-json-info-buffer-size"),
    }
)
# Empty, this flag has a meaning of its own
_MAY_BE_EMPTY = frozenset({"svcproxy-admin-socket"})
# The fields of the file that correspond to these deprecated flags
_FIELDS_OF_PORT_FLAGS = {"healthz-port": "healthzBindAddress", "metrics-port": "metricsBindAddress"}


def from_file(settings: Mapping[str, str], data: bytes, origin: str) -> Loaded:
    """Build a ``Config`` from a file and from the flags that still apply.

    Args:
        settings: the text of each given flag, by its name without dashes.
        data: the content of the file.
        origin: the name of the file, for messages.

    Raises:
        ConfigError: at least one setting is invalid; it holds every problem.
    """
    document = decode(data, origin)
    warnings = [
        *document.warnings,
        *_overridden_flags(settings, origin),
        *_without_kubeconfig(settings, document),
    ]
    # A flag may be empty, like $(NODE_NAME) of an unset variable: kube-proxy then uses the file.
    flags = {
        name: text
        for name, text in settings.items()
        if _is_effective(name) and (text or name in _MAY_BE_EMPTY)
    }
    given = [*document.given.values(), *(_given(name, text) for name, text in flags.items())]
    collected = collect(given, document.base)

    def name_of(field: str) -> str:
        path = next((path for path in FIELDS if field in FIELDS[path].setting.fields), None)
        flagged = any(field in FLAGS[name].setting.fields for name in flags)
        return flag_name_of(field, flags) if flagged or path is None else f"{origin}: {path}"

    return finish(
        collected._replace(
            problems=[*document.problems, *collected.problems],
            warnings=[*warnings, *collected.warnings],
        ),
        name_of,
    )


def _given(name: str, text: str) -> Given:
    return Given(FLAGS[name].option, text, FLAGS[name].setting)


def _is_effective(name: str) -> bool:
    if name in _EFFECTIVE or name.startswith("svcproxy-"):
        return True
    return not FLAGS[name].setting.fields and name not in _FIELDS_OF_PORT_FLAGS


def _overridden_flags(settings: Mapping[str, str], origin: str) -> Iterator[str]:
    """Warn of flags that the file overrides."""
    for name, text in settings.items():
        if not _is_effective(name):
            path = _FIELDS_OF_PORT_FLAGS.get(name) or _path_of(FLAGS[name].setting.fields[0])
            reason = f"ignored, because of --config; set {path} in {origin} instead"
            yield setting_message(FLAGS[name].option, text, reason)


def _path_of(field: str) -> str:
    return next(path for path in FIELDS if field in FIELDS[path].setting.fields)


def _without_kubeconfig(settings: Mapping[str, str], document: Document) -> Iterator[str]:
    """With ``--manifests`` there is no API server: drop the file's kubeconfig, with a warning."""
    path = "clientConnection.kubeconfig"
    if settings.get("manifests") and path in document.given:
        given = document.given.pop(path)
        yield setting_message(given.name, given.text, "ignored, because of --manifests")
