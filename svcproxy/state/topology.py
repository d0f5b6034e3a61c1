"""Selects the endpoints that serve: readiness, graceful termination, locality, topology hints."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from svcproxy.model.serviceport import Endpoint
from svcproxy.state.slices import Candidate


class EndpointLists(msgspec.Struct, frozen=True, gc=False):
    """The usable endpoints of a Service port.

    ``cluster`` are those for the Cluster policy, ``local`` those for the Local policy; a list is
    empty if the Service does not use it. ``anywhere`` is true if any node has a usable endpoint: it
    distinguishes REJECT (none) from DROP (none on this node).
    """

    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    anywhere: bool = False


class NodeLocation(msgspec.Struct, frozen=True, gc=False):
    """This node's name and zone, to compare with topology hints."""

    node_name: str
    zone: str = ""


def categorize(
    candidates: Sequence[Candidate], location: NodeLocation, *, uses_cluster: bool, uses_local: bool
) -> EndpointLists:
    """Select the endpoints for both traffic policies.

    The rules are those of kube-proxy 1.36 (``topology.go``). The Cluster policy uses the ready
    endpoints that the hints admit; if none is ready, all that are serving while terminating
    (KEP-1669). The Local policy uses the ready endpoints on this node; if there are none, those on
    this node that are serving while terminating. Both fall back independently.
    """
    ready = [c for c in candidates if c.ready]
    terminating = [c for c in candidates if c.serving and c.terminating]
    cluster: list[Candidate] = []
    local: list[Candidate] = []
    if uses_cluster:
        cluster = apply_hints(ready, location).near or terminating
    if uses_local:
        local = [c for c in ready if c.is_local] or [c for c in terminating if c.is_local]
    anywhere = bool(cluster) or (uses_local and bool(ready or terminating))
    return EndpointLists(_endpoints(cluster), _endpoints(local), anywhere)


class Near(NamedTuple):
    """The ready endpoints that the hints admit; ``followed`` is ``node``, ``zone`` or empty."""

    near: list[Candidate]
    followed: str = ""


def apply_hints(ready: list[Candidate], location: NodeLocation) -> Near:
    """Apply the hints: same node, else same zone, else no restriction (KEP-2433, KEP-3015).

    A kind of hint is followed only if every ready endpoint carries it and at least one names this
    node or zone. Otherwise following it could overload endpoints, or leave some unused.
    """
    if ready and all(c.node_hints for c in ready):
        near = [c for c in ready if location.node_name in c.node_hints]
        if near:
            return Near(near, "node")
    if ready and location.zone and all(c.zone_hints for c in ready):
        near = [c for c in ready if location.zone in c.zone_hints]
        if near:
            return Near(near, "zone")
    return Near(ready)


def _endpoints(chosen: list[Candidate]) -> tuple[Endpoint, ...]:
    return tuple([Endpoint(c.address, c.port, c.is_local, c.node_unknown) for c in chosen])
