"""/flagz and /statusz: the effective flags, and version and uptime of this process. Pure.

As in Kubernetes 1.36 (KEP-4828, KEP-4827), the default is plain text without a stable layout;
clients that ask for a version get an object of the ``config.k8s.io`` group. The component name is
``kube-proxy``, so that tools find it; the binary version says svcproxy.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple

from svcproxy.observe.core.negotiation import Choice, accepted
from svcproxy.observe.core.routes import TEXT, Reply

COMPONENT = "kube-proxy"
GROUP = "config.k8s.io"
# v1alpha1 is served with a warning, as kube-proxy does
_VERSIONS = ("v1beta1", "v1alpha1")
_STRUCTURED = ("application/json", "application/yaml")
_NOTICE = "For people: the layout of this page may change at any time.\n"


class StatuszInfo(NamedTuple):
    """The content of /statusz: times are seconds since the epoch, ``paths`` the served paths."""

    started: float
    now: float
    version: str
    runtime: str
    compatible: str
    paths: tuple[str, ...]


def flagz(flags: Mapping[str, str], accept: str) -> Reply:
    """Answer /flagz.

    Args:
        flags: the effective flags by name without dashes.
        accept: the ``Accept`` header.
    """
    lines = "".join(f"{name}={value}\n" for name, value in sorted(flags.items()))
    return _page("Flagz", lines, {"flags": dict(sorted(flags.items()))}, accept)


def statusz(status: StatuszInfo, accept: str) -> Reply:
    """Answer /statusz.

    Args:
        status: what to show.
        accept: the ``Accept`` header.
    """
    started = datetime.fromtimestamp(status.started, UTC)
    seconds = int(status.now - status.started)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    lines = (
        f"\nStarted:  {started:%a %b %d %H:%M:%S UTC %Y}\n"
        f"Up:  {hours} hr {minutes:02} min {seconds % 60:02} sec\n"
        f"Runtime version:  {status.runtime}\n"
        f"Binary version:  svcproxy {status.version}\n"
        f"Emulation version:  {status.compatible}\n"
        f"Paths:  {' '.join(status.paths)}\n"
    )
    fields = {
        "startTime": f"{started:%Y-%m-%dT%H:%M:%SZ}",
        "uptimeSeconds": seconds,
        "goVersion": status.runtime,  # the field is required; its name is the API's
        "binaryVersion": f"svcproxy {status.version}",
        "emulationVersion": status.compatible,
        "paths": list(status.paths),
    }
    return _page("Statusz", lines, fields, accept)


def _page(kind: str, lines: str, fields: Mapping[str, Any], accept: str) -> Reply:
    for choice in accepted(accept or "*/*"):
        if choice.name in {"text/plain", "text/*", "*/*"}:
            text = f"\n{COMPONENT} {kind.lower()}\n{_NOTICE}{lines}"
            return Reply(HTTPStatus.OK, TEXT, text.encode())
        version = _version(kind, choice)
        if version:
            return _object(kind, version, choice.name, fields)
    return _not_acceptable()


def _version(kind: str, choice: Choice) -> str:
    """Return the object version that a choice asks for; empty if it is not served."""
    asked = choice.parameters
    wanted = choice.name in _STRUCTURED and asked.get("g") == GROUP and asked.get("as") == kind
    return asked.get("v", "") if wanted and asked.get("v") in _VERSIONS else ""


def _object(kind: str, version: str, media: str, fields: Mapping[str, Any]) -> Reply:
    page = {
        "kind": kind,
        "apiVersion": f"{GROUP}/{version}",
        "metadata": {"name": COMPONENT},
        **fields,
    }
    outdated = f'299 - "{version} of this page is deprecated: ask for {_VERSIONS[0]}"'
    return Reply(
        HTTPStatus.OK,
        f"{media};g={GROUP};v={version};as={kind}",
        _encode(page, media).encode(),
        {} if version == _VERSIONS[0] else {"Warning": outdated},
    )


def _not_acceptable() -> Reply:
    """Return the 406 reply of the API machinery: a ``Status`` object."""
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"ask for text/plain, or for {' or '.join(_STRUCTURED)} with the parameters"
        f" g={GROUP}, v={_VERSIONS[0]} and as=<Flagz or Statusz>",
        "reason": "NotAcceptable",
        "code": int(HTTPStatus.NOT_ACCEPTABLE),
    }
    return Reply(HTTPStatus.NOT_ACCEPTABLE, "application/json", json.dumps(status).encode())


def _encode(page: Mapping[str, Any], media: str) -> str:
    if media == "application/json":
        return json.dumps(page, separators=(",", ":")) + "\n"
    import yaml  # noqa: PLC0415 - this representation is rarely requested

    text: str = yaml.safe_dump(page, default_flow_style=False)
    return text
