"""From one finished Service port to its elements."""

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
"""The word that values begin with where ``tiers`` wants one."""


class EndpointList(msgspec.Struct, frozen=True):
    """Endpoints under one key of a tier's map.

    ``owner`` is what their clients are remembered under, empty if they are not.
    """

    endpoints: tuple[Endpoint, ...]
    owner: bytes = b""


ListKey = tuple[str, bytes]
"""The map that a list stands in, and the key that precedes the endpoints' numbers."""


class Rendered(msgspec.Struct):
    """What one Service port needs of the table.

    Attributes:
        elements: those that belong to it alone, its endpoints aside.
        lists: its endpoints.
        cluster_addresses: its cluster IPs, which its Service's other ports have as well.
        hairpins: the addresses of its endpoints that are on this node, or may be for all that
            their EndpointSlices say. Other Services may have them, too.
            Others' packets to themselves do not come this way.
    """

    elements: ElementsBySet
    lists: dict[ListKey, EndpointList]
    cluster_addresses: list[bytes]
    hairpins: set[str]


NOTHING = Rendered({}, {}, [], set())


def render(port: ServicePort, settings: Settings) -> Rendered:
    """Compute what a Service port needs; it depends on nothing else."""
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

    def finish(self) -> Rendered:
        """What has been collected."""
        port = self.port
        lists = (
            port.local_endpoints if local else port.cluster_endpoints for local in self.used_lists
        )
        hairpins = {e.address for endpoints in lists for e in endpoints if e.is_local or e.unplaced}
        return Rendered(self.elements, self.lists, self.cluster_addresses, hairpins)

    def _put(self, name: str, key: bytes, tail: bytes) -> None:
        self.elements.setdefault(name, {})[key] = tail

    def add(self, frontend: Frontend) -> None:
        """Add one frontend, whatever its kind."""
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
        """With policy Local, pods and the node are led to all endpoints, others to local ones."""
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
        """Lead a frontend to one of the two lists of endpoints."""
        port = self.port
        endpoints = port.local_endpoints if local else port.cluster_endpoints
        if not endpoints:
            return
        self.used_lists.add(local)
        name = _tier_name(Balance(prefix, local), len(endpoints), port.affinity_seconds)
        owner = b""
        if port.affinity_seconds:
            owner = affinity_key(port, self.settings.family)
            valid = table_sets.AFFINITY_ENDPOINTS + (table_sets.LOCAL if local else "")
            for endpoint in endpoints:
                self._put(valid, _endpoint_key(endpoint) + owner + self.protocol, b"")
        self.lists[name, key] = EndpointList(endpoints, owner)

    def _refuse(self, frontend: Frontend, key: bytes) -> None:
        verdict = table_sets.REJECTED if frontend.verdict is Verdict.REJECT else table_sets.DROPPED
        node_port = frontend.kind is FrontendKind.NODE_PORT
        self._put((table_sets.OF_NODE_PORTS if node_port else "") + verdict, key, self.comment)

    def _restrict_sources(self, key: bytes) -> None:
        """Restrict a load-balancer IP to the source ranges, whether or not it has endpoints.

        The address is restricted even if it is an external IP or the cluster IP as well. Both as in kube-proxy's nftables mode: in its others a Service without any endpoint rejects
        everybody alike.
        """
        self._put(table_sets.GUARDED, key, self.comment)
        for name, source in self._sources:
            self._put(name, key + source, b"")

    @cached_property
    def _sources(self) -> list[tuple[str, bytes]]:
        """The set and the address of each source range, computed once for all frontends."""
        networks = [ip_network(cidr, strict=False) for cidr in self.port.source_ranges]
        node = self.settings.node_address
        if node and any(ip_address(node) in network for network in networks):
            # A load-balancer address is often added to the node itself; the node then reaches
            # it with that very address as its source.
            networks += (ip_network(f.address) for f in self.port.frontends if f.is_load_balancer)
        return [(table_sets.source_set(n.prefixlen), n.network_address.packed) for n in networks]


def affinity_key(port: ServicePort, family: IPFamily) -> bytes:
    """The address and port of the frontend that owns a Service port's endpoints.

    It is the cluster IP, or else the first frontend. No two Service ports share a frontend,
    so none have the same owner, and who lists the clients sees an address that means
    something.
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
    if found.owner:
        return element_data(_EMPTY + _endpoint_key(endpoint) + found.owner)
    return element_data(_endpoint_key(endpoint))


def endpoint_elements(
    where: ListKey, found: EndpointList, numbers: Iterable[int]
) -> EncodedElements:
    """The elements of the endpoints with these numbers."""
    _, key = where
    endpoints = found.endpoints
    return {
        key + index_key(number): _encode_endpoint(endpoints[number], found) for number in numbers
    }


def observed_order(
    found: EndpointList, where: ListKey, present: EncodedElements
) -> tuple[Endpoint | None, ...]:
    """The order in which a map holds a list already, ``None`` where it has no endpoint of it."""
    _, key = where
    known = {_encode_endpoint(endpoint, found): endpoint for endpoint in found.endpoints}
    tails = (present.get(key + index_key(number), b"") for number in range(len(found.endpoints)))
    return tuple(map(known.get, tails))


def hairpin_key(address: str) -> bytes:
    """The source and destination of packets that an endpoint was sent to itself."""
    packed = address_key(address)
    return packed + packed
