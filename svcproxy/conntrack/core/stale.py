"""Which tracked flows lead to where their frontend no longer leads: pure decisions.

The kernel translates the first packet of a flow by the rules and all others by its connection
tracking entry. A UDP flow has no end: a client that keeps its source port stays with its
endpoint for as long as it sends, whatever became of the endpoint. So an entry is deleted when
a new flow would not get what it gets. TCP needs none of this: connections are closed by their
ends, and those that are established may finish.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import NamedTuple

from svcproxy.model.names import Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes

PROTOCOLS = {Protocol.UDP: 17, Protocol.SCTP: 132}
"""The protocols whose flows are deleted, by their numbers in IP headers."""

MAX_QUERIES = 16
"""With more filtered dumps than this, one dump of everything is cheaper (figures: ADR 4)."""


class Target(NamedTuple):
    """Where a flow leads: a packed address (4 or 16 bytes) and a port."""

    address: bytes
    port: int


class Key(NamedTuple):
    """A frontend: protocol number, packed address (empty for a node port) and port.

    As a query for flows, an empty address and a port of 0 stand for any.
    """

    protocol: int
    address: bytes
    port: int


class Flow(NamedTuple):
    """One connection tracking entry.

    ``address`` and ``port`` are the original destination; ``source`` is the source of the
    replies: the endpoint, or the original destination itself if nothing was translated.
    ``handle`` is what the kernel needs to find the entry again.
    """

    protocol: int
    address: bytes
    port: int
    source: Target
    handle: bytes


Targets = frozenset[Target]
_NOTHING: Targets = frozenset()


class Frontends:
    """What a new flow gets at each UDP and SCTP frontend of one family.

    It remembers all of them, not just those of a change: a flow to port 30053 of one Service's
    ClusterIP must not be mistaken for one to another Service's node port 30053.
    """

    def __init__(self) -> None:
        self._targets: dict[Key, Targets] = {}

    def replace(self, ports: Mapping[ServicePortName, ServicePort]) -> set[Key]:
        """Take ``ports`` for everything there is; return all frontends, old and new."""
        before = self._targets.keys()
        self._targets = dict(_frontends(ports.values()))
        return {*before, *self._targets}

    def update(self, changes: Changes) -> set[Key]:
        """Take in a change; return the frontends that may have stale flows because of it.

        All that is left goes before what is new comes, so that a frontend may pass from one
        Service to another in a single change.
        """
        names = [name for name in changes.ports if name.protocol in PROTOCOLS]
        before = dict(_frontends(changes.previous.get(name) for name in names))
        after = dict(_frontends(changes.ports[name] for name in names))
        for key in before.keys() - after.keys():
            self._targets.pop(key, None)
        self._targets.update(after)
        return {
            key
            for key in before.keys() | after.keys()
            if _may_leave_flows(before.get(key), after.get(key))
        }

    def is_stale(
        self, flow: Flow, suspects: Collection[Key], is_local: Callable[[bytes], bool]
    ) -> bool:
        """Whether a flow belongs to one of the ``suspects`` and leads to the wrong place.

        As in the kernel's rules, an address with a port goes before a node port, and a node
        port is served on the node's own addresses only: ``is_local`` tells them. Without that
        question any flow through this node to the same port of a foreign host would be taken
        for a node port's.
        """
        exact = Key(flow.protocol, flow.address, flow.port)
        node_port = Key(flow.protocol, b"", flow.port)
        if exact in self._targets:
            return exact in suspects and self._misled(exact, flow)
        if exact in suspects:
            # It was a frontend; what is there now is a node port or nothing.
            served = node_port in self._targets and is_local(flow.address)
            return self._misled(node_port if served else exact, flow)
        return node_port in suspects and self._misled(node_port, flow) and is_local(flow.address)

    def _misled(self, key: Key, flow: Flow) -> bool:
        """Whether a new flow at the frontend would not lead to where this one leads.

        With endpoints, that includes flows that were never translated: they began while there
        were no rules. Without endpoints a new flow would not be translated, so an untranslated
        one is right: it may be a conversation with a program on that port, or with the machine
        that has the address now.
        """
        targets = self._targets.get(key, _NOTHING)
        if targets:
            return flow.source not in targets
        return flow.source != (flow.address, flow.port)


def queries(suspects: Iterable[Key], *, by_address: bool) -> list[Key]:
    """What to ask the kernel for, to see every flow of the ``suspects``.

    Each query costs a walk through the whole table inside the kernel, and each hit is decoded
    here; beyond ``MAX_QUERIES`` walks, one for each protocol is cheaper. Without
    ``by_address`` only ports are asked for.
    """
    asked = {key if by_address else Key(key.protocol, b"", key.port) for key in suspects}
    ports = {(key.protocol, key.port) for key in asked if not key.address}
    asked = {k for k in asked if not k.address or (k.protocol, k.port) not in ports}
    if len(asked) > MAX_QUERIES:
        asked = {Key(key.protocol, b"", 0) for key in asked}
    return sorted(asked)


def _frontends(ports: Iterable[ServicePort | None]) -> Iterator[tuple[Key, Targets]]:
    for port in ports:
        number = PROTOCOLS.get(port.name.protocol) if port is not None else None
        if port is None or number is None:
            continue
        targets = _targets(port)
        for frontend in port.frontends:
            yield Key(number, _packed(frontend.address), frontend.port), targets


def _targets(port: ServicePort) -> Targets:
    """The endpoints that flows may lead to, whatever the frontend's own traffic policy.

    A change of policy, of topology or of readiness elsewhere is no reason to cut a flow to an
    endpoint that can still answer, as kube-proxy has it (``pkg/proxy/conntrack/cleanup.go``).
    Unlike there the port counts too: a new target port makes old flows stale.
    """
    return frozenset(Target(_packed(e.address), e.port) for e in port.serving)


def _may_leave_flows(before: Targets | None, after: Targets | None) -> bool:
    """Whether flows of the time before can be wrong now.

    An additional endpoint misleads nobody, unless it is the first: then flows may have begun
    without translation, as before a frontend existed at all (``before`` is ``None``).
    """
    if before is None or after is None:
        return True
    return bool(before - after) or bool(after and not before)


def _packed(address: str) -> bytes:
    return ip_address(address).packed if address else b""
