"""What counts when there is a configuration file as well as flags.

Pure. With ``--config`` kube-proxy takes everything from the file, but for a few flags (source:
Complete and processV1Alpha1Flags in cmd/kube-proxy/app/options.go of 1.36): those of the log,
``--hostname-override``, ``--master``, and what is no setting of the proxy but of this run.
"""

from collections.abc import Iterator, Mapping

from svcproxy.config.collect import Given, collect, shown
from svcproxy.config.document import Document, decode
from svcproxy.config.fields import FIELDS
from svcproxy.config.flags import FLAGS, finish, spelled
from svcproxy.config.model import Loaded

_COUNT = frozenset(
    {
        *("config", "write-config-to", "cleanup", "init-only", "manifests"),
        *("hostname-override", "master", "v", "vmodule", "logging-format", "log-flush-frequency"),
        *("log-text-split-stream", "log-text-info-buffer-size"),
        *("log-json-split-stream", "log-json-info-buffer-size"),
    }
)
# Where what these deprecated flags say is said in a file
_PORTS = {"healthz-port": "healthzBindAddress", "metrics-port": "metricsBindAddress"}


def from_file(settings: Mapping[str, str], data: bytes, origin: str) -> Loaded:
    """Make the ``Config`` that a file describes, together with the flags that still count.

    Args:
        settings: the flags that were given, name without dashes to text.
        data: what the file holds.
        origin: the name of the file, for complaints.

    Raises:
        ConfigError: at least one setting is wrong; every problem is in it.
    """
    document = decode(data, origin)
    warnings = [*document.warnings, *_ignored(settings, origin), *_dropped(settings, document)]
    # Empty as $(NODE_NAME) without a value would be: kube-proxy then takes what the file says
    flags = {name: text for name, text in settings.items() if _counts(name) and text}
    given = [*document.given.values(), *(_given(name, text) for name, text in flags.items())]
    collected = collect(given, document.base)

    def spell(field: str) -> str:
        path = next((path for path in FIELDS if field in FIELDS[path].setting.fields), None)
        flagged = any(field in FLAGS[name].setting.fields for name in flags)
        return spelled(field, flags) if flagged or path is None else f"{origin}: {path}"

    return finish(
        collected._replace(
            problems=[*document.problems, *collected.problems],
            warnings=[*warnings, *collected.warnings],
        ),
        spell,
    )


def _given(name: str, text: str) -> Given:
    return Given(FLAGS[name].spelled, text, FLAGS[name].setting)


def _counts(name: str) -> bool:
    if name in _COUNT or name.startswith("svcproxy-"):
        return True
    return not FLAGS[name].setting.fields and name not in _PORTS


def _ignored(settings: Mapping[str, str], origin: str) -> Iterator[str]:
    """Name the flags that the file takes the place of."""
    for name, text in settings.items():
        if not _counts(name):
            path = _PORTS.get(name) or _path_of(FLAGS[name].setting.fields[0])
            reason = f"ignored, because of --config; set {path} in {origin} instead"
            yield shown(FLAGS[name].spelled, text, reason)


def _path_of(field: str) -> str:
    return next(path for path in FIELDS if field in FIELDS[path].setting.fields)


def _dropped(settings: Mapping[str, str], document: Document) -> Iterator[str]:
    """With ``--manifests`` there is no API server, so the file's way to it does not matter."""
    path = "clientConnection.kubeconfig"
    if settings.get("manifests") and path in document.given:
        given = document.given.pop(path)
        yield shown(given.name, given.text, "ignored, because of --manifests")
