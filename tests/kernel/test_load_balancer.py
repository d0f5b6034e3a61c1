"""Load balancer addresses: which are served, to which clients, and with which source."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from testbed import manifests as m
from testbed.manifests import Object
from testbed.outcomes import Answer
from tests.kernel.conftest import (
    PORTS,
    SYN,
    Offer,
    Stage,
    Watch,
    all_at,
    another_address,
    ask,
    assert_dropped,
    assert_refused,
    at,
    client_addresses,
    servers,
)

pytestmark = pytest.mark.kernel


def _balanced(stage: Stage, family: int, ranges: list[str], **spec: Any) -> tuple[Offer, str, str]:
    """Return a load balancer Service for some clients, its address, and its pod's name."""
    address = stage.address(family, outside=True)
    offer = stage.offer(
        family,
        [at(stage.here[0], family)],
        type="LoadBalancer",
        load_balancer_ips=[address],
        loadBalancerSourceRanges=ranges,
        **spec,
    )
    return offer, address, stage.here[0].name


def _only(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


@pytest.mark.behaviour("Load balancers and external IPs: Load-balancer IPs")
def test_the_address_is_served(stage: Stage, family: int) -> None:
    pods = [stage.here[0], stage.there[0]]
    address = stage.address(family, outside=True)
    offer = stage.offer(
        family, all_at(pods, family), type="LoadBalancer", load_balancer_ips=[address]
    )
    for proto, port in offer.ports:
        for host in (stage.client, stage.here[1], stage.node):
            assert ask(host, proto, address, port) == stage.masqueraded(pods, family)
    for proto, port in offer.node_ports:
        seen = ask(stage.client, proto, stage.node.ip(family), port)
        assert seen == stage.masqueraded(pods, family)


@pytest.mark.behaviour("Load balancers and external IPs: Hairpin")
def test_a_pod_reaches_itself_through_the_load_balancer(stage: Stage, family: int) -> None:
    offer, address, _ = _balanced(stage, family, [])
    pod = stage.here[0]
    for proto, port in offer.ports:
        assert ask(pod, proto, address, port, n=5) == stage.masqueraded([pod], family)


@pytest.mark.behaviour("Load balancers and external IPs: Load-balancer IPs")
def test_an_ingress_without_mode_is_served(stage: Stage, family: int) -> None:
    offer, address, pod = _balanced(stage, family, [])
    offer.load_balancer({"ip": address})
    assert servers(stage.client, "tcp", address, 80, n=5) == {pod}


@contextlib.contextmanager
def _balancer(stage: Stage, address: str) -> Iterator[None]:
    """The client answers at the address itself."""
    stage.client.traffic.serve(tcp=[80], udp=[53], addresses=[address])
    yield
    stage.client.traffic.unserve(tcp=[80], udp=[53])


@pytest.mark.parametrize("source", ["pod1b", "node1"])
@pytest.mark.behaviour("Load balancers and external IPs: `ipMode: Proxy`")
def test_a_proxying_load_balancer_gets_its_traffic(stage: Stage, family: int, source: str) -> None:
    """With ``ipMode: Proxy``, connections leave the node for the balancer, here the client."""
    offer, address, _ = _balanced(stage, family, [])
    host = stage.cluster.host(source)
    with another_address(stage.client, address), _balancer(stage, address):
        assert servers(host, "tcp", address, 80, n=5) == {"pod1a"}
        offer.load_balancer({"ip": address, "ipMode": "Proxy"})
        for proto, port in offer.ports:
            assert ask(host, proto, address, port, n=5) == {("client", host.ip(family))}
        offer.load_balancer({"ip": address, "ipMode": "VIP"})
        assert servers(host, "tcp", address, 80, n=5) == {"pod1a"}


@pytest.mark.behaviour("Load balancers and external IPs: Host names")
def test_an_ingress_with_a_name_only_is_no_address(stage: Stage, family: int) -> None:
    offer, address, pod = _balanced(stage, family, [])
    offer.load_balancer({"hostname": "lb.example.org"}, {"ip": address})
    assert servers(stage.client, "tcp", address, 80, n=5) == {pod}


@pytest.mark.behaviour("Load balancers and external IPs: Changed IP")
def test_a_changed_address_is_followed(stage: Stage, family: int) -> None:
    offer, old, pod = _balanced(stage, family, [])
    new = stage.address(family, outside=True)
    assert servers(stage.client, "tcp", old, 80, n=3) == {pod}
    offer.load_balancer({"ip": new, "ipMode": "VIP"})
    for proto, port in offer.ports:
        assert servers(stage.client, proto, new, port, n=3) == {pod}
        assert_dropped(stage.client, proto, old, port)


@pytest.mark.behaviour("Load balancers and external IPs: Load-balancer IPs")
def test_several_addresses_are_served(stage: Stage, family: int) -> None:
    offer, first, pod = _balanced(stage, family, [])
    second = stage.address(family, outside=True)
    offer.load_balancer({"ip": first}, {"ip": second})
    for address in (first, second):
        assert servers(stage.client, "tcp", address, 80, n=3) == {pod}


@pytest.mark.behaviour("Load balancers and external IPs: No node ports")
def test_no_node_ports_are_needed(stage: Stage, family: int) -> None:
    offer, address, pod = _balanced(stage, family, [], allocateLoadBalancerNodePorts=False)
    assert all("nodePort" not in port for port in offer.spec["ports"])
    for proto, port in offer.ports:
        assert servers(stage.client, proto, address, port, n=5) == {pod}


# --- loadBalancerSourceRanges --------------------------------------------------------------------


@pytest.mark.behaviour("Load balancers and external IPs: `loadBalancerSourceRanges`")
def test_only_clients_in_the_ranges_are_served(stage: Stage, family: int) -> None:
    first, second, third = client_addresses(stage.cluster, family)[:3]
    offer, address, pod = _balanced(stage, family, [_only(first), _only(second)])
    for proto, port in offer.ports:
        for source in (first, second):
            assert {pod} == {
                server for server, _ in ask(stage.client, proto, address, port, n=3, source=source)
            }
        assert_dropped(stage.client, proto, address, port, source=third)
        assert_dropped(stage.here[1], proto, address, port)


@pytest.mark.behaviour("Load balancers and external IPs: Source ranges without endpoints")
def test_ranges_of_a_service_without_endpoints(stage: Stage, family: int) -> None:
    """In kube-proxy's nftables mode the ranges apply; in other modes all clients are refused."""
    first, second = client_addresses(stage.cluster, family)[:2]
    offer, address, _ = _balanced(stage, family, [_only(first)])
    offer.endpoints()
    assert_refused(stage.client, "tcp", address, 80, source=first)
    others = assert_dropped if stage.variant == "nftables" else assert_refused
    others(stage.client, "tcp", address, 80, source=second)
    others(stage.here[1], "tcp", address, 80)


@pytest.mark.behaviour("Load balancers and external IPs: `loadBalancerSourceRanges`")
def test_a_refused_packet_goes_nowhere(stage: Stage, family: int) -> None:
    _, address, _ = _balanced(stage, family, [_only(stage.address(family, outside=True))])
    with Watch(stage.client) as gateway, Watch(stage.here[0]) as pod:
        assert_dropped(stage.client, "tcp", address, 80)
        assert address not in gateway.targets()
        assert not [packet for packet in pod.packets() if packet.flags & SYN]


@pytest.mark.behaviour("Load balancers and external IPs: Source ranges and other addresses")
def test_ranges_do_not_restrict_other_addresses(stage: Stage, family: int) -> None:
    external = stage.address(family, outside=True)
    unused_range = _only(stage.address(family, outside=True))
    offer, address, pod = _balanced(stage, family, [unused_range], externalIPs=[external])
    assert_dropped(stage.client, "tcp", address, 80)
    for proto, port in offer.node_ports:
        assert servers(stage.client, proto, stage.node.ip(family), port, n=3) == {pod}
    for proto, port in offer.ports:
        assert servers(stage.client, proto, external, port, n=3) == {pod}
        assert servers(stage.client, proto, offer.vip, port, n=3) == {pod}
        assert servers(stage.here[1], proto, offer.vip, port, n=3) == {pod}


@pytest.mark.behaviour("Load balancers and external IPs: Source ranges, spelling")
def test_spaces_around_a_range_do_not_matter(stage: Stage, family: int) -> None:
    first, second = client_addresses(stage.cluster, family)[:2]
    _, address, pod = _balanced(stage, family, [f"  {_only(first)} "])
    assert servers(stage.client, "tcp", address, 80, n=3) == {pod}
    assert_dropped(stage.client, "tcp", address, 80, source=second)


@pytest.mark.behaviour("Load balancers and external IPs: Source ranges, spelling")
def test_a_range_of_everything_opens_the_load_balancer(stage: Stage, family: int) -> None:
    everything = "0.0.0.0/0" if family == 4 else "::/0"
    unused_range = _only(stage.address(family, outside=True))
    _, address, pod = _balanced(stage, family, [unused_range, everything])
    for host in (stage.client, stage.here[1], stage.node):
        assert servers(host, "tcp", address, 80, n=3) == {pod}


@pytest.mark.behaviour("Load balancers and external IPs: Source ranges, spelling")
def test_ranges_of_the_other_family_do_not_restrict(stage: Stage, family: int) -> None:
    other = "fd00:dead::/64" if family == 4 else "192.0.2.0/24"
    _, address, pod = _balanced(stage, family, [other])
    assert servers(stage.client, "tcp", address, 80, n=3) == {pod}


@pytest.mark.behaviour("Load balancers and external IPs: Source ranges, changes")
def test_ranges_may_change(stage: Stage, family: int) -> None:
    first, second = client_addresses(stage.cluster, family)[:2]
    offer, address, pod = _balanced(stage, family, [_only(second)])
    assert_dropped(stage.client, "tcp", address, 80)
    offer.change(loadBalancerSourceRanges=[_only(first)])
    assert servers(stage.client, "tcp", address, 80, n=3) == {pod}
    offer.change(loadBalancerSourceRanges=None)
    seen = ask(stage.client, "tcp", address, 80, n=3, source=second)
    assert {server for server, _ in seen} == {pod}


@pytest.mark.behaviour("Load balancers and external IPs: Source ranges and the node")
def test_a_node_is_served_if_the_ranges_hold_it(stage: Stage, family: int) -> None:
    """The address itself counts as the node's when the node has it, as many balancers want."""
    _, address, pod = _balanced(stage, family, [_only(stage.node.ip(family))])
    for proto, port in (("tcp", 80), ("udp", 53)):
        assert servers(stage.node, proto, address, port, n=3) == {pod}
        with stage.own_address(address):
            seen = ask(stage.node, proto, address, port, n=3, source=address)
            assert {server for server, _ in seen} == {pod}
            assert servers(stage.node, proto, address, port, n=3) == {pod}
        assert_dropped(stage.client, proto, address, port)


@pytest.mark.behaviour("Load balancers and external IPs: Source ranges and the node")
def test_a_node_is_not_served_if_the_ranges_do_not_hold_it(stage: Stage, family: int) -> None:
    _, address, _ = _balanced(stage, family, [_only(stage.client.ip(family))])
    for proto, port in (("tcp", 80), ("udp", 53)):
        assert_dropped(stage.node, proto, address, port)
        with stage.own_address(address):
            if stage.variant == "ipvs":
                # IPVS itself rejects connections to a virtual server without real servers.
                connect = stage.node.traffic.connect
                outcome = connect(proto, address, port, timeout=0.15, source_address=address)
                assert not isinstance(outcome, Answer), outcome
            else:
                assert_dropped(stage.node, proto, address, port, source=address)


@pytest.mark.behaviour("Load balancers and external IPs: Source ranges and `Local`")
def test_ranges_and_the_local_policy_go_together(stage: Stage, family: int) -> None:
    first, second = client_addresses(stage.cluster, family)[:2]
    offer, address, pod = _balanced(stage, family, [_only(first)], externalTrafficPolicy="Local")
    for proto, port in offer.ports:
        assert ask(stage.client, proto, address, port, n=3) == {(pod, first)}
        assert_dropped(stage.client, proto, address, port, source=second)


# --- External IPs --------------------------------------------------------------------------------


@pytest.mark.behaviour("Load balancers and external IPs: External IPs")
def test_external_ips_are_served(stage: Stage, family: int) -> None:
    pods = [stage.here[0], stage.there[0]]
    addresses = [stage.address(family, outside=True) for _ in range(2)]
    offer = stage.offer(family, all_at(pods, family), externalIPs=addresses)
    for address in addresses:
        for proto, port in offer.ports:
            for host in (stage.client, stage.here[1], stage.there[1], stage.node):
                assert ask(host, proto, address, port) == stage.masqueraded(pods, family)


@pytest.mark.behaviour("Load balancers and external IPs: External IPs")
def test_a_removed_external_ip_is_no_longer_served(stage: Stage, family: int) -> None:
    kept, removed = (stage.address(family, outside=True) for _ in range(2))
    offer = stage.offer(family, [at(stage.here[0], family)], externalIPs=[kept, removed])
    assert servers(stage.client, "tcp", removed, 80, n=3) == {"pod1a"}
    offer.change(externalIPs=[kept])
    assert servers(stage.client, "tcp", kept, 80, n=3) == {"pod1a"}
    assert_dropped(stage.client, "tcp", removed, 80)


@pytest.mark.behaviour("Load balancers and external IPs: External IP of the node")
def test_an_external_ip_may_be_an_address_of_the_node(stage: Stage, family: int) -> None:
    """Only the Service's port is translated; other ports at that address stay the node's."""
    ports: list[Object] = [m.port(8443, name="https", target=8080)]
    stage.offer(
        family, [at(stage.here[0], family)], ports=ports, externalIPs=[stage.node.ip(family)]
    )
    stage.node.traffic.serve(tcp=[9400])
    for host in (stage.client, stage.here[1], stage.node):
        assert servers(host, "tcp", stage.node.ip(family), 8443, n=3) == {"pod1a"}
    assert servers(stage.client, "tcp", stage.node.ip(family), 9400, n=3) == {"node1"}


@pytest.mark.behaviour("Load balancers and external IPs: External IP of a `ClusterIP` Service")
def test_an_external_ip_of_a_plain_service_follows_its_policy(stage: Stage, family: int) -> None:
    """A ``ClusterIP`` Service, too, can have external IPs with ``externalTrafficPolicy: Local``."""
    near, far = stage.here[0], stage.there[0]
    address = stage.address(family, outside=True)
    offer = stage.offer(
        family,
        all_at([near, far], family),
        ports=PORTS,
        externalIPs=[address],
        externalTrafficPolicy="Local",
    )
    for proto, port in offer.ports:
        seen = ask(stage.client, proto, address, port)
        assert seen == stage.kept(stage.client, [near], family)
