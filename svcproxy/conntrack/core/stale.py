"""Decides which connection tracking entries are stale.

The kernel translates the first packet of a flow by the rules and all later ones by the flow's
connection tracking entry. A UDP flow never ends: a client that keeps its source port stays with its
endpoint while it sends, even if the endpoint is gone. An entry is stale, and deleted, when a new
flow would be translated differently. TCP flows are kept: the peers close connections, and
established ones may finish.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import ip_address

from svcproxy.model.names import Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.conntrack import AddressPort, Destination, Flow
from svcproxy.state.desired import Changes

PROTOCOLS = {Protocol.UDP: 17, Protocol.SCTP: 132}
"""The protocols whose flows are deleted, and their numbers in IP headers."""

MAX_QUERIES = 16
"""Beyond this number of filtered dumps, one dump of the whole table is cheaper (ADR 4)."""


Endpoints = frozenset[AddressPort]
_NO_ENDPOINTS: Endpoints = frozenset()


class FrontendEndpoints:
    """The endpoints of every UDP and SCTP frontend of one family.

    All frontends are kept, not only those of a change: a flow to port 30053 of one Service's
    ClusterIP must not be mistaken for a flow to another Service's node port 30053.
    """

    def __init__(self) -> None:
        self._endpoints: dict[Destination, Endpoints] = {}

    def replace(self, ports: Mapping[ServicePortName, ServicePort]) -> set[Destination]:
        """Set the frontends to those of ``ports``; return all frontends, old and new."""
        before = self._endpoints.keys()
        self._endpoints = dict(_frontends(ports.values()))
        return {*before, *self._endpoints}

    def update(self, changes: Changes) -> set[Destination]:
        """Apply a change; return the frontends that may have stale flows because of it.

        Removed frontends are deleted before new ones are added, so that a frontend may move from
        one Service to another in a single change.
        """
        names = [name for name in changes.ports if name.protocol in PROTOCOLS]
        before = dict(_frontends(changes.previous.get(name) for name in names))
        after = dict(_frontends(changes.ports[name] for name in names))
        for key in before.keys() - after.keys():
            self._endpoints.pop(key, None)
        self._endpoints.update(after)
        return {
            key
            for key in before.keys() | after.keys()
            if _may_leave_flows(before.get(key), after.get(key))
        }

    def is_stale(
        self, flow: Flow, suspects: Collection[Destination], is_local: Callable[[bytes], bool]
    ) -> bool:
        """Return whether a flow belongs to one of the ``suspects`` and is translated wrongly.

        As in the kernel's rules, a frontend with an address takes precedence over a node port, and
        a node port is served on the node's own addresses only. Without the check for these, a flow
        through this node to the same port of another host would be mistaken for a node port's.

        Args:
            flow: the flow.
            suspects: the frontends that may have stale flows.
            is_local: returns whether the node has a packed address.
        """
        exact = Destination(flow.protocol, flow.address, flow.port)
        node_port = Destination(flow.protocol, b"", flow.port)
        if exact in self._endpoints:
            return exact in suspects and self._is_misdirected(exact, flow)
        if exact in suspects:
            # The frontend was removed: the address may now be served by a node port.
            served = node_port in self._endpoints and is_local(flow.address)
            return self._is_misdirected(node_port if served else exact, flow)
        return (
            node_port in suspects
            and self._is_misdirected(node_port, flow)
            and is_local(flow.address)
        )

    def _is_misdirected(self, key: Destination, flow: Flow) -> bool:
        """Return whether a new flow to the frontend would be translated differently.

        If the frontend has endpoints, this includes untranslated flows: they began before there
        were rules. If it has none, a new flow would not be translated, so untranslated flows are
        right: a program on the node may use the port, or another host may have the address now.
        """
        endpoints = self._endpoints.get(key, _NO_ENDPOINTS)
        if endpoints:
            return flow.source not in endpoints
        return flow.source != (flow.address, flow.port)


def queries(suspects: Iterable[Destination], *, by_address: bool) -> list[Destination]:
    """Return the queries that together find every flow of the ``suspects``.

    For each query the kernel walks its whole table, and svcproxy decodes each hit. Beyond
    ``MAX_QUERIES`` walks, one query per protocol is cheaper.

    Args:
        suspects: the frontends that may have stale flows.
        by_address: query addresses too, not only ports.
    """
    found = {key if by_address else Destination(key.protocol, b"", key.port) for key in suspects}
    ports = {(key.protocol, key.port) for key in found if not key.address}
    found = {k for k in found if not k.address or (k.protocol, k.port) not in ports}
    if len(found) > MAX_QUERIES:
        found = {Destination(key.protocol, b"", 0) for key in found}
    return sorted(found)


def _frontends(ports: Iterable[ServicePort | None]) -> Iterator[tuple[Destination, Endpoints]]:
    for port in ports:
        number = PROTOCOLS.get(port.name.protocol) if port is not None else None
        if port is None or number is None:
            continue
        endpoints = _endpoints(port)
        for frontend in port.frontends:
            yield Destination(number, _packed(frontend.address), frontend.port), endpoints


def _endpoints(port: ServicePort) -> Endpoints:
    """Return the endpoints that flows may keep using, regardless of traffic policy.

    A change of policy or topology, or of another endpoint's readiness, does not make a flow to an
    endpoint stale that can still answer, as in kube-proxy (``pkg/proxy/conntrack/cleanup.go``).
    Unlike in kube-proxy, a new target port makes old flows stale.
    """
    return frozenset(AddressPort(_packed(e.address), e.port) for e in port.serving)


def _may_leave_flows(before: Endpoints | None, after: Endpoints | None) -> bool:
    """Return whether a change of a frontend's endpoints can leave stale flows.

    An additional endpoint leaves none unless it is the first: untranslated flows may have begun
    before it. The same holds for a new frontend (``before`` is ``None``).
    """
    if before is None or after is None:
        return True
    return bool(before - after) or bool(after and not before)


def _packed(address: str) -> bytes:
    return ip_address(address).packed if address else b""
