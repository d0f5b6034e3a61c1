"""Looking at all virtual servers again and again, in steps that hold no change up for long."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from svcproxy.backends.ipvs.audit import Audit, Difference
from svcproxy.netlink.core.kernel_objects import RealServers, VirtualServer, VirtualServerKey

STEP = 0.05
"""How many seconds a step takes at most, about, if nothing else has to be done. Long steps are
cheap, for they find in the caches of the processor what the kernel looks through for each piece."""
SHORTEST_PAUSE = 0.01
SHARE = 4
"""Pauses are so many times as long as the steps before them at least: passes take a fifth of a core."""
SPACING = 0.95
"""Passes begin so many sync periods after each other, and damage is repaired within one."""
SPREAD = 0.7
"""A pass is spread over so much of a sync period, so that it is felt as little as can be."""
_PATIENCE = 4
"""After so many sync periods without the end of a pass, nothing is known any more."""
_BETWEEN = 8
"""The clock is looked at after so many pieces, for that costs about as much as to read one."""
_PORTS = 2
"""For so many Service ports, what they should look like is computed as fast as a piece is read."""


class Source(Protocol):
    """Where virtual servers are looked at; each call and each piece may raise ``BackendError``."""

    def listing(self) -> Iterator[bytes]:
        """Pieces of the listing of all of them."""

    def virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """Its properties; ``None`` if there is none."""

    def weights(self, key: VirtualServerKey) -> RealServers:
        """Its real servers."""


class Auditor:
    """Makes the steps of passes, when it is time.

    It is for one thread: that which carries out the plans.

    Args:
        audit: what judges.
        source: tells of virtual servers.
        period: the sync period in seconds.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        audit: Audit,
        source: Source,
        period: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.audit = audit
        self._source = source
        self._period = period
        self._clock = clock
        self._steps: Iterator[Difference | None] | None = None
        self._progress: Callable[[], float] = lambda: 0.0
        self._due = self._begun = self._checked = 0.0

    @property
    def current(self) -> bool:
        """Whether all virtual servers have been seen not long ago, and as they should be."""
        late = self._clock() - self._checked > _PATIENCE * self._period
        return self._steps is not None and not late

    def start(self) -> None:
        """Begin anew: at this time, everything is as it should be."""
        self.audit.compared()
        self._due = self._begun = self._checked = self._clock()
        self._steps, self._progress = self._renewed(), lambda: self.audit.known

    def stop(self) -> None:
        """Look no more until the next ``start``."""
        self._steps = None

    def step(self, hurry: Callable[[], bool]) -> float | Difference | None:
        """Make a step if it is time for it; it is short if there is a ``hurry``.

        Returns:
            Seconds until the next one, ``None`` if there is none to make; or what was found wrong,
            after which there is none until the next ``start``.

        Raises:
            BackendError: the kernel does not tell.
        """
        now = self._clock()
        if self._steps is None:
            return None
        if now < self._due:
            return self._due - now
        steps, self._steps = self._steps, None
        for number, found in enumerate(steps):
            if found is not None:
                return found
            if hurry() or (number % _BETWEEN == 0 and self._clock() - now >= STEP):
                break
        else:
            return self._ended(now)
        self._steps = steps
        self._due = self._next(now, self._clock() - now)
        return self._due - now

    def _ended(self, now: float) -> float:
        """Have the next pass wait for its time."""
        self._steps = self._passed()
        self._progress = lambda: self.audit.seen
        self._due = max(now + SHORTEST_PAUSE, self._begun + SPACING * self._period)
        return self._due - now

    def _next(self, now: float, took: float) -> float:
        """When to make the next step after one that began ``now``, so that they are spread out."""
        soon = now + took + max(SHORTEST_PAUSE, SHARE * took)
        return max(soon, self._begun + self._progress() * SPREAD * self._period)

    def _renewed(self) -> Iterator[None]:
        while self.audit.outdated:
            self.audit.renew(_PORTS)
            yield

    def _passed(self) -> Iterator[Difference | None]:
        """A pass in parts that take about the same time.

        We may write whenever it yields; what is wanted has to be known again before it goes on.
        """
        self._begun = self._clock()
        yield from self._renewed()
        if self.audit.size:
            self.audit.begin()
            for piece in self._source.listing():
                yield self.audit.take(piece)
                yield from self._renewed()
            yield self.audit.end()
            for written in self.audit.unseen():
                yield from self._renewed()
                key = self.audit.asked(written)
                if key is not None:
                    yield self._answered(key)
        self._checked = self._begun

    def _answered(self, key: VirtualServerKey) -> Difference | None:
        server = self._source.virtual_server(key)
        weights = self._source.weights(key) if server is not None else {}
        return self.audit.answer(key, server, weights)
