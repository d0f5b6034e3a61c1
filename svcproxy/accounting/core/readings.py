"""Readings of the accounting table's counters."""

from collections.abc import Mapping
from typing import NamedTuple

from svcproxy.accounting.core.frontends import FrontendKey


class Reading(NamedTuple):
    """The counters of a frontend.

    Attributes:
        connections: new connections, served or not; 0 if they are not counted.
        refused: attempts that were refused.
        dropped: attempts that were dropped, also those from outside the source ranges.
    """

    connections: int = 0
    refused: int = 0
    dropped: int = 0

    def plus(self, other: "Reading") -> "Reading":
        """Return the sum."""
        return Reading(*(mine + more for mine, more in zip(self, other, strict=True)))


class Rates(NamedTuple):
    """What the counters of a frontend gained per second.

    Attributes:
        new: new connections; ``None`` if they are not counted.
        refused: refused attempts.
        dropped: dropped attempts.
    """

    new: float | None = None
    refused: float = 0.0
    dropped: float = 0.0


def rates_between(
    before: Mapping[FrontendKey, Reading], after: Mapping[FrontendKey, Reading], seconds: float
) -> dict[FrontendKey, Rates]:
    """Return what each frontend's counters gained per second between two readings.

    Args:
        before: the first reading.
        after: the second reading.
        seconds: the time between them.
    """
    counts = any(reading.connections for reading in after.values())
    found = {}
    for key, reading in after.items():
        former = before.get(key, Reading())
        new, refused, dropped = (
            (now - then if now >= then else now) / seconds  # a new element counts from 0
            for now, then in zip(reading, former, strict=True)
        )
        found[key] = Rates(new if counts else None, refused, dropped)
    return found
