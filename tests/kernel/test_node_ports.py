"""Node ports: on which addresses, for which clients, and with which source."""

import contextlib
import signal
import socket
import struct
from collections.abc import Iterator

import pytest

from testbed.cluster import Host
from tests.kernel.conftest import (
    PORTS,
    Stage,
    all_at,
    ask,
    assert_refused,
    at,
    servers,
)

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("source", ["client", "pod1a", "pod2a", "node1"])
@pytest.mark.behaviour("Node ports: Reachability")
def test_all_clients_are_served_and_masqueraded(stage: Stage, family: int, source: str) -> None:
    pods = [*stage.here, stage.there[0]]
    offer = stage.offer(family, all_at(pods, family), type="NodePort")
    host = stage.cluster.host(source)
    for proto, port in offer.node_ports:
        for address in (stage.node.ip(family), stage.node.bridge_ips[0 if family == 4 else 1]):
            assert ask(host, proto, address, port) == stage.masqueraded(pods, family)


@pytest.mark.behaviour("Node ports: Hairpin")
def test_a_pod_reaches_itself_through_a_node_port(stage: Stage, family: int) -> None:
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family)], type="NodePort")
    for proto, port in offer.node_ports:
        seen = ask(pod, proto, stage.node.ip(family), port, n=10)
        assert seen == stage.masqueraded([pod], family)


@pytest.mark.behaviour("Node ports: New node addresses")
def test_an_address_added_later_is_served(stage: Stage, family: int) -> None:
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family)], type="NodePort")
    address = stage.address(family, outside=True)
    with stage.own_address(address):
        for proto, port in offer.node_ports:
            assert ask(stage.client, proto, address, port, n=5) == stage.masqueraded([pod], family)


@pytest.mark.behaviour("Node ports: Other ports")
def test_a_local_server_on_another_port_is_not_touched(stage: Stage, family: int) -> None:
    stage.offer(family, [at(stage.here[0], family)], type="NodePort")
    stage.node.traffic.serve(tcp=[9200], udp=[9200])
    for proto in ("tcp", "udp"):
        seen = ask(stage.client, proto, stage.node.ip(family), 9200, n=5)
        assert seen == {("node1", stage.client.ip(family))}


@pytest.mark.behaviour("Node ports: Changes")
def test_a_changed_node_port_moves(stage: Stage, family: int) -> None:
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family)], type="NodePort")
    before = offer.node_ports
    offer.change(ports=stage.with_node_ports(PORTS))
    for (proto, old), (_, new) in zip(before, offer.node_ports, strict=True):
        assert servers(stage.client, proto, stage.node.ip(family), new, n=5) == {pod.name}
        assert_refused(stage.client, proto, stage.node.ip(family), old, how="reset")


@pytest.mark.behaviour("Node ports: Changes")
def test_a_service_turned_back_into_a_cluster_ip_closes_its_node_port(
    stage: Stage, family: int
) -> None:
    offer = stage.offer(family, [at(stage.here[0], family)], type="NodePort")
    ports = offer.node_ports
    offer.change(type="ClusterIP", ports=list(PORTS))
    for proto, port in ports:
        assert_refused(stage.client, proto, stage.node.ip(family), port, how="reset")


@pytest.mark.localhost
@pytest.mark.behaviour("Node ports: Localhost, IPv4")
def test_node_ports_answer_on_localhost_of_ipv4(stage: Stage) -> None:
    pods = [stage.here[0], stage.there[0]]
    offer = stage.offer(4, all_at(pods, 4), type="NodePort")
    for proto, port in offer.node_ports:
        assert ask(stage.node, proto, "127.0.0.1", port) == stage.masqueraded(pods, 4)
        assert ask(stage.node, proto, "127.0.0.2", port) == stage.masqueraded(pods, 4)


@pytest.mark.iptables_only
def test_connections_to_localhost_are_counted(stage: Stage) -> None:
    def accepted() -> float:
        name = "kubeproxy_iptables_localhost_nodeports_accepted_packets_total"
        return stage.daemon.metrics().value(name)

    offer = stage.offer(4, all_at([stage.here[0], stage.there[0]], 4), type="NodePort")
    before = accepted()
    for proto, port in offer.node_ports:
        ask(stage.node, proto, stage.node.ip(4), port, n=3)
        assert accepted() == before
    for number, (proto, port) in enumerate(offer.node_ports, start=1):
        ask(stage.node, proto, "127.0.0.1", port, n=3)
        assert accepted() == before + 3 * number


@pytest.mark.behaviour("Node ports: Localhost, IPv6")
def test_node_ports_do_not_answer_on_localhost_of_ipv6(stage: Stage) -> None:
    offer = stage.offer(6, [at(stage.here[0], 6)], type="NodePort")
    for proto, port in offer.node_ports:
        assert_refused(stage.node, proto, "::1", port, how="reset")


# --- Loopback protection -------------------------------------------------------------------------


@contextlib.contextmanager
def _listener(host: Host, address: str, port: int) -> Iterator[socket.socket]:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, port))
        made.settimeout(0.3)
        return made

    with host.netns.call(make) as server:
        yield server


def _datagram(source: str, target: str, port: int, payload: bytes) -> bytes:
    """Return an IPv4 packet with a UDP datagram to any destination."""
    udp = struct.pack("!HHHH", 5555, port, 8 + len(payload), 0) + payload
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0)
    words = struct.unpack("!10H", head + ends)
    total = sum(words)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", checksum) + ends + udp


def _send_frame(sender: Host, receiver: Host, packet: bytes) -> None:
    """Send a frame with this packet to the receiver's interface."""
    link = "eth0" if sender.name in {"client", "node2"} else "br0"
    words = receiver.netns.run("ip", "-o", "link", "show", link).stdout.split()
    hardware = bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as raw:
            raw.sendto(packet, ("eth0", 0x0800, 0, 0, hardware))

    sender.netns.call(send)


def _received(server: socket.socket) -> bytes:
    try:
        return server.recv(100)
    except TimeoutError:
        return b""


@contextlib.contextmanager
def _unprotected(stage: Stage) -> Iterator[None]:
    """Remove the rule that protects 127.0.0.0/8 within the context."""
    # The daemon would restore it immediately.
    stage.daemon.signal(signal.SIGSTOP)
    try:
        if stage.variant == "nftables":
            stage.node.netns.run("nft", "delete", "table", "ip", "svcproxy")
        else:
            stage.iptables(4, "-D", "INPUT", "-j", "KUBE-FIREWALL")
        yield
    finally:
        if stage.variant != "nftables":
            stage.iptables(4, "-I", "INPUT", "-j", "KUBE-FIREWALL")
        stage.daemon.signal(signal.SIGCONT)
        stage.sync()


@pytest.mark.localhost
@pytest.mark.parametrize("sender", ["client", "node2", "pod1a"])
@pytest.mark.behaviour("Node ports: Loopback protection")
def test_neighbours_do_not_reach_what_listens_on_localhost(stage: Stage, sender: str) -> None:
    """``route_localnet`` accepts packets to 127.0.0.0/8 from the network; a rule drops them."""
    node, neighbour = stage.node, stage.cluster.host(sender)
    packet = _datagram(neighbour.ipv4, "127.0.0.1", 9300, b"hello")
    with _listener(node, "127.0.0.1", 9300) as server:
        _send_frame(neighbour, node, packet)
        assert _received(server) == b""
        with _unprotected(stage):
            _send_frame(neighbour, node, packet)
            assert _received(server) == b"hello"  # the rule made the difference


@pytest.mark.behaviour("Node ports: Loopback protection")
def test_localhost_itself_is_not_affected_by_the_protection(stage: Stage) -> None:
    stage.node.traffic.serve(tcp=[9301], udp=[9301], addresses=["127.0.0.1"])
    for proto in ("tcp", "udp"):
        assert ask(stage.node, proto, "127.0.0.1", 9301, n=5) == {("node1", "127.0.0.1")}
