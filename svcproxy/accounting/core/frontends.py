"""Which frontend a connection belongs to."""

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.addresses import packed, text
from svcproxy.netlink.core.families import PROTOCOL_NUMBERS

_LOOPBACK = {IPFamily.IPV4: ip_network("127.0.0.0/8"), IPFamily.IPV6: ip_network("::1/128")}
_ADDRESSES_KEPT = 4096
"""Destinations of packets to a node port of which is remembered whether they are the node's."""


class FrontendKey(NamedTuple):
    """The identity of a frontend on a node. ``address`` is empty for node ports."""

    family: IPFamily
    address: str
    port: int
    protocol: Protocol


def frontend_keys(
    family: IPFamily, ports: Mapping[ServicePortName, ServicePort]
) -> dict[FrontendKey, ServicePortName]:
    """Return the Service port that each frontend of a family belongs to."""
    return {
        FrontendKey(family, frontend.address, frontend.port, name.protocol): name
        for name, port in ports.items()
        for frontend in port.frontends
    }


class FrontendIndex:
    """Finds the frontend of a connection by its original destination.

    Args:
        keys: the frontends of one family.
        settings: says at which addresses node ports are served.
        is_local: whether the node has a packed address. It is called for destinations whose port is
            a node port, once for each as long as there are few.
    """

    def __init__(
        self, keys: Iterable[FrontendKey], settings: Settings, is_local: Callable[[bytes], bool]
    ) -> None:
        self._settings = settings
        self._ranges = tuple(ip_network(cidr) for cidr in settings.node_port_ranges)
        self._is_local = is_local
        self._served: dict[bytes, bool] = {}
        self._frontends: dict[tuple[int, bytes, int], FrontendKey] = {}
        self._node_ports: dict[tuple[int, int], FrontendKey] = {}
        for key in keys:
            number = PROTOCOL_NUMBERS[key.protocol]
            if key.address:
                self._frontends[number, packed(key.address), key.port] = key
            else:
                self._node_ports[number, key.port] = key

    def find(self, protocol: int, address: bytes, port: int) -> FrontendKey | None:
        """Return the frontend with a destination; ``None`` if it is not that of a Service.

        Args:
            protocol: the protocol number.
            address: the packed address.
            port: the port.
        """
        found = self._frontends.get((protocol, address, port))
        if found is not None:
            return found
        found = self._node_ports.get((protocol, port))
        return found if found is not None and self._serves_node_ports(address) else None

    def _serves_node_ports(self, address: bytes) -> bool:
        known = self._served.get(address)
        if known is None:
            if len(self._served) >= _ADDRESSES_KEPT:
                self._served.clear()
            known = self._served[address] = self._in_ranges(address) and self._is_local(address)
        return known

    def _in_ranges(self, address: bytes) -> bool:
        shown = ip_address(text(address))
        settings = self._settings
        if shown in _LOOPBACK[settings.family] and not (
            settings.family is IPFamily.IPV4 and settings.localhost_node_ports
        ):
            return False
        return not self._ranges or any(shown in network for network in self._ranges)
