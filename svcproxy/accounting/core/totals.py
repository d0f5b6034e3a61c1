"""Totals that only grow, from counters in the kernel that may begin again."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Totals(Generic[Item]):
    """Adds up what counters gained between two readings.

    An element of the kernel's table that is made again counts from 0, for example when the reason
    why a frontend refuses changes. What it counted after the last reading is lost.
    """

    def __init__(self) -> None:
        self._read: dict[Item, int] = {}
        self._totals: dict[Item, int] = {}

    def update(self, readings: Mapping[Item, int]) -> None:
        """Add a reading of some counters; the totals of absent ones stay."""
        for item, count in readings.items():
            before = self._read.get(item, 0)
            gained = count - before if count >= before else count
            self._totals[item] = self._totals.get(item, 0) + gained
        for item in self._read.keys() - readings.keys():
            del self._read[item]  # its element is gone; a new one counts from 0
        self._read.update(readings)

    def keep(self, items: Iterable[Item]) -> None:
        """Forget all other items."""
        kept = set(items)
        for known in (self._read, self._totals):
            for item in known.keys() - kept:
                del known[item]

    def of(self, item: Item) -> int:
        """Return the total of an item."""
        return self._totals.get(item, 0)
