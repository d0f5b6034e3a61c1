"""Which nf_tables generations this process made: its own transactions are no changes by others."""

from threading import Lock
from weakref import WeakValueDictionary


class OwnGenerations:
    """The nf_tables generations that this process made with its tables, of both IP families.

    These are the tables of nftables mode and of accounting; iptables' programs are not counted.
    The kernel counts generations per network namespace: each transaction, of any process on any
    table, makes the next one. A transaction that names the generation it is based on, and
    succeeds, has therefore made the one after it.
    """

    _KEPT = 4096

    def __init__(self) -> None:
        self._made: dict[int, None] = {}
        self._lock = Lock()

    def add(self, generation: int) -> None:
        """Record a generation that this process made."""
        with self._lock:
            self._made[generation] = None
            if len(self._made) > self._KEPT:
                del self._made[next(iter(self._made))]

    def made_all(self, after: int, last: int) -> bool:
        """Whether this process made all generations from ``after + 1`` to ``last``."""
        if not 0 <= last - after <= self._KEPT:
            return False
        with self._lock:
            return all(number in self._made for number in range(after + 1, last + 1))

    def count(self, after: int, last: int) -> int:
        """Return how many of the generations from ``after + 1`` to ``last`` this process made."""
        if not 0 <= last - after <= self._KEPT:
            return 0
        with self._lock:
            return sum(number in self._made for number in range(after + 1, last + 1))

    def latest(self, after: int) -> int:
        """Return the last generation in the unbroken run of own generations after ``after``."""
        with self._lock:
            while after + 1 in self._made:
                after += 1
        return after


_registry: WeakValueDictionary[int, OwnGenerations] = WeakValueDictionary()


def own_generations(namespace: int) -> OwnGenerations:
    """Return the record for a network namespace (``NetlinkSocket.namespace``).

    All tables in a namespace count the same generations, so all share the record.
    """
    return _registry.setdefault(namespace, OwnGenerations())
