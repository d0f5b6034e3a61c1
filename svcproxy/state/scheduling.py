"""Which IPVS scheduler a Service asks for, by annotation; the other modes have none to choose."""

from collections.abc import Mapping
from typing import NamedTuple

SCHEDULER = "svcproxy.io/ipvs-scheduler"
FLAGS = "svcproxy.io/ipvs-scheduler-flags"
_KUBE_ROUTER = {
    SCHEDULER: "kube-router.io/service.scheduler",
    FLAGS: "kube-router.io/service.schedflags",
}


class Wish(NamedTuple):
    """What a Service asks for, as written: a scheduler, empty for none, and its flags."""

    scheduler: str = ""
    flags: tuple[str, ...] | None = None


_NONE = Wish()


def scheduler_wish(annotations: tuple[tuple[str, str], ...]) -> Wish:
    """Read a Service's annotations: ours, and kube-router's where ours are absent."""
    if not annotations:
        return _NONE
    found = dict(annotations)
    flags = _text(found, FLAGS)
    return Wish(
        (_text(found, SCHEDULER) or "").strip().lower(),
        None if flags is None else tuple(f for part in flags.split(",") if (f := part.strip())),
    )


def _text(annotations: Mapping[str, str], key: str) -> str | None:
    return annotations.get(key, annotations.get(_KUBE_ROUTER[key]))
