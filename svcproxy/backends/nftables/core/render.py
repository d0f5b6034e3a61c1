"""Renders one finished Service port as elements of the table's sets and maps."""

from collections.abc import Iterable
from functools import cached_property, lru_cache
from ipaddress import ip_address, ip_network

import msgspec

from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.table_sets import Balance, Tier
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.netlink.core.nf_tables.datatypes import (
    address_key,
    index_key,
    port_key,
    protocol_key,
)
from svcproxy.netlink.core.nf_tables.ruleset import (
    ElementsBySet,
    EncodedElements,
    element_comment,
    element_data,
)

_ANY = {family: bytes(family.bits // 8) for family in IPFamily}
_EMPTY = bytes(4)
"""The word that values of affinity tiers begin with, see ``tier_chains``."""


class EndpointList(msgspec.Struct, frozen=True):
    """The endpoints of one frontend, in the order in which they are numbered in a tier's map.

    Attributes:
        endpoints: the endpoints.
        affinity_key: the key under which their clients are remembered; empty without affinity.
    """

    endpoints: tuple[Endpoint, ...]
    affinity_key: bytes = b""


ListKey = tuple[str, bytes]
"""The map that contains a list, and the part of its keys before the endpoints' numbers."""


class PortElements(msgspec.Struct):
    """The elements that one Service port needs.

    Attributes:
        elements: the elements that belong to this port alone, except for its endpoints.
        lists: its endpoints.
        cluster_addresses: its cluster IPs, shared with the other ports of its Service.
        hairpins: the addresses of its endpoints that are on this node, or whose EndpointSlice
            names no node. Hairpins on other nodes never traverse this one. Other Services may
            have the same endpoints.
    """

    elements: ElementsBySet
    lists: dict[ListKey, EndpointList]
    cluster_addresses: list[bytes]
    hairpins: set[str]


NO_ELEMENTS = PortElements({}, {}, [], set())


def render(port: ServicePort, settings: Settings) -> PortElements:
    """Return the elements that a Service port needs; they depend on the arguments alone."""
    renderer = _Renderer(port, settings)
    for frontend in port.frontends:
        renderer.add(frontend)
    return renderer.finish()


class _Renderer:
    """Collects the elements of one Service port."""

    def __init__(self, port: ServicePort, settings: Settings) -> None:
        self.port = port
        self.settings = settings
        self.protocol = protocol_key(port.name.protocol)
        self.comment = element_comment(str(port.name))
        self.elements: ElementsBySet = {}
        self.lists: dict[ListKey, EndpointList] = {}
        self.cluster_addresses: list[bytes] = []
        self.used_lists: set[bool] = set()

    def finish(self) -> PortElements:
        """Return the elements of all frontends that were added."""
        port = self.port
        lists = (
            port.local_endpoints if local else port.cluster_endpoints for local in self.used_lists
        )
        hairpins = {
            e.address for endpoints in lists for e in endpoints if e.is_local or e.node_unknown
        }
        return PortElements(self.elements, self.lists, self.cluster_addresses, hairpins)

    def _put(self, name: str, key: bytes, encoded: bytes) -> None:
        self.elements.setdefault(name, {})[key] = encoded

    def add(self, frontend: Frontend) -> None:
        """Add one frontend of any kind."""
        key = self.protocol + port_key(frontend.port)
        if frontend.kind is FrontendKind.NODE_PORT:
            self._external(frontend, table_sets.NODE_PORTS, key)
            return
        address = address_key(frontend.address)
        key = address + key
        if frontend.is_load_balancer and self.port.source_ranges:
            self._restrict_sources(key)
        if frontend.kind is FrontendKind.CLUSTER_IP:
            self.cluster_addresses.append(address)
            if frontend.verdict is Verdict.FORWARD:
                self._put(table_sets.CLUSTER_IPS + _policy(frontend), key, self.comment)
                self._forward(table_sets.ADDRESSES, key, local=frontend.local)
            else:
                self._refuse(frontend, key)
            return
        self._external(frontend, table_sets.EXTERNAL_IPS, key)

    def _external(self, frontend: Frontend, kind: str, key: bytes) -> None:
        """Add an external frontend.

        With policy Local, other clients reach the local endpoints; pods and the node itself reach
        all endpoints.
        """
        if frontend.verdict is not Verdict.FORWARD:
            self._refuse(frontend, key)
        if frontend.verdict is Verdict.REJECT:
            return
        self._put(kind + _policy(frontend), key, self.comment)
        prefix = table_sets.OF_NODE_PORTS if kind == table_sets.NODE_PORTS else table_sets.ADDRESSES
        self._forward(prefix, key, local=False)
        if frontend.local and frontend.verdict is Verdict.FORWARD:
            self._forward(prefix, key, local=True)

    def _forward(self, prefix: str, key: bytes, *, local: bool) -> None:
        """Connect a frontend to the list of all endpoints, or to that of local ones."""
        port = self.port
        endpoints = port.local_endpoints if local else port.cluster_endpoints
        if not endpoints:
            return
        self.used_lists.add(local)
        name = _tier_name(Balance(prefix, local), len(endpoints), port.affinity_seconds)
        affinity = b""
        if port.affinity_seconds:
            affinity = affinity_key(port, self.settings.family)
            valid = table_sets.AFFINITY_ENDPOINTS + (table_sets.LOCAL if local else "")
            for endpoint in endpoints:
                self._put(valid, _endpoint_key(endpoint) + affinity + self.protocol, b"")
        self.lists[name, key] = EndpointList(endpoints, affinity)

    def _refuse(self, frontend: Frontend, key: bytes) -> None:
        verdict = table_sets.REJECTED if frontend.verdict is Verdict.REJECT else table_sets.DROPPED
        node_port = frontend.kind is FrontendKind.NODE_PORT
        self._put((table_sets.OF_NODE_PORTS if node_port else "") + verdict, key, self.comment)

    def _restrict_sources(self, key: bytes) -> None:
        """Restrict a load-balancer IP to the source ranges of the Service.

        As in kube-proxy's nftables mode, the restriction applies even if the address is also an
        external IP or the cluster IP, and even without endpoints. In kube-proxy's other modes a
        Service without endpoints rejects all clients.
        """
        self._put(table_sets.GUARDED, key, self.comment)
        for name, source in self._sources:
            self._put(name, key + source, b"")

    @cached_property
    def _sources(self) -> list[tuple[str, bytes]]:
        """The set and the network address of each source range, computed once per Service port."""
        networks = [ip_network(cidr, strict=False) for cidr in self.port.source_ranges]
        node = self.settings.node_address
        if node and any(ip_address(node) in network for network in networks):
            # If a load-balancer IP is also assigned to the node, the node's own packets to it have
            # the same address as their source.
            networks += (ip_network(f.address) for f in self.port.frontends if f.is_load_balancer)
        return [(table_sets.source_set(n.prefixlen), n.network_address.packed) for n in networks]


def affinity_key(port: ServicePort, family: IPFamily) -> bytes:
    """Return the key under which the clients of a Service port are remembered.

    It consists of address and port of the cluster IP, or of the first frontend if there is no
    cluster IP. No two Service ports share a frontend, so the key is unique; and it is meaningful to
    people who list the map.
    """
    frontends = port.frontends
    first = next((f for f in frontends if f.kind is FrontendKind.CLUSTER_IP), frontends[0])
    address = address_key(first.address) if first.address else _ANY[family]
    return address + port_key(first.port)


def _policy(frontend: Frontend) -> str:
    return table_sets.LOCAL if frontend.local else ""


@lru_cache(maxsize=4096)
def _tier_name(balance: Balance, count: int, seconds: int) -> str:
    return str(Tier(balance, count, seconds))


def _endpoint_key(endpoint: Endpoint) -> bytes:
    return address_key(endpoint.address) + port_key(endpoint.port)


def _encode_endpoint(endpoint: Endpoint, found: EndpointList) -> bytes:
    if found.affinity_key:
        return element_data(_EMPTY + _endpoint_key(endpoint) + found.affinity_key)
    return element_data(_endpoint_key(endpoint))


def endpoint_elements(
    where: ListKey, found: EndpointList, numbers: Iterable[int]
) -> EncodedElements:
    """Return the elements of the endpoints with the given numbers."""
    _, key = where
    endpoints = found.endpoints
    return {
        key + index_key(number): _encode_endpoint(endpoints[number], found) for number in numbers
    }


def observed_order(
    found: EndpointList, where: ListKey, present: EncodedElements
) -> tuple[Endpoint | None, ...]:
    """Return the endpoints of a list in the order that the kernel's map has.

    Args:
        found: the list.
        where: the map that contains it, and its key.
        present: the elements of that map in the kernel.

    Returns:
        The endpoint at each number; ``None`` where the map has no endpoint of the list.
    """
    _, key = where
    known = {_encode_endpoint(endpoint, found): endpoint for endpoint in found.endpoints}
    encoded = (present.get(key + index_key(number), b"") for number in range(len(found.endpoints)))
    return tuple(map(known.get, encoded))


def hairpin_key(address: str) -> bytes:
    """Return the key of hairpin packets: an endpoint's address as source and destination."""
    packed = address_key(address)
    return packed + packed
