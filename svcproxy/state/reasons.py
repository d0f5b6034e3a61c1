"""Why an endpoint of a Service port is used on this node, and why the others are not.

What is used comes from the Service port that was programmed. Why an entry of an EndpointSlice is
not used follows from the functions that computed the port: ``merge``, ``apply_hints`` and
``lists_in_use``. A property test requires that an entry is unused exactly if it has a reason.
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from ipaddress import ip_address
from typing import NamedTuple

import msgspec

from svcproxy.model.names import NamespacedName, Protocol, ServicePortName
from svcproxy.model.objects import EndpointSlice, Service, SliceEndpoint
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import DesiredState, max_endpoints
from svcproxy.state.port_builder import ListsInUse, lists_in_use
from svcproxy.state.slices import Candidate, merge
from svcproxy.state.topology import apply_hints


class Reason(Enum):
    """Why an endpoint is not used."""

    NOT_READY = "not ready"
    NOT_SERVING = "terminating and not serving"
    TERMINATING = "terminating while others serve"
    OTHER_ZONE = "hinted to another zone"
    OTHER_NODE_HINT = "hinted to another node"
    OTHER_NODE = "on another node"
    DUPLICATE = "duplicate"
    LIMIT = "exceeds the limit"
    NO_PORT = "no such port"


_LOCAL = ", and the policy is Local"
_WITH_DETAIL = {
    Reason.OTHER_ZONE: "hinted to zone {}",
    Reason.OTHER_NODE_HINT: "hinted to node {}",
    Reason.OTHER_NODE: f"on node {{}}{_LOCAL}",
    Reason.DUPLICATE: "duplicate of an entry in slice {}",
    Reason.LIMIT: "exceeds the limit of {} endpoints for each port of the Service",
    Reason.NO_PORT: "its slice {}",
}


class Exclusion(msgspec.Struct, frozen=True, gc=False):
    """Why an endpoint is not in a list; ``detail`` names the zone, node, slice or limit, if known."""

    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        if not self.detail:
            unknown = self.reason is Reason.OTHER_NODE
            return f"on an unknown node{_LOCAL}" if unknown else self.reason.value
        return _WITH_DETAIL.get(self.reason, "{}").format(self.detail)


class EndpointUse(msgspec.Struct, frozen=True):
    """How an entry of an EndpointSlice is used for a Service port.

    Attributes:
        port: the target port; 0 if the slice does not have the Service port.
        slice: the name of the slice.
        entry: the entry, with its node, conditions and hints.
        is_local: whether the endpoint is on this node.
        in_cluster_list: whether it is one of the endpoints for the Cluster policy.
        in_local_list: whether it is one of the endpoints for the Local policy.
        not_cluster: why it is not one for the Cluster policy; ``None`` if it is, or if the Service
            port does not use that list.
        not_local: the same for the Local policy.
    """

    port: int
    slice: NamespacedName
    entry: SliceEndpoint
    is_local: bool
    in_cluster_list: bool = False
    in_local_list: bool = False
    not_cluster: Exclusion | None = None
    not_local: Exclusion | None = None

    @property
    def address(self) -> str:
        """The IP address of the endpoint."""
        return self.entry.address

    @property
    def node(self) -> str:
        """The node of the endpoint; empty if its slice names none."""
        return self.entry.node_name

    @property
    def used(self) -> bool:
        """Whether packets of any frontend may be forwarded to it."""
        return self.in_cluster_list or self.in_local_list

    @property
    def exclusion(self) -> Exclusion | None:
        """Why it is not used at all; ``None`` if it is used."""
        return None if self.used else self.not_cluster or self.not_local

    @property
    def reason(self) -> Reason | None:
        """The reason of ``exclusion``."""
        return self.exclusion.reason if self.exclusion else None

    @property
    def detail(self) -> str:
        """The detail of ``exclusion``."""
        return self.exclusion.detail if self.exclusion else ""


def endpoint_uses(state: DesiredState, name: ServicePortName) -> tuple[EndpointUse, ...]:
    """Return all endpoints of the slices of a Service port, sorted by address and port.

    An entry of a slice without the port is left out if another slice has its address with the port.

    Args:
        state: the desired state, checked out.
        name: the Service port; the result is empty if there is no such port.
    """
    port, service = state.ports.get(name), state.services.get(name.service)
    if port is None or service is None:
        return ()
    uses = list(_Explanation(state, service, port).uses())
    known = {use.address for use in uses}
    lists = lists_in_use(service, [frontend.kind for frontend in port.frontends])
    others = _without_port(state.slices_of(name.service), name, lists, state.location.node_name)
    uses.extend(use for use in others if use.address not in known)
    return tuple(sorted(uses, key=lambda use: (int(ip_address(use.address)), use.port, use.slice)))


class _Row(NamedTuple):
    """An entry of a slice with a target port."""

    slice: NamespacedName
    entry: SliceEndpoint
    candidate: Candidate

    @property
    def target(self) -> tuple[str, int]:
        return self.candidate.address, self.candidate.port


class _Explanation:
    """Explains the entries of the slices that have a Service port."""

    def __init__(self, state: DesiredState, service: Service, port: ServicePort) -> None:
        name = port.name
        self._location = state.location
        self._limit = max_endpoints(service)
        self._lists = lists_in_use(service, [f.kind for f in port.frontends])
        self._cluster = {(e.address, e.port) for e in port.cluster_endpoints}
        self._local = {(e.address, e.port) for e in port.local_endpoints}
        candidates = state.merged(service).by_port.get((name.port, name.protocol), [])
        self._followed = apply_hints([c for c in candidates if c.ready], self._location).followed
        self._rows = list(_rows(state.slices_of(service.name), name, self._location.node_name))
        taken = {(c.address, c.port): c for c in candidates}
        self._winners: dict[tuple[str, int], _Row] = {}
        for row in self._rows:
            # Of entries that are equal in all that counts, the first one was taken.
            if taken.get(row.target) == row.candidate:
                self._winners.setdefault(row.target, row)

    def uses(self) -> Iterator[EndpointUse]:
        """Yield how each entry is used."""
        for row in self._rows:
            winner = self._winners.get(row.target)
            if winner is row:
                yield self._use(row)
            else:
                excluded = (
                    Exclusion(Reason.DUPLICATE, str(winner.slice))
                    if winner
                    else Exclusion(Reason.LIMIT, str(self._limit))
                )
                yield self._unused(row, excluded)

    def _unused(self, row: _Row, excluded: Exclusion) -> EndpointUse:
        return EndpointUse(
            row.candidate.port,
            row.slice,
            row.entry,
            row.candidate.is_local,
            not_cluster=excluded if self._lists.cluster else None,
            not_local=excluded if self._lists.local else None,
        )

    def _use(self, row: _Row) -> EndpointUse:
        in_cluster, in_local = row.target in self._cluster, row.target in self._local
        cluster = self._lists.cluster and not in_cluster
        local = self._lists.local and not in_local
        return EndpointUse(
            row.candidate.port,
            row.slice,
            row.entry,
            row.candidate.is_local,
            in_cluster,
            in_local,
            self._not_cluster(row.candidate) if cluster else None,
            self._not_local(row) if local else None,
        )

    def _not_cluster(self, candidate: Candidate) -> Exclusion:
        if not candidate.ready:
            return _unready(candidate)
        here = self._location
        if self._followed == "node":
            hinted = _hinted(candidate.node_hints, here.node_name)
            return Exclusion(Reason.OTHER_NODE_HINT, hinted)
        return Exclusion(Reason.OTHER_ZONE, _hinted(candidate.zone_hints, f"zone {here.zone}"))

    def _not_local(self, row: _Row) -> Exclusion:
        if not row.candidate.is_local:
            return Exclusion(Reason.OTHER_NODE, row.entry.node_name)
        return _unready(row.candidate)


def _unready(candidate: Candidate) -> Exclusion:
    if not candidate.terminating:
        return Exclusion(Reason.NOT_READY)
    return Exclusion(Reason.TERMINATING if candidate.serving else Reason.NOT_SERVING)


def _hinted(hints: Sequence[str], here: str) -> str:
    return f"{' or '.join(hints)}, this is {here}"


def _rows(slices: Sequence[EndpointSlice], name: ServicePortName, node_name: str) -> Iterator[_Row]:
    """Yield the entries of slices that have the Service port, in the order of merging."""
    for found in slices:
        for port in found.ports:
            if (port.name, port.protocol) != (name.port, name.protocol):
                continue
            for entry in found.endpoints:
                candidates: dict[tuple[str, int], Candidate] = {}
                merge(candidates, (entry,), port.port, node_name)
                yield from (_Row(found.name, entry, c) for c in candidates.values())


def _without_port(
    slices: Sequence[EndpointSlice], name: ServicePortName, lists: ListsInUse, node_name: str
) -> Iterator[EndpointUse]:
    """Yield the entries of the slices that do not have the Service port."""
    for found in slices:
        if any((port.name, port.protocol) == (name.port, name.protocol) for port in found.ports):
            continue
        has = ", ".join(_port_text(port.name, port.protocol) for port in found.ports)
        wanted = _port_text(name.port, name.protocol)
        why = Exclusion(Reason.NO_PORT, f"has no {wanted}, but {has}" if has else "has no ports")
        for entry in found.endpoints:
            yield EndpointUse(
                0,
                found.name,
                entry,
                entry.node_name == node_name != "",
                not_cluster=why if lists.cluster else None,
                not_local=why if lists.local else None,
            )


def _port_text(name: str, protocol: Protocol) -> str:
    return f"{protocol} port {name!r}" if name else f"unnamed {protocol} port"
