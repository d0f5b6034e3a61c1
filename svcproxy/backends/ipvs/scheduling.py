"""The annotations by which a Service chooses its IPVS scheduler."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from svcproxy.limits import SCHEDULER_FLAGS, SCHEDULER_NAME_CHARACTERS

SCHEDULER = "svcproxy.io/ipvs-scheduler"
FLAGS = "svcproxy.io/ipvs-scheduler-flags"
_KUBE_ROUTER = {
    SCHEDULER: "kube-router.io/service.scheduler",
    FLAGS: "kube-router.io/service.schedflags",
}

ANNOTATIONS = frozenset((*_KUBE_ROUTER, *_KUBE_ROUTER.values()))
"""The annotation keys that IPVS mode reads; ``ServicePort.annotations`` must carry them."""


class SchedulerChoice(NamedTuple):
    """The scheduler and flags that the annotations name, cut to the length limits.

    Attributes:
        scheduler: the name in lower case; empty if the Service names none.
        flags: the names of the flags; ``None`` if the Service has no annotation for flags.
    """

    scheduler: str = ""
    flags: tuple[str, ...] | None = None


_NO_CHOICE = SchedulerChoice()


def scheduler_choice(annotations: tuple[tuple[str, str], ...]) -> SchedulerChoice:
    """Read the scheduler annotations of a Service port.

    svcproxy's own keys take precedence over kube-router's. A name that is too long is cut, so that
    it fits a log line; the cut name is not a valid scheduler or flag either.
    """
    if not annotations:
        return _NO_CHOICE
    found = dict(annotations)
    flags = _value(found, FLAGS)
    return SchedulerChoice(
        _shortened((_value(found, SCHEDULER) or "").strip().lower()),
        None if flags is None else tuple(_flags(flags)),
    )


def _flags(text: str) -> Iterator[str]:
    # The remainder after the last split is one flag. If it holds several, it is not a valid one.
    parts = (part.strip() for part in text.split(",", SCHEDULER_FLAGS))
    return (_shortened(flag) for flag in parts if flag)


def _shortened(name: str) -> str:
    limit = SCHEDULER_NAME_CHARACTERS
    return name if len(name) <= limit else f"{name[:limit]}..."


def _value(annotations: Mapping[str, str], key: str) -> str | None:
    return annotations.get(key, annotations.get(_KUBE_ROUTER[key]))
