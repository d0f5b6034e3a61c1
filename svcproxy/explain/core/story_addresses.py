"""Which addresses serve what: frontends, the node's own addresses, and those of IPVS mode."""

from collections.abc import Iterator
from functools import cached_property
from ipaddress import ip_address, ip_network

from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.explain.core.story_types import Situation, differences
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.model.serviceport import Frontend, FrontendKind, ServicePort, Verdict

Hit = tuple[ServicePort, Frontend]
"""A Service port and one of its frontends."""


class Addresses:
    """Looks up the frontends of a node.

    Args:
        situation: the Service ports, the mode and its settings.
    """

    def __init__(self, situation: Situation) -> None:
        self._situation = situation
        self._settings = situation.settings
        self._mode = differences(situation.mode)

    @cached_property
    def _by_address(self) -> dict[str, list[Hit]]:
        found: dict[str, list[Hit]] = {}
        for port in self._situation.ports.values():
            for frontend in port.frontends:
                key = str(ip_address(frontend.address)) if frontend.address else ""
                found.setdefault(key, []).append((port, frontend))
        return found

    def at(self, address: str) -> list[Hit]:
        """Return the frontends at an address; at an empty address, the node ports."""
        return self._by_address.get(address, [])

    def find(self, address: str, number: int, protocol: Protocol) -> Hit | None:
        """Return the frontend that a packet hits; a node port only where it is served."""
        hit = self.at_port(address, number, protocol)
        if hit is None and self.serves_node_ports(address):
            hit = self.at_port("", number, protocol)
        return hit

    def at_port(self, address: str, number: int, protocol: Protocol) -> Hit | None:
        """Return the frontend at an address and port; at an empty address, the node port."""
        wanted = (number, protocol)
        return next(
            (h for h in self.at(address) if (h[1].port, h[0].name.protocol) == wanted), None
        )

    def is_own(self, address: str) -> bool:
        """Whether an address is one of the node's own, without those that IPVS mode assigns."""
        return self._situation.host.is_local(ip_address(address).packed)

    def is_local(self, address: str) -> bool:
        """Whether packets to an address are for the node itself."""
        return self.is_own(address) or self.is_assigned(address)

    def is_assigned(self, address: str) -> bool:
        """Whether IPVS mode assigns an address to the node."""
        settings = self._settings
        if not isinstance(settings, IpvsSettings) or address in settings.facts.addresses:
            return False
        return any(_is_bound(frontend, settings) for _, frontend in self.at(address))

    def serves_node_ports(self, address: str) -> bool:
        """Whether node ports are served at an address, if nothing else is at the same port."""
        settings, number = self._settings, ip_address(address)
        if isinstance(settings, IpvsSettings):
            return address in settings.node_port_addresses()
        if not self.is_own(address):
            return False
        if number.is_loopback and not self.serves_localhost:
            return False
        ranges = settings.node_port_ranges
        return not ranges or any(number in ip_network(cidr) for cidr in ranges)

    @property
    def serves_localhost(self) -> bool:
        """Whether node ports may be served on 127.0.0.0/8; never on ``::1``."""
        settings = self._settings
        is_ipv4 = settings.family is IPFamily.IPV4
        return is_ipv4 and settings.localhost_node_ports and self._mode.serves_localhost

    def is_hairpin(self, address: str) -> bool:
        """Whether traffic of an endpoint to itself is recognised as such."""
        return self._mode.knows_all_hairpins or address in self._here

    @cached_property
    def _here(self) -> frozenset[str]:
        """The addresses of endpoints that are, or may be, on this node."""
        return frozenset(
            endpoint.address
            for port in self._situation.ports.values()
            for endpoint in (*port.cluster_endpoints, *port.local_endpoints)
            if endpoint.is_local or endpoint.node_unknown
        )

    def health_check_ports(self) -> Iterator[tuple[int, ServicePort]]:
        """Yield the health-check node ports with their Service ports."""
        for port in self._situation.ports.values():
            if port.health_check_node_port:
                yield port.health_check_node_port, port


def _is_bound(frontend: Frontend, settings: IpvsSettings) -> bool:
    if frontend.kind is FrontendKind.CLUSTER_IP:
        return True
    if frontend.kind is not FrontendKind.LOAD_BALANCER or frontend.verdict is Verdict.REJECT:
        return False
    return not settings.is_on_link(frontend.address)
