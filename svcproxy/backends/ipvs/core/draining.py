"""Draining: removing real servers without breaking their connections.

A TCP real server that is no longer an endpoint gets weight 0, so that it receives no new connections,
and is deleted when its last connection has ended or the time limit is over. The state needs no
file: a fresh process recognizes draining servers by their weight, and their time limit starts again.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from svcproxy.backends.ipvs.core.difference import Plan
from svcproxy.backends.ipvs.core.port_state import PortState
from svcproxy.model.names import Protocol
from svcproxy.netlink.core.kernel_objects import (
    Connections,
    RealServerKey,
    RealServers,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import AddRealServer, DeleteRealServer, SetRealServer

CHECK_SECONDS = 5.0
"""Seconds between two checks of the connections of draining servers."""


class Draining:
    """The real servers that drain, and the virtual servers that exist only for them.

    Times are seconds of one monotonic clock.

    Args:
        limit: the seconds after which a draining real server is deleted even if it has
            connections; 0 for no limit.

    Attributes:
        lingering: the virtual servers that no Service port needs, with the objects that they need
            until their last real server has drained.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._since: dict[VirtualServerKey, dict[RealServerKey, float]] = {}
        self.lingering: dict[VirtualServerKey, PortState] = {}

    @property
    def virtual_servers(self) -> AbstractSet[VirtualServerKey]:
        """The virtual servers that have draining real servers."""
        return self._since.keys()

    def real_servers(self, virtual: VirtualServerKey) -> AbstractSet[RealServerKey]:
        """Return the draining real servers of a virtual server."""
        return self._since.get(virtual, {}).keys()

    def apply(self, plan: Plan, now: float) -> None:
        """Take over which real servers a plan starts to drain and which it uses again.

        A server that drains already keeps its time. A resync lists all draining servers.
        """
        if self._since:
            if plan.is_resync:
                for virtual in list(self._since):
                    left = plan.leaving.get(virtual, ())
                    self.remove(virtual, set(self._since[virtual]).difference(left))
            for operation in (*plan.serve, *plan.node_ports):
                if isinstance(operation, AddRealServer | SetRealServer):
                    self.remove(operation.virtual, (operation.key,))
        for virtual, real in plan.leaving.items():
            since = self._since.setdefault(virtual, {})
            for key in real:
                since.setdefault(key, now)

    def remove(self, virtual: VirtualServerKey, real: Iterable[RealServerKey]) -> None:
        """Remove real servers that are used again or deleted."""
        since = self._since.get(virtual)
        if since is None:
            return
        for key in real:
            since.pop(key, None)
        if not since:
            del self._since[virtual]

    def finished(
        self,
        virtual: VirtualServerKey,
        found: Mapping[RealServerKey, Connections],
        now: float,
        *,
        closing: bool = True,
    ) -> list[RealServerKey]:
        """Return the draining real servers of a virtual server that can be deleted.

        Persistence templates do not keep a real server: the kernel drops a template of a server
        with weight 0 at its next use (``expire_quiescent_template``).

        Args:
            virtual: the virtual server.
            found: the connections of its real servers.
            now: the time.
            closing: also wait for connections that are being closed.
        """
        return [
            key
            for key, since in self._since.get(virtual, {}).items()
            if key not in found
            or not (found[key].active or (closing and found[key].inactive))
            or (self._limit and now - since >= self._limit)
        ]

    def next_check(self) -> float | None:
        """Return the seconds until the next check; ``None`` if no real server drains."""
        if not self._since:
            return None
        return min(CHECK_SECONDS, self._limit) if self._limit else CHECK_SECONDS


def drain(
    plan: Plan, key: VirtualServerKey, wanted: AbstractSet[RealServerKey], found: RealServers
) -> None:
    """Plan to drain the real servers of a virtual server that are no longer needed.

    UDP and SCTP real servers are deleted immediately.

    Args:
        plan: the plan to extend.
        key: the virtual server.
        wanted: the real servers that are needed.
        found: the real servers in the kernel.
    """
    for real in sorted(found.keys() - wanted):
        if key.protocol is not Protocol.TCP:
            plan.delete.append(DeleteRealServer(key, real))
            continue
        if found[real]:
            plan.quiesce.append(SetRealServer(key, real, 0))
        plan.leaving.setdefault(key, []).append(real)
