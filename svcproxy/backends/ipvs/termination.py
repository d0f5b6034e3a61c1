"""Letting real servers leave without ending their connections.

A real server that is not wanted any more gets weight 0, which keeps new connections away, and is
removed when its last connection has ended or the limit is over. What drains needs no file: after
a restart it is recognised in the kernel by its weight, and the limit counts anew.

Pure: the caller says what time it is, in seconds of one monotonic clock.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from svcproxy.netlink.core.kernel_objects import Connections, RealServerKey, VirtualServerKey

PAUSE = 5.0
"""Seconds between two looks at the servers that drain."""


class Termination:
    """The real servers that drain, by virtual server, and since when.

    ``limit`` is the time after which they go even with connections, 0 for never.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._since: dict[VirtualServerKey, dict[RealServerKey, float]] = {}

    @property
    def servers(self) -> AbstractSet[VirtualServerKey]:
        """The virtual servers that have a draining real server."""
        return self._since.keys()

    def draining(self, virtual: VirtualServerKey) -> AbstractSet[RealServerKey]:
        """The real servers of a virtual server that drain."""
        return self._since.get(virtual, {}).keys()

    def begin(self, virtual: VirtualServerKey, real: Iterable[RealServerKey], now: float) -> None:
        """Note that real servers drain; those that did already keep their time."""
        since = self._since.setdefault(virtual, {})
        for key in real:
            since.setdefault(key, now)

    def end(self, virtual: VirtualServerKey, real: Iterable[RealServerKey]) -> None:
        """Note that real servers are wanted again, or gone."""
        since = self._since.get(virtual)
        if since is None:
            return
        for key in real:
            since.pop(key, None)
        if not since:
            del self._since[virtual]

    def retain(self, leaving: Mapping[VirtualServerKey, Iterable[RealServerKey]]) -> None:
        """Forget what is not among ``leaving``, which is all that the kernel has of it."""
        for virtual in list(self._since):
            self.end(virtual, set(self._since[virtual]).difference(leaving.get(virtual, ())))

    def finished(
        self,
        virtual: VirtualServerKey,
        found: Mapping[RealServerKey, Connections],
        now: float,
        *,
        closing: bool = True,
    ) -> list[RealServerKey]:
        """Which of a virtual server's draining real servers can go.

        They wait for connections that are being closed, too, if ``closing``.
        Persistence templates do not count: one that leads to weight 0 is given up at its next
        use (``expire_quiescent_template``).
        """
        return [
            key
            for key, since in self._since.get(virtual, {}).items()
            if key not in found
            or not (found[key].active or (closing and found[key].inactive))
            or (self._limit and now - since >= self._limit)
        ]

    def pause(self) -> float | None:
        """Seconds until the next look, ``None`` if nothing drains."""
        if not self._since:
            return None
        return min(PAUSE, self._limit) if self._limit else PAUSE
