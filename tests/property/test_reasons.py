"""What is said about an endpoint agrees with what is programmed, for random slices."""

from collections.abc import Callable
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.limits import SERVICE_TARGETS
from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import (
    EndpointSlice,
    Node,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from svcproxy.model.serviceport import Endpoint
from svcproxy.state import desired
from svcproxy.state.desired import DesiredState
from svcproxy.state.reasons import EndpointUse, Reason, endpoint_uses

NODE, ZONE = "node1", "a"
WEB = NamespacedName("default", "web")

services = st.builds(
    Service,
    name=st.just(WEB),
    ports=st.just(
        (
            ServicePortSpec("http", Protocol.TCP, 80, 0),
            ServicePortSpec("dns", Protocol.UDP, 53, 0),
        )
    ),
    cluster_ips=st.just(("10.96.0.1",)),
    external_ips=st.sampled_from([(), ("192.0.2.1",)]),
    internal_policy_local=st.booleans(),
    external_policy_local=st.booleans(),
)


@st.composite
def slices(draw: st.DrawFn) -> list[EndpointSlice]:
    """Slices of one Service; all of their endpoints have hints, so that hints count often."""
    zones: list[tuple[str, ...]] = draw(st.sampled_from([[()], [("a",), ("b",), ("b", "c")]]))
    nodes: list[tuple[str, ...]] = draw(st.sampled_from([[()], [()], [(NODE,), ("node2",)]]))
    entry = st.builds(
        SliceEndpoint,
        address=st.integers(1, 8).map(lambda i: f"10.244.0.{i}"),
        ready=st.sampled_from([True, True, False]),
        serving=st.sampled_from([True, True, False]),
        terminating=st.sampled_from([False, False, True]),
        node_name=st.sampled_from(["", NODE, "node2"]),
        zone_hints=st.sampled_from(zones),
        node_hints=st.sampled_from(nodes),
    )
    http = SlicePort("http", Protocol.TCP, 8080)
    ports = [
        (http,),
        (http, SlicePort("dns", Protocol.UDP, 53)),
        (),
        (SlicePort("", Protocol.TCP, 8080),),
    ]
    return [
        EndpointSlice(
            NamespacedName("default", f"web-{number}"),
            WEB,
            IPFamily.IPV4,
            draw(st.sampled_from(ports)),
            tuple(draw(st.lists(entry, max_size=6))),
        )
        for number in range(draw(st.integers(1, 3)))
    ]


def computed(service: Service, found: list[EndpointSlice]) -> DesiredState:
    state = DesiredState(IPFamily.IPV4, NODE)
    state.update_node(Node(NODE, ZONE))
    state.update_service(service)
    for endpoint_slice in found:
        state.update_slice(endpoint_slice)
    state.checkout()
    return state


def endpoint(use: EndpointUse) -> Endpoint:
    return Endpoint(use.address, use.port, use.is_local, not use.node)


@given(services, slices(), st.sampled_from([SERVICE_TARGETS, 12]))
def test_an_entry_is_unused_exactly_if_it_has_a_reason(
    service: Service, found: list[EndpointSlice], limit: int
) -> None:
    with patch.object(desired, "SERVICE_TARGETS", limit):
        state = computed(service, found)
        assert len(state.ports) == 2
        for name, port in state.ports.items():
            uses = endpoint_uses(state, name)
            in_cluster = [endpoint(use) for use in uses if use.in_cluster_list]
            in_local = [endpoint(use) for use in uses if use.in_local_list]
            assert sorted(in_cluster) == list(port.cluster_endpoints)
            assert sorted(in_local) == list(port.local_endpoints)
            for use in uses:
                assert use.used is (use.reason is None), use
                assert not (use.in_cluster_list and use.not_cluster), use
                assert not (use.in_local_list and use.not_local), use
            entries = {entry.address for piece in found for entry in piece.endpoints}
            assert {use.address for use in uses} == entries


ALLOWED: dict[Reason, Callable[[SliceEndpoint], bool]] = {
    Reason.NOT_READY: lambda entry: not entry.ready and not entry.terminating,
    Reason.NOT_SERVING: lambda entry: entry.terminating and not entry.serving,
    Reason.TERMINATING: lambda entry: entry.terminating and entry.serving,
    Reason.OTHER_ZONE: lambda entry: entry.ready and ZONE not in entry.zone_hints,
    Reason.OTHER_NODE_HINT: lambda entry: entry.ready and NODE not in entry.node_hints,
    Reason.OTHER_NODE: lambda entry: entry.node_name != NODE,
    Reason.DUPLICATE: lambda _: True,
    Reason.NO_PORT: lambda _: True,
}


@given(services, slices())
def test_a_reason_agrees_with_the_conditions(service: Service, found: list[EndpointSlice]) -> None:
    state = computed(service, found)
    for name in state.ports:
        for use in endpoint_uses(state, name):
            for excluded in filter(None, (use.not_cluster, use.not_local)):
                assert ALLOWED[excluded.reason](use.entry), use
