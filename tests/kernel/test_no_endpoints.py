"""Services without endpoints: connections are refused immediately."""

import pytest

from tests.kernel.conftest import (
    Offer,
    Stage,
    Watch,
    ask,
    assert_dropped,
    assert_refused,
    at,
    servers,
)

pytestmark = pytest.mark.kernel


def _everything(stage: Stage, family: int) -> tuple[Offer, str, str]:
    """Return a Service with every kind of address, its external IP and its load balancer IP."""
    external, balancer = (stage.address(family, outside=True) for _ in range(2))
    offer = stage.offer(
        family, type="LoadBalancer", externalIPs=[external], load_balancer_ips=[balancer]
    )
    return offer, external, balancer


def _assert_all_refused(stage: Stage, family: int, offer: Offer, *outside: str) -> None:
    all_hosts = [stage.here[0], stage.there[0], stage.client, stage.node]
    for host in all_hosts:
        for proto, port in offer.ports:
            assert_refused(host, proto, offer.vip, port)
        for proto, port in offer.node_ports:
            assert_refused(host, proto, stage.node.ip(family), port)
    for host in all_hosts[:-1]:
        for proto, port in offer.ports:
            for address in outside:
                assert_refused(host, proto, address, port)


@pytest.mark.behaviour("Which endpoints serve: No endpoint")
def test_all_clients_are_refused_immediately(stage: Stage, family: int) -> None:
    offer, *outside = _everything(stage, family)
    _assert_all_refused(stage, family, offer, *outside)


@pytest.mark.behaviour("Which endpoints serve: No endpoint, changes")
def test_endpoints_are_added_and_removed(stage: Stage, family: int) -> None:
    offer, *outside = _everything(stage, family)
    pod = stage.here[0]
    for _ in range(2):
        offer.endpoints(at(pod, family))
        for host in (stage.here[1], stage.client, stage.node):
            for proto, port in offer.ports:
                for address in (offer.vip, *outside):
                    assert servers(host, proto, address, port, n=3) == {pod.name}
            for proto, port in offer.node_ports:
                assert servers(host, proto, stage.node.ip(family), port, n=3) == {pod.name}
        offer.endpoints()
        _assert_all_refused(stage, family, offer, *outside)


@pytest.mark.localhost
@pytest.mark.behaviour("Which endpoints serve: No endpoint")
def test_a_node_is_refused_its_own_node_port_on_localhost(stage: Stage) -> None:
    offer = stage.offer(4, type="NodePort")
    for proto, port in offer.node_ports:
        assert_refused(stage.node, proto, "127.0.0.1", port)


@pytest.mark.behaviour("Which endpoints serve: No endpoint, packets of the node")
def test_the_nodes_own_packets_to_outside_addresses_leave_the_node(
    stage: Stage, family: int
) -> None:
    """As with kube-proxy: only forwarded packets and packets to the node are refused there.

    Its nftables mode refuses them, too.
    """
    _, *outside = _everything(stage, family)
    if stage.variant == "nftables":
        for address in outside:
            assert_refused(stage.node, "tcp", address, 80)
        return
    with Watch(stage.client) as gateway:
        for address in outside:
            assert_dropped(stage.node, "tcp", address, 80)  # the gateway has no route for it
            assert address in gateway.targets()


@pytest.mark.behaviour("Which endpoints serve: No endpoint, changes")
def test_refusals_end_with_the_service(stage: Stage, family: int) -> None:
    """A node port without a Service can be used by programs on the node again."""
    offer = stage.offer(family, type="NodePort")
    ports = offer.node_ports
    stage.node.traffic.serve(
        tcp=[p for proto, p in ports if proto == "tcp"],
        udp=[p for proto, p in ports if proto == "udp"],
    )
    for proto, port in ports:
        assert_refused(stage.client, proto, stage.node.ip(family), port)
    offer.remove()
    for proto, port in ports:
        seen = ask(stage.client, proto, stage.node.ip(family), port, n=3)
        assert seen == {("node1", stage.client.ip(family))}


@pytest.mark.behaviour("Which endpoints serve: No endpoint, changes")
def test_only_the_port_without_endpoints_is_refused(stage: Stage, family: int) -> None:
    offer = stage.offer(family, [at(stage.here[0], family)])
    slice_ = dict(offer.slices[""])
    slice_["ports"] = [p for p in slice_["ports"] if p["name"] == "http"]
    offer.put_slices(only=slice_)
    assert servers(stage.client, "tcp", offer.vip, 80, n=3) == {"pod1a"}
    assert_refused(stage.client, "udp", offer.vip, 53)
