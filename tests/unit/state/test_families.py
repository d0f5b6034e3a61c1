import pytest

from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import Service, ServiceCIDR, ServicePortSpec
from svcproxy.state.desired import Changes, DesiredState


def cidr(name: str, *ranges: str) -> ServiceCIDR:
    return ServiceCIDR(NamespacedName("", name), ranges)


@pytest.fixture
def state() -> DesiredState:
    return DesiredState(IPFamily.IPV4, "node1")


def test_ranges_of_the_family_are_added_changed_and_removed(state: DesiredState) -> None:
    state.update_service_cidr(cidr("kubernetes", "10.96.0.0/16", "fd00:10:96::/112"))
    assert state.pending
    assert state.checkout() == Changes({}, service_cidrs_changed=True)
    assert list(state.service_cidrs) == ["10.96.0.0/16"]
    state.update_service_cidr(cidr("more", "10.112.0.0/16", "10.96.0.0/16"))
    assert state.checkout().service_cidrs_changed
    assert list(state.service_cidrs) == ["10.112.0.0/16", "10.96.0.0/16"]
    state.delete_service_cidr(NamespacedName("", "kubernetes"))
    assert not state.pending, "the other one has the range, too"
    state.delete_service_cidr(NamespacedName("", "more"))
    state.delete_service_cidr(NamespacedName("", "unknown"))
    assert state.checkout().service_cidrs_changed
    assert not state.service_cidrs
    assert not state.checkout()


def test_ranges_of_the_other_family_are_ignored(state: DesiredState) -> None:
    state.update_service_cidr(cidr("kubernetes", "fd00:10:96::/112"))
    assert not state.pending


def test_a_reverted_change_is_not_reported(state: DesiredState) -> None:
    state.update_service_cidr(cidr("kubernetes", "10.96.0.0/16"))
    state.delete_service_cidr(NamespacedName("", "kubernetes"))
    assert not state.checkout()


def test_a_service_that_leaves_the_family_is_removed(state: DesiredState) -> None:
    def service(*addresses: str) -> Service:
        ports = (ServicePortSpec("http", Protocol.TCP, 80, 0),)
        return Service(NamespacedName("ns", "web"), ports, addresses)

    state.update_service(service("fd00:10:96::1"))
    assert not state.pending
    state.update_service(service("10.96.0.1", "fd00:10:96::1"))
    (name,) = state.checkout().ports
    state.update_service(service("fd00:10:96::1"))
    assert state.checkout().ports == {name: None}


def test_changes_are_combined() -> None:
    cidrs = Changes({}, service_cidrs_changed=True)
    assert cidrs.then(Changes({}, node_changed=True)) == Changes(
        {}, node_changed=True, service_cidrs_changed=True
    )
    assert cidrs


def test_a_port_carries_the_annotations_of_its_service(state: DesiredState) -> None:
    ports = (ServicePortSpec("http", Protocol.TCP, 80, 0),)
    annotations = (("example.com/a", "1"),)
    web = NamespacedName("ns", "web")
    state.update_service(Service(web, ports, ("10.96.0.1",), annotations=annotations))
    (port,) = state.checkout().ports.values()
    assert port is not None
    assert port.annotations == annotations
