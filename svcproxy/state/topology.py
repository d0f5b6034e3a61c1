"""Which endpoints serve: readiness, graceful termination, locality and topology hints."""

from collections.abc import Sequence

import msgspec

from svcproxy.model.serviceport import Endpoint
from svcproxy.state.slices import Candidate


class EndpointLists(msgspec.Struct, frozen=True, gc=False):
    """The outcome of categorising a Service port's endpoints.

    ``cluster`` serves Cluster policy, ``local`` serves Local policy; either is empty when the
    Service has no use for it. ``anywhere`` tells whether the Service has a usable endpoint on
    any node: it separates REJECT (none) from DROP (none here).
    """

    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    anywhere: bool = False


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where this node stands, as topology hints see it."""

    node_name: str
    zone: str = ""


def categorize(
    candidates: Sequence[Candidate], place: Place, *, uses_cluster: bool, uses_local: bool
) -> EndpointLists:
    """Split candidates into the lists that the two traffic policies use.

    The rules are those of kube-proxy 1.36 (``topology.go``): Cluster policy takes the ready
    endpoints that topology admits, or, when there are none, all that are serving while
    terminating (KEP-1669); Local policy takes the ready ones on this node, or else the local
    ones that are serving while terminating. Both fall back independently.
    """
    ready = [c for c in candidates if c.ready]
    leaving = [c for c in candidates if c.serving and c.terminating]
    cluster: list[Candidate] = []
    local: list[Candidate] = []
    if uses_cluster:
        cluster = _near(ready, place) or leaving
    if uses_local:
        local = [c for c in ready if c.is_local] or [c for c in leaving if c.is_local]
    anywhere = bool(cluster) or (uses_local and bool(ready or leaving))
    return EndpointLists(_finished(cluster), _finished(local), anywhere)


def _near(ready: list[Candidate], place: Place) -> list[Candidate]:
    """Apply the hints: same node, else same zone, else everywhere (KEP-2433, KEP-3015).

    A kind of hint counts only if every ready endpoint carries it and at least one names us;
    otherwise following it could overload or miss endpoints.
    """
    if ready and all(c.node_hints for c in ready):
        near = [c for c in ready if place.node_name in c.node_hints]
        if near:
            return near
    if ready and place.zone and all(c.zone_hints for c in ready):
        near = [c for c in ready if place.zone in c.zone_hints]
        if near:
            return near
    return ready


def _finished(chosen: list[Candidate]) -> tuple[Endpoint, ...]:
    return tuple([Endpoint(c.address, c.port, c.is_local, c.unplaced) for c in chosen])
