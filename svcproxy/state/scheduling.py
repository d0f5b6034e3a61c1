"""Which IPVS scheduler a Service asks for, by annotation; the other modes have none to choose."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from svcproxy.limits import SCHEDULER_FLAGS, SCHEDULER_NAME_CHARACTERS

SCHEDULER = "svcproxy.io/ipvs-scheduler"
FLAGS = "svcproxy.io/ipvs-scheduler-flags"
_KUBE_ROUTER = {
    SCHEDULER: "kube-router.io/service.scheduler",
    FLAGS: "kube-router.io/service.schedflags",
}


class Wish(NamedTuple):
    """What a Service asks for, shortened: a scheduler (empty for none), and its flags."""

    scheduler: str = ""
    flags: tuple[str, ...] | None = None


_NONE = Wish()


def scheduler_wish(annotations: tuple[tuple[str, str], ...]) -> Wish:
    """Read a Service's annotations: ours, and kube-router's where ours are absent.

    A name that is too long, or one flag too many, cannot be a name of the kernel's. It is cut to fit
    a log line, and stays unusable.
    """
    if not annotations:
        return _NONE
    found = dict(annotations)
    flags = _text(found, FLAGS)
    return Wish(
        _shortened((_text(found, SCHEDULER) or "").strip().lower()),
        None if flags is None else tuple(_flags(flags)),
    )


def _flags(text: str) -> Iterator[str]:
    # The part after the last split counts as one flag, which is too long if it holds several.
    parts = (part.strip() for part in text.split(",", SCHEDULER_FLAGS))
    return (_shortened(flag) for flag in parts if flag)


def _shortened(name: str) -> str:
    most = SCHEDULER_NAME_CHARACTERS
    return name if len(name) <= most else f"{name[:most]}..."


def _text(annotations: Mapping[str, str], key: str) -> str | None:
    return annotations.get(key, annotations.get(_KUBE_ROUTER[key]))
