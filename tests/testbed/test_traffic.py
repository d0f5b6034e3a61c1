import threading
import time

import pytest

from testbed.cluster import Cluster
from testbed.outcomes import Answer, Broken, Refused, TimedOut, Unreachable
from testbed.traffic import TrafficError

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("source", "target"),
    [("pod1a", "pod1b"), ("pod1a", "pod2b"), ("client", "pod2a"), ("pod2a", "pod2a")],
)
def test_all_hosts_reach_pods_with_their_own_address(
    cluster: Cluster, source: str, target: str, proto: str, family: int
) -> None:
    host, pod = cluster.host(source), cluster.host(target)
    outcome = host.traffic.connect(proto, pod.ip(family), 8080)
    assert isinstance(outcome, Answer)
    assert (outcome.server, outcome.source) == (target, host.ip(family))


@pytest.mark.parametrize("family", [4, 6])
def test_a_closed_port_refuses(cluster: Cluster, family: int) -> None:
    traffic, address = cluster.client.traffic, cluster.pods[0].ip(family)
    for proto, how in (("tcp", "reset"), ("udp", "icmp")):
        outcome = traffic.connect(proto, address, 9)
        assert outcome == Refused(outcome.seconds, how)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_an_unused_address_is_unreachable_after_a_time_out(cluster: Cluster, proto: str) -> None:
    assert isinstance(
        cluster.pods[0].traffic.connect(proto, "10.244.1.77", 1, timeout=0.2), TimedOut
    )


def test_no_route_is_unreachable(cluster: Cluster) -> None:
    outcome = cluster.client.traffic.connect("tcp", "198.51.100.1", 80)
    assert outcome == Unreachable(outcome.seconds, "ENETUNREACH")


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_the_source_port_can_be_chosen(cluster: Cluster, proto: str) -> None:
    for _ in range(3):
        outcome = cluster.client.traffic.connect(
            proto, cluster.pods[0].ipv4, 8080, source_port=4321
        )
        assert isinstance(outcome, Answer)
        assert outcome.source_port == 4321


def test_the_source_address_can_be_chosen(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    for proto in ("tcp", "udp"):
        outcome = node.traffic.connect(proto, node.pods[0].ipv4, 8080, source_address=node.ipv4)
        assert isinstance(outcome, Answer)
        assert outcome.source == node.ipv4


def test_datagrams_are_new_flows(cluster: Cluster) -> None:
    outcomes = cluster.client.traffic.dial("udp", cluster.pods[0].ipv4, 8080, 50)
    ports = {o.source_port for o in outcomes if isinstance(o, Answer)}
    assert len(ports) == 50


def test_a_held_connection_breaks_when_its_server_stops(cluster: Cluster) -> None:
    pod = cluster.pods[1]
    pod.traffic.serve(tcp=[9090])
    with cluster.client.traffic.hold("tcp", pod.ipv4, 9090) as held:
        first = held.check()
        assert isinstance(first, Answer)
        assert isinstance(held.first, Answer)
        assert first.source_port == held.first.source_port
        pod.traffic.unserve(tcp=[9090], established=False)
        assert isinstance(cluster.client.traffic.connect("tcp", pod.ipv4, 9090), Refused)
        assert isinstance(held.check(), Answer)
        pod.traffic.serve(tcp=[9090])
        pod.traffic.unserve(tcp=[9090])
        assert isinstance(held.check(), Broken)


def test_a_server_can_be_limited_to_an_address(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    node.traffic.serve(udp=[5300], tcp=[5300], addresses=[node.bridge_ips[0]])
    client = cluster.client.traffic
    for proto in ("tcp", "udp"):
        assert isinstance(client.connect(proto, node.bridge_ips[0], 5300), Answer)
        assert isinstance(client.connect(proto, node.ipv4, 5300), Refused)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_load_keeps_its_rate(cluster: Cluster, proto: str, family: int) -> None:
    target = cluster.host("pod2a").ip(family)
    load = cluster.client.traffic.load(proto, target, 8080, rate=500, duration=0.5)
    result = load.wait()
    assert result.labels == {"pod2a": 250}
    assert result.ok == result.total == 250
    assert not result.failures
    assert 400 < result.rate < 520


def test_a_load_does_not_wait_for_hanging_connections(cluster: Cluster) -> None:
    load = cluster.client.traffic.load("tcp", "10.96.0.99", 80, rate=300, duration=0.5, timeout=0.4)
    result = load.wait()
    assert result.labels == {"timed out": 150}
    assert result.samples[-1].at - result.samples[0].at < 0.6
    assert all(isinstance(sample.outcome, TimedOut) for sample in result.failures)


def test_a_load_reports_refusals(cluster: Cluster) -> None:
    traffic, pod = cluster.client.traffic, cluster.pods[0]
    for proto, how in (("tcp", "reset"), ("udp", "icmp")):
        result = traffic.load(proto, pod.ipv4, 9, rate=200, duration=0.2).wait()
        assert result.labels == {"refused": 40}
        assert {s.outcome.how for s in result.failures if isinstance(s.outcome, Refused)} == {how}
    assert traffic.load("tcp", "198.51.100.1", 80, rate=100, duration=0.1).wait().labels == {
        "unreachable": 10
    }


def test_other_requests_are_served_during_a_load(cluster: Cluster) -> None:
    load = cluster.client.traffic.load("tcp", cluster.pods[0].ipv4, 8080)
    counts = cluster.client.traffic.burst("tcp", cluster.pods[1].ipv4, 8080, 100)
    result = load.stop()
    assert counts == {"pod1b": 100}
    assert result.labels.keys() == {"pod1a"}


def test_threads_can_share_a_helper(cluster: Cluster) -> None:
    traffic, pod = cluster.client.traffic, cluster.pods[0]
    answers: list[object] = []

    def work() -> None:
        answers.extend(traffic.connect("tcp", pod.ipv4, 8080) for _ in range(25))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 100
    assert all(isinstance(answer, Answer) for answer in answers)


def test_a_request_is_cheap(cluster: Cluster) -> None:
    traffic, pod = cluster.client.traffic, cluster.pods[0]
    best = 1.0
    for _ in range(200):
        began = time.perf_counter()
        traffic.connect("tcp", pod.ipv4, 8080)
        best = min(best, time.perf_counter() - began)
    assert best < 0.002


def test_invalid_requests_are_reported(cluster: Cluster) -> None:
    traffic = cluster.client.traffic
    with pytest.raises(ValueError, match="tcp or udp"):
        traffic.connect("TCP", "10.0.0.1", 80)
    with pytest.raises(TrafficError, match="client: OSError"):
        traffic.connect("tcp", "10.244.1.2", 80, source_address="192.0.2.1")
    with pytest.raises(TrafficError, match="OverflowError"):
        traffic.load("tcp", "127.0.0.1", 99999, duration=0.1).wait()


def test_http_pages_can_be_fetched(cluster: Cluster) -> None:
    status, reason = cluster.nodes[0].traffic.fetch(1, "/metrics")
    assert status == 0
    assert "refused" in reason
