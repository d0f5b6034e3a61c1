"""Builds a Service port from a Service, the addresses that it holds and its endpoints."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from svcproxy.model.names import Protocol, ServicePortName
from svcproxy.model.objects import Service
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.state.claims import Address
from svcproxy.state.slices import Candidate
from svcproxy.state.topology import EndpointLists, NodeLocation, categorize

_SET_LOOKUP_SIZE = 8
"""From more load-balancer IPs than this, a set is built: a Service may have thousands."""


class ListsInUse(NamedTuple):
    """Which endpoint lists the frontends of a Service port use."""

    cluster: bool
    local: bool


def lists_in_use(service: Service, kinds: Iterable[FrontendKind]) -> ListsInUse:
    """Return the endpoint lists that a Service port with frontends of some kinds uses.

    External frontends use the cluster list with the Local policy as well: for clients inside the
    cluster (KEP-2086).
    """
    external = any(kind is not FrontendKind.CLUSTER_IP for kind in kinds)
    return ListsInUse(
        cluster=external or not service.internal_policy_local,
        local=service.internal_policy_local or (external and service.external_policy_local),
    )


def service_port(
    key: ServicePortName,
    service: Service,
    addresses: list[tuple[FrontendKind, Address]],
    candidates: Sequence[Candidate],
    *,
    location: NodeLocation,
    source_ranges: tuple[str, ...],
) -> ServicePort:
    """Apply traffic policies, readiness and topology to one Service port.

    Args:
        key: the identity of the port.
        service: the Service.
        addresses: the addresses that the Service holds, each with its role.
        candidates: the endpoints of the port, from all slices.
        location: the name and zone of this node.
        source_ranges: the Service's source ranges of this family.
    """
    used = lists_in_use(service, [kind for kind, _ in addresses])
    lists = categorize(candidates, location, uses_cluster=used.cluster, uses_local=used.local)
    balanced: Collection[str] = service.load_balancer_ips
    if len(balanced) > _SET_LOOKUP_SIZE:
        balanced = frozenset(balanced)
    return ServicePort(
        name=key,
        frontends=tuple(_frontend(kind, a, service, lists, balanced) for kind, a in addresses),
        cluster_endpoints=lists.cluster,
        local_endpoints=lists.local,
        affinity_seconds=service.affinity_seconds,
        # A range of length zero opens the load balancer, as an empty list does.
        source_ranges=() if any(r.endswith("/0") for r in source_ranges) else source_ranges,
        health_check_node_port=service.health_check_node_port,
        local_ready=_local_ready(candidates) if service.health_check_node_port else (),
        serving=_serving(candidates) if key.protocol is not Protocol.TCP else (),
        annotations=service.annotations,
    )


def _local_ready(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    return tuple(sorted({c.address for c in candidates if c.is_local and c.ready}))


def _serving(candidates: Sequence[Candidate]) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(c.address, c.port, c.is_local, c.node_unknown)
        for c in candidates
        if c.ready or c.serving
    )


def _frontend(
    kind: FrontendKind,
    address: Address,
    service: Service,
    lists: EndpointLists,
    balanced: Collection[str],
) -> Frontend:
    internal = kind is FrontendKind.CLUSTER_IP
    local = service.internal_policy_local if internal else service.external_policy_local
    if not lists.anywhere:
        verdict = Verdict.REJECT
    elif local and not lists.local:
        verdict = Verdict.DROP
    else:
        verdict = Verdict.FORWARD
    also_load_balancer = kind is not FrontendKind.LOAD_BALANCER and address.address in balanced
    return Frontend(kind, address.address, address.port, local, verdict, also_load_balancer)
