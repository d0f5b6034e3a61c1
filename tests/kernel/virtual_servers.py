"""Reading the virtual servers of a node."""

from collections.abc import Callable

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core.kernel_objects import VirtualServer, VirtualServerKey
from svcproxy.netlink.ipvs import IpvsSocket
from testbed.cluster import Node

FAMILIES = {4: IPFamily.IPV4, 6: IPFamily.IPV6}


class Servers:
    """The virtual servers in the kernel of a node."""

    def __init__(self, node: Node, family: int) -> None:
        self._node, self._family = node, FAMILIES[family]

    def ask(self, question: Callable[[IpvsSocket], object]) -> object:
        def answer() -> object:
            ipvs = IpvsSocket(self._family)
            try:
                return question(ipvs)
            finally:
                ipvs.close()

        return self._node.netns.call(answer)

    def at(self, address: str, port: int = 80) -> VirtualServer | None:
        key = VirtualServerKey(Protocol.TCP, address, port)
        found = self.ask(lambda ipvs: ipvs.virtual_servers().get(key))
        assert found is None or isinstance(found, VirtualServer)
        return found

    def weights(self, address: str, port: int = 80) -> dict[str, int]:
        key = VirtualServerKey(Protocol.TCP, address, port)
        found: dict[str, int] = {}

        def look(ipvs: IpvsSocket) -> None:
            found.update((k.address, weight) for k, (weight, _) in ipvs.real_servers(key).items())

        self.ask(look)
        return found
