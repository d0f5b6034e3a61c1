"""The number of targets of a Service is bounded, across all of its slices."""

from itertools import permutations

import pytest

from svcproxy.limits import SERVICE_TARGETS
from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import (
    EndpointSlice,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from svcproxy.state import desired
from svcproxy.state.desired import DesiredState

WEB = NamespacedName("default", "web")


def service(ports: int = 1, addresses: int = 1) -> Service:
    return Service(
        WEB,
        tuple(ServicePortSpec(f"p{n}", Protocol.TCP, 80 + n, 0) for n in range(ports)),
        ("10.96.0.1",),
        external_ips=tuple(f"192.0.2.{n}" for n in range(1, addresses)),
    )


def piece(number: int, endpoints: int, ports: int = 1) -> EndpointSlice:
    return EndpointSlice(
        NamespacedName("default", f"web-{number}"),
        WEB,
        IPFamily.IPV4,
        tuple(SlicePort(f"p{n}", Protocol.TCP, 8080 + n) for n in range(ports)),
        tuple(SliceEndpoint(f"10.{number}.{n >> 8}.{n & 255}") for n in range(endpoints)),
    )


def targets(state: DesiredState) -> int:
    return sum(len(p.frontends) * len(p.cluster_endpoints) for p in state.ports.values())


def test_targets_are_bounded_across_slices() -> None:
    state = DesiredState(IPFamily.IPV4, "node1")
    state.update_service(service(ports=20, addresses=5))
    for number in range(20):
        state.update_slice(piece(number, endpoints=500, ports=20))
    assert state.checkout().truncated == (WEB,)
    assert SERVICE_TARGETS / 2 < targets(state) <= SERVICE_TARGETS
    state.update_slice(piece(0, endpoints=499, ports=20))
    assert not state.checkout().truncated, "it has been reported"


def test_a_large_service_within_the_limit_is_served_completely() -> None:
    state = DesiredState(IPFamily.IPV4, "node1")
    state.update_service(service(ports=2, addresses=3))
    for number in range(5):
        state.update_slice(piece(number, endpoints=1000, ports=2))
    assert not state.checkout().truncated
    assert all(len(port.cluster_endpoints) == 5000 for port in state.ports.values())


def test_which_endpoints_serve_does_not_depend_on_the_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desired, "SERVICE_TARGETS", 20)
    found = set()
    for order in permutations(piece(number, endpoints=3) for number in range(4)):
        state = DesiredState(IPFamily.IPV4, "node1")
        state.update_service(service())
        for one in order:
            state.update_slice(one)
            state.checkout()
        (port,) = state.ports.values()
        found.add(port.cluster_endpoints)
    assert len(found) == 1
    assert len(found.pop()) == 10


def test_slice_ports_that_the_service_lacks_do_not_count() -> None:
    state = DesiredState(IPFamily.IPV4, "node1")
    state.update_service(service())
    state.update_slice(piece(0, endpoints=100, ports=2000))
    assert not state.checkout().truncated
    assert targets(state) == 100


def test_a_service_that_fits_again_is_reported_when_it_grows_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desired, "SERVICE_TARGETS", 20)
    state = DesiredState(IPFamily.IPV4, "node1")
    state.update_service(service())
    for endpoints, reported in ((11, (WEB,)), (12, ()), (10, ()), (11, (WEB,))):
        state.update_slice(piece(0, endpoints))
        assert state.checkout().truncated == reported
    state.delete_service(WEB)
    state.checkout()
    state.update_service(service())
    assert state.checkout().truncated == (WEB,)
