"""What was seen of each frontend's connections, in bounded memory."""

from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

from svcproxy.accounting.core.frontends import FrontendKey

Item = TypeVar("Item", bound=Hashable)

TOP = 16
"""How many clients and endpoints are counted for each frontend."""


class Counted(NamedTuple, Generic[Item]):
    """An item with its count.

    Attributes:
        item: the item.
        times: how often it was seen, at most.
        error: by how much that may be too high; 0 if it is exact.
    """

    item: Item
    times: int
    error: int = 0


class Frequent(Generic[Item]):
    """Counts the most frequent items of a stream with a fixed number of counters.

    The algorithm is Space-Saving (Metwally, Agrawal and El Abbadi 2005): a new item takes over the
    smallest counter. Each item that makes up more than 1/``size`` of the stream is found.

    Args:
        size: the number of counters.
    """

    __slots__ = ("_counts", "_errors", "_size")

    def __init__(self, size: int = TOP) -> None:
        self._size = size
        self._counts: dict[Item, int] = {}
        self._errors: dict[Item, int] = {}

    def add(self, item: Item) -> None:
        """Count an item."""
        counts = self._counts
        if item in counts:
            counts[item] += 1
        elif len(counts) < self._size:
            counts[item] = 1
        else:
            smallest = min(counts, key=counts.__getitem__)
            taken = counts.pop(smallest)
            self._errors.pop(smallest, None)
            counts[item], self._errors[item] = taken + 1, taken

    def most(self, count: int) -> list[Counted[Item]]:
        """Return the items with the highest counts, highest first."""
        items = sorted(self._counts, key=lambda item: (-self._counts[item], repr(item)))
        return [Counted(i, self._counts[i], self._errors.get(i, 0)) for i in items[:count]]


class Activity:
    """The new connections of one frontend during a sample."""

    __slots__ = ("clients", "count", "endpoints")

    def __init__(self) -> None:
        self.count = 0
        self.clients: Frequent[bytes] = Frequent()
        self.endpoints: Frequent[tuple[bytes, int]] = Frequent()


class Activities:
    """The new connections of all frontends during a sample."""

    def __init__(self) -> None:
        self._found: dict[FrontendKey, Activity] = {}

    def add(self, key: FrontendKey, client: bytes, endpoint: tuple[bytes, int]) -> None:
        """Count a new connection of a packed client address to a packed endpoint and its port."""
        activity = self._found.get(key)
        if activity is None:
            activity = self._found[key] = Activity()
        activity.count += 1
        activity.clients.add(client)
        activity.endpoints.add(endpoint)

    def of(self, key: FrontendKey) -> Activity:
        """Return the new connections of a frontend."""
        return self._found.get(key) or Activity()

    def keys(self) -> Iterable[FrontendKey]:
        """Return the frontends that had new connections."""
        return self._found.keys()
