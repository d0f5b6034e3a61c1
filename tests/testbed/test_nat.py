"""Traffic through hand-written NAT rules, on which all tests of the daemon rely."""

import time

import pytest

from testbed.cluster import Cluster, Host
from testbed.outcomes import Answer, Outcome, Refused, TimedOut, Unreachable

pytestmark = pytest.mark.kernel

VIPS = {4: "10.96.0.1", 6: "fd00:10:96::1"}
both_families = pytest.mark.parametrize("family", [4, 6])
both_protocols = pytest.mark.parametrize("proto", ["tcp", "udp"])


def dnat(host: Host, action: str, vip: str, target: str, proto: str = "tcp") -> None:
    """Add (-A) or delete (-D) a rule for port 80 of a VIP."""
    match = ["PREROUTING", "-d", vip, "-p", proto, "--dport", "80"]
    goal = ["-j", "DNAT", "--to-destination", f"{target}:8080"]
    host.netns.run("iptables", "-t", "nat", action, *match, *goal)


def answer(outcome: Outcome) -> tuple[str, str]:
    assert isinstance(outcome, Answer), outcome
    return outcome.server, outcome.source


@both_families
@both_protocols
@pytest.mark.parametrize("source", ["pod1b", "pod2a", "client"])
def test_a_vip_leads_to_its_pod_and_keeps_the_source(
    services: Cluster, family: int, proto: str, source: str
) -> None:
    host = services.host(source)
    if source == "pod2a":
        # its own node has no rules for the Service, as if no proxy ran there
        outcome = host.traffic.connect(proto, VIPS[family], 80, timeout=0.2)
        assert isinstance(outcome, TimedOut)
        return
    assert answer(host.traffic.connect(proto, VIPS[family], 80)) == ("pod1a", host.ip(family))


@both_families
@both_protocols
def test_the_node_itself_reaches_a_vip(services: Cluster, family: int, proto: str) -> None:
    node = services.nodes[0]
    server, source = answer(node.traffic.connect(proto, VIPS[family], 81))
    assert (server, source) == ("pod1b", node.ip(family))


@both_families
@both_protocols
def test_a_pod_reaches_itself_through_a_vip(services: Cluster, family: int, proto: str) -> None:
    node = services.nodes[0]
    outcome = node.pods[0].traffic.connect(proto, VIPS[family], 80)
    assert answer(outcome) == ("pod1a", node.bridge_ips[0 if family == 4 else 1])


@both_families
@both_protocols
def test_a_node_port_masquerades_the_client(services: Cluster, family: int, proto: str) -> None:
    node = services.nodes[0]
    outcome = services.client.traffic.connect(proto, node.ip(family), 30080)
    assert answer(outcome) == ("pod1a", node.bridge_ips[0 if family == 4 else 1])


@both_families
@both_protocols
@pytest.mark.parametrize("source", ["pod1a", "client", "node1"])
def test_reject_and_drop_are_distinguished(
    services: Cluster, family: int, proto: str, source: str
) -> None:
    traffic = services.host(source).traffic
    rejected = traffic.connect(proto, VIPS[family], 82)
    assert isinstance(rejected, Refused)
    assert rejected.how == "icmp"
    dropped = traffic.connect(proto, VIPS[family], 83, timeout=0.2)
    if source == "node1" and proto == "udp":
        assert dropped == Unreachable(dropped.seconds, "EPERM")
    else:
        assert isinstance(dropped, TimedOut)
        assert 0.19 < dropped.seconds < 0.5


@both_families
def test_every_packet_is_refused_not_just_the_first(services: Cluster, family: int) -> None:
    assert services.client.traffic.burst("udp", VIPS[family], 82, 100) == {"refused": 100}


def test_a_held_connection_survives_the_loss_of_its_rule(services: Cluster) -> None:
    node, client = services.nodes[0], services.client
    dnat(node, "-A", "10.96.0.9", "10.244.1.2")
    with client.traffic.hold("tcp", "10.96.0.9", 80) as held:
        assert answer(held.first)[0] == "pod1a"
        dnat(node, "-D", "10.96.0.9", "10.244.1.2")
        assert isinstance(client.traffic.connect("tcp", "10.96.0.9", 80, timeout=0.1), TimedOut)
        assert answer(held.check())[0] == "pod1a"


def test_a_udp_flow_with_a_fixed_port_sticks_to_its_endpoint(services: Cluster) -> None:
    node, client = services.nodes[0], services.client

    def ask(source_port: int = 0) -> str:
        outcome = client.traffic.connect("udp", "10.96.0.8", 80, source_port=source_port)
        return answer(outcome)[0]

    dnat(node, "-A", "10.96.0.8", "10.244.1.2", "udp")
    assert ask(7777) == "pod1a"
    dnat(node, "-D", "10.96.0.8", "10.244.1.2", "udp")
    dnat(node, "-A", "10.96.0.8", "10.244.1.3", "udp")
    assert ask(7777) == "pod1a"  # the flow is in connection tracking
    assert ask() == "pod1b"
    dnat(node, "-D", "10.96.0.8", "10.244.1.3", "udp")


def test_vips_can_move_to_another_node(services: Cluster) -> None:
    first, second = services.nodes
    for node in (first, second):
        dnat(node, "-A", "203.0.113.7", "10.244.1.3")
    masquerade = ["POSTROUTING", "-d", "10.244.1.3", "-j", "MASQUERADE"]
    second.netns.run("iptables", "-t", "nat", "-A", *masquerade)
    seen = answer(services.client.traffic.connect("tcp", "203.0.113.7", 80))
    assert seen == ("pod1b", services.client.ipv4)
    services.route_vips(second)
    try:
        seen = answer(services.client.traffic.connect("tcp", "203.0.113.7", 80))
    finally:
        services.route_vips(first)
    assert seen == ("pod1b", second.ipv4)


def test_a_load_shows_when_the_answers_moved(services: Cluster) -> None:
    node, client = services.nodes[0], services.client
    dnat(node, "-A", "10.96.0.7", "10.244.1.2")
    load = client.traffic.load("tcp", "10.96.0.7", 80, rate=300)
    time.sleep(0.3)  # the load measures the first server
    dnat(node, "-A", "10.96.0.7", "10.244.1.3")
    dnat(node, "-D", "10.96.0.7", "10.244.1.2")
    changed = time.monotonic()
    time.sleep(0.3)  # the load measures the second server
    result = load.stop()
    dnat(node, "-D", "10.96.0.7", "10.244.1.3")
    assert result.labels.keys() == {"pod1a", "pod1b"}
    assert result.between(changed).labels.keys() == {"pod1b"}
    last = result.last_answer("pod1a")
    assert last is not None
    assert last < changed + 0.1
