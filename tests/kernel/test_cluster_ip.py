"""Cluster IPs: which endpoints answer, how evenly, and which source address they see."""

import itertools
import socket
from collections import Counter

import pytest

from testbed import manifests as m
from testbed.cluster import Host
from testbed.outcomes import Answer
from tests.kernel.conftest import PORTS, Offer, Stage, all_at, ask, assert_even, at, servers

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("source", ["pod1a", "node1", "client"])
@pytest.mark.behaviour(
    "Cluster IPs: Reachability",
    "Cluster IPs: Sources",
)
def test_every_client_reaches_every_endpoint(stage: Stage, family: int, source: str) -> None:
    pods = [*stage.here, stage.there[0]]
    offer = stage.offer(family, all_at(pods, family))
    host = stage.cluster.host(source)
    expected = (
        stage.kept(host, pods, family)
        if source == "pod1a"
        else stage.masqueraded(pods, family)  # not from a pod: masqueraded
    )
    for proto, port in offer.ports:
        assert ask(host, proto, offer.vip, port) == expected


@pytest.mark.behaviour("Cluster IPs: Reachability")
def test_a_pod_of_another_node_is_served_through_this_one(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here, family))
    pod = stage.there[0]
    for proto, port in offer.ports:
        assert ask(pod, proto, offer.vip, port) == stage.kept(pod, stage.here, family)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.behaviour("Cluster IPs: Even distribution")
def test_connections_are_spread_evenly(stage: Stage, family: int, proto: str) -> None:
    offer = stage.offer(family, all_at(stage.cluster.pods, family))
    number = dict(offer.ports)[proto]
    assert_even(stage.client.traffic.burst(proto, offer.vip, number, 600), among=4)


@pytest.mark.parametrize("among", [8, 9, 20])
@pytest.mark.behaviour("Cluster IPs: Even distribution")
def test_many_endpoints_share_evenly(stage: Stage, family: int, among: int) -> None:
    """Each endpoint is a separate port of one pod, whose backlog counts connections."""
    pod = stage.here[0]
    listening = {port: _listen(pod, family, port) for port in range(20000, 20000 + among)}
    try:
        offer = stage.offer(family, ports=PORTS[:1])
        offer.put_slices(
            **{
                str(port): m.endpoint_slice(
                    offer.service,
                    [at(pod, family)],
                    suffix=str(port),
                    ports=[m.port(80, name="http", target=port)],
                )
                for port in listening
            }
        )
        _connect(stage.client, offer.vip, 1000)
        assert_even(Counter(dict(_accepted(listening))), among)
    finally:
        for server in listening.values():
            server.close()


def _listen(host: Host, family: int, port: int) -> socket.socket:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    server = host.netns.call(lambda: socket.create_server((host.ip(family), port), family=kind))
    server.listen(1000)
    server.setblocking(False)  # noqa: FBT003 - the only way to say it
    return server


def _connect(host: Host, address: str, n: int) -> None:
    def connect() -> None:
        for _ in range(n):
            socket.create_connection((address, 80), 2).close()

    host.netns.call(connect)


def _accepted(listening: dict[int, socket.socket]) -> list[tuple[int, int]]:
    def count(server: socket.socket) -> int:
        for number in itertools.count():
            try:
                server.accept()[0].close()
            except BlockingIOError:
                return number
        raise AssertionError

    return [(port, count(server)) for port, server in listening.items()]


@pytest.mark.behaviour("Cluster IPs: Several ports")
def test_each_port_leads_to_its_own_target(stage: Stage, family: int) -> None:
    """Two ports of one protocol, whose target ports are matched by name in the slice."""
    first, second = stage.here
    first.traffic.serve(tcp=[9101])
    second.traffic.serve(tcp=[9102])
    ports = [m.port(80, name="web", target=9101), m.port(443, name="tls", target=9102)]
    for port, target in zip(ports, ("web-name", "tls-name"), strict=True):
        port["targetPort"] = target
    offer = stage.offer(family, ports=ports)
    resolved = [m.port(80, name="web", target=9101), m.port(443, name="tls", target=9102)]
    offer.put_slices(
        one=m.endpoint_slice(offer.service, all_at([first], family), ports=resolved[:1]),
        two=m.endpoint_slice(
            offer.service, all_at([second], family), ports=resolved[1:], suffix="2"
        ),
    )
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a"}
    assert servers(stage.client, "tcp", offer.vip, 443) == {"pod1b"}


@pytest.mark.behaviour("Cluster IPs: Named target ports")
def test_a_named_target_port_may_differ_between_pods(stage: Stage, family: int) -> None:
    first, second = stage.here
    first.traffic.serve(tcp=[9103])
    second.traffic.serve(tcp=[9104])
    offer = stage.offer(family, ports=PORTS[:1])
    offer.put_slices(
        **{
            pod.name: m.endpoint_slice(
                offer.service,
                [at(pod, family)],
                suffix=pod.name,
                ports=[m.port(80, name="http", target=target)],
            )
            for pod, target in ((first, 9103), (second, 9104))
        }
    )
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a", "pod1b"}


def _two_slices(offer: Offer, first: list[m.Object], second: list[m.Object]) -> None:
    offer.put_slices(
        one=m.endpoint_slice(offer.service, first, suffix="1"),
        two=m.endpoint_slice(offer.service, second, suffix="2"),
    )


@pytest.mark.behaviour("Cluster IPs: Several EndpointSlices")
def test_slices_of_a_service_are_merged(stage: Stage, family: int) -> None:
    offer = stage.offer(family)
    _two_slices(offer, [at(stage.here[0], family)], [at(stage.there[0], family)])
    for proto, port in offer.ports:
        assert servers(stage.client, proto, offer.vip, port) == {"pod1a", "pod2a"}


@pytest.mark.behaviour("Cluster IPs: Duplicate endpoints")
def test_an_endpoint_in_two_slices_counts_once(stage: Stage, family: int) -> None:
    first, second = stage.here
    offer = stage.offer(family)
    _two_slices(offer, all_at([first, second], family), [at(first, family)])
    assert_even(stage.client.traffic.burst("tcp", offer.vip, 80, 400), among=2)
    # It is used while it is ready in one of them.
    _two_slices(
        offer,
        [at(second, family)],
        [at(first, family, ready=False, serving=False, terminating=True)],
    )
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1b"}
    _two_slices(
        offer,
        all_at([first, second], family),
        [at(first, family, ready=False, serving=False, terminating=True)],
    )
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a", "pod1b"}


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.behaviour("Cluster IPs: Hairpin")
def test_a_pod_reaches_itself(stage: Stage, family: int, *, placed: bool) -> None:
    """Also if a manually created slice does not name the pod's node."""
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family) if placed else m.endpoint(pod.ip(family))])
    for proto, port in offer.ports:
        assert ask(pod, proto, offer.vip, port, n=10) == {(pod.name, stage.masked(pod, family))}


@pytest.mark.behaviour("Cluster IPs: Hairpin")
def test_a_pod_reaches_itself_despite_session_affinity(stage: Stage, family: int) -> None:
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family)], sessionAffinity="ClientIP")
    for proto, port in offer.ports:
        assert ask(pod, proto, offer.vip, port, n=10) == {(pod.name, stage.masked(pod, family))}


@pytest.mark.behaviour("Cluster IPs: Host network")
def test_a_node_is_an_endpoint_of_its_own_host_network(stage: Stage, family: int) -> None:
    node, pod = stage.node, stage.here[0]
    node.traffic.serve(tcp=[9105])
    ports = [m.port(443, name="https", target=9105)]
    offer = stage.offer(family, [at(node, family)], ports=ports)
    assert ask(pod, "tcp", offer.vip, 443, n=5) == {("node1", pod.ip(family))}
    assert ask(node, "tcp", offer.vip, 443, n=5) == {("node1", node.ip(family))}
    answered = ask(stage.client, "tcp", offer.vip, 443, n=5)
    assert {server for server, _ in answered} == {"node1"}


@pytest.mark.behaviour("Cluster IPs: Host network")
def test_another_node_is_an_endpoint(stage: Stage, family: int) -> None:
    stage.other.traffic.serve(tcp=[9106])
    ports = [m.port(443, name="https", target=9106)]
    offer = stage.offer(family, [at(stage.other, family)], ports=ports)
    pod = stage.here[0]
    assert ask(pod, "tcp", offer.vip, 443, n=5) == {("node2", pod.ip(family))}
    masked = {("node2", stage.node.ip(family))}
    assert ask(stage.node, "tcp", offer.vip, 443, n=5) == masked
    assert ask(stage.client, "tcp", offer.vip, 443, n=5) == masked


@pytest.mark.behaviour("Cluster IPs: Open TCP connections")
def test_open_connections_stay_with_their_endpoint(stage: Stage, family: int) -> None:
    first, second = stage.here
    offer = stage.offer(family, [at(first, family)])
    with stage.client.traffic.hold("tcp", offer.vip, 80) as held:
        assert isinstance(held.first, Answer)
        offer.endpoints(at(second, family))
        assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1b"}
        later = held.check()
        assert isinstance(later, Answer)
        assert later.server == "pod1a"
