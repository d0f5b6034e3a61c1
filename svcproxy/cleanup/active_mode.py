"""What a sweep has to spare, and what it tells; without the modules that do the work."""

from collections.abc import Mapping

import msgspec
import structlog

from svcproxy.config import ProxyMode

log = structlog.get_logger()


class ActiveMode(msgspec.Struct, frozen=True):
    """What carries the Services from now on and has to stay.

    ``mode`` is ``None`` for nobody (``--cleanup``); ``variant`` is that of iptables in which the
    mode's rules are (``nft``, ``legacy``), ``None`` for a mode without any. Virtual servers in the
    ranges ``spared`` are nobody's leftovers.
    """

    mode: ProxyMode | None = None
    variant: str | None = None
    spared: tuple[str, ...] = ()


class Swept(msgspec.Struct, frozen=True):
    """What a sweep did: how many things it removed by kind, and one line for each failure."""

    removed: Mapping[str, int]
    problems: tuple[str, ...]


def report(swept: Swept, remedy: str) -> None:
    """Say in the log what a sweep did, and what to do about what it could not."""
    removed = {kind: count for kind, count in swept.removed.items() if count}
    if removed:
        log.info("leftovers.removed", **removed)
    for problem in swept.problems:
        log.warning("leftovers.not_removed", error=problem, remedy=remedy)
