"""Why a frontend does not forward, and why a Service does not have an address, in words."""

import pytest

from svcproxy.model.names import IPFamily, NamespacedName, Protocol, ServicePortName
from svcproxy.model.objects import (
    EndpointSlice,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from svcproxy.state.desired import DesiredState
from svcproxy.state.verdicts import conflict_text, known_endpoints, refusal

WEB = NamespacedName("default", "web")
HTTP = ServicePortName(*WEB, "http", Protocol.TCP)


def piece(*entries: SliceEndpoint, port: str = "http") -> EndpointSlice:
    ports = (SlicePort(port, Protocol.TCP, 8080),)
    return EndpointSlice(NamespacedName("default", "web-1"), WEB, IPFamily.IPV4, ports, entries)


def refusals(*slices: EndpointSlice, internal: bool = False, external: bool = False) -> list[str]:
    state = DesiredState(IPFamily.IPV4, "node1")
    service = Service(
        WEB,
        (ServicePortSpec("http", Protocol.TCP, 80, 0),),
        ("10.96.0.1",),
        ("192.0.2.1",),
        internal_policy_local=internal,
        external_policy_local=external,
    )
    state.update_service(service)
    for endpoint_slice in slices:
        state.update_slice(endpoint_slice)
    state.checkout()
    known = known_endpoints(state, service)["http", Protocol.TCP]
    return [refusal(frontend, known) for frontend in state.ports[HTTP].frontends]


HERE, THERE = SliceEndpoint("10.0.0.1", node_name="node1"), SliceEndpoint("10.0.0.2")
UNREADY = SliceEndpoint("10.0.0.1", ready=False, serving=False, node_name="node1")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (refusals(piece(HERE)), ["", ""]),
        (refusals(), ["REJECT: no endpoints"] * 2),
        (refusals(piece()), ["REJECT: no endpoints"] * 2),
        (refusals(piece(UNREADY)), ["REJECT: no endpoint is ready"] * 2),
        (refusals(piece(HERE, port="web")), ["REJECT: no EndpointSlice has the port"] * 2),
        (refusals(piece(HERE), internal=True, external=True), ["", ""]),
        (
            refusals(piece(THERE), internal=True, external=True),
            [
                "DROP: no endpoint on this node (internal traffic policy Local)",
                "DROP: no endpoint on this node (external traffic policy Local)",
            ],
        ),
        (
            refusals(piece(THERE, UNREADY), external=True),
            ["", "DROP: no endpoint on this node is ready (external traffic policy Local)"],
        ),
    ],
)
def test_refusals(found: list[str], expected: list[str]) -> None:
    assert found == expected


def claimant(
    name: str, created: float, cluster_ip: str, *external: str, node_port: int = 0
) -> Service:
    return Service(
        NamespacedName("default", name),
        (ServicePortSpec("http", Protocol.TCP, 80, node_port),),
        (cluster_ip,),
        external,
        created=created,
    )


@pytest.mark.parametrize(
    ("winner", "loser", "expected"),
    [
        (
            claimant("b", 1.0, "10.96.0.1", "192.0.2.1"),
            claimant("a", 2.0, "10.96.0.2", "192.0.2.1"),
            "192.0.2.1:80/tcp is served by the older Service default/b",
        ),
        (
            claimant("b", 0.0, "10.96.0.1", "192.0.2.1"),
            claimant("a", 2.0, "10.96.0.2", "192.0.2.1"),
            (
                "192.0.2.1:80/tcp is served by default/b, which has no creation time and so counts as"
                " older"
            ),
        ),
        (
            claimant("a", 2.0, "10.96.0.9", "192.0.2.1", node_port=30080),
            claimant("b", 2.0, "10.96.0.2", node_port=30080),
            (
                "node port 30080/tcp is served by default/a, which is of the same age and precedes it"
                " by name"
            ),
        ),
        (
            claimant("b", 2.0, "10.96.0.1"),
            claimant("a", 1.0, "10.96.0.2", "10.96.0.1"),
            "10.96.0.1:80/tcp is served by default/b, whose cluster IP it is",
        ),
    ],
)
def test_conflicts(winner: Service, loser: Service, expected: str) -> None:
    for services in ((winner, loser), (loser, winner)):
        state = DesiredState(IPFamily.IPV4, "node1")
        for service in services:
            state.update_service(service)
        state.checkout()
        assert [conflict_text(state, c) for c in state.conflicts_of(loser.name)] == [expected]
        assert state.conflicts_of(winner.name) == ()
