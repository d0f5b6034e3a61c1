"""Packets that belong to no connection are not forwarded (kubernetes#74839)."""

import contextlib
import random
import re
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from testbed.cluster import Host
from testbed.outcomes import Answer
from testbed.waiting import eventually
from tests.kernel.conftest import ACK, SYN, Packet, Stage, Watch, at

pytestmark = pytest.mark.kernel

DROPPED = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total"
_IPV6_CHECKSUM = 7


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _send(sender: Host, packet: Packet) -> None:
    """Send a TCP header through a raw socket; the kernel has no connection for it."""
    head = struct.pack(
        "!HHIIBBHHH",
        packet.source_port,
        packet.port,
        packet.sequence,
        1,
        5 << 4,
        packet.flags,
        1024,
        0,
        0,
    )
    kind = socket.AF_INET6 if ":" in packet.target else socket.AF_INET

    def send() -> None:
        with socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            data = head
            if kind == socket.AF_INET6:
                raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, 16)
            else:
                ends = ip_address(packet.source).packed + ip_address(packet.target).packed
                pseudo = ends + struct.pack("!HH", socket.IPPROTO_TCP, len(head))
                data = head[:16] + struct.pack("!H", _checksum(pseudo + head)) + head[18:]
            raw.sendto(data, (packet.target, 0))

    sender.netns.call(send)


@contextlib.contextmanager
def _without_the_rule(stage: Stage, family: int) -> Iterator[None]:
    if stage.variant == "nftables":
        with _without_the_rule_of_nftables(stage, family):
            yield
        return
    stage.daemon.stop()  # it would restore the rule immediately
    listed = stage.iptables(family, "-S", "KUBE-FORWARD").splitlines()
    (rule,) = (line.split()[1:] for line in listed if "--ctstate INVALID" in line)
    stage.iptables(family, "-D", *rule)
    try:
        yield
    finally:
        stage.daemon.start()
        stage.daemon.wait_ready()


@contextlib.contextmanager
def _without_the_rule_of_nftables(stage: Stage, family: int) -> Iterator[None]:
    """Remove the rule while the daemon is stopped."""
    stage.daemon.stop()
    table = ["ip" if family == 4 else "ip6", "svcproxy"]
    listed = stage.node.netns.run("nft", "-a", "list", "chain", *table, "filter-forward").stdout
    found = re.search(r"ct state invalid drop # handle (\d+)", listed)
    assert found, listed
    stage.node.netns.run("nft", "delete", "rule", *table, "filter-forward", "handle", found[1])
    try:
        yield
    finally:
        stage.daemon.start()
        stage.daemon.wait_ready()


def _arrives(watch: Watch, sequence: int) -> bool:
    """Wait a moment for a packet with this sequence number; return whether it arrived."""
    try:
        eventually(lambda: sequence in {p.sequence for p in watch.packets()}, timeout=0.2)
    except AssertionError:
        return False
    return True


@pytest.mark.behaviour("The kernel: INVALID packets")
def test_an_unsolicited_answer_is_dropped(stage: Stage, family: int) -> None:
    client, pod = stage.client, stage.here[0]
    number = random.randrange(2**31)

    def packet(flags: int, sequence: int) -> Packet:
        port = random.randrange(20000, 60000)
        return Packet(client.ip(family), pod.ip(family), port, 8080, flags, sequence)

    with Watch(pod) as watch:
        _send(client, packet(SYN, number))
        assert _arrives(watch, number)  # a new connection may pass
        _send(client, packet(SYN | ACK, number + 1))
        assert not _arrives(watch, number + 1)
        with _without_the_rule(stage, family):
            _send(client, packet(SYN | ACK, number + 2))
            assert _arrives(watch, number + 2)  # the rule made the difference


@pytest.mark.iptables_only
def test_what_is_dropped_is_counted(stage: Stage, family: int) -> None:
    def dropped() -> float:
        return stage.daemon.metrics().value(DROPPED)

    before, client, pod = dropped(), stage.client, stage.here[0]
    port = random.randrange(20000, 60000)
    _send(client, Packet(client.ip(family), pod.ip(family), port, 8080, SYN | ACK, 1))
    eventually(lambda: dropped() == before + 1, "one more packet")


@pytest.mark.behaviour("The kernel: INVALID packets")
def test_an_answer_out_of_its_window_is_dropped(stage: Stage, family: int) -> None:
    """Untranslated, it would reach the client from an unknown address and reset the connection."""
    asking, pod = stage.here[1], stage.here[0]
    offer = stage.offer(family, [at(pod, family)])
    with Watch(asking) as watch, asking.traffic.hold("tcp", offer.vip, 80) as held:
        assert isinstance(held.first, Answer)
        proper = [packet for packet in watch.packets() if packet.source == offer.vip]
        stray = (proper[-1].sequence + 2**30) % 2**32
        packet = Packet(pod.ip(family), asking.ip(family), 8080, held.first.source_port, ACK, stray)
        _send(pod, packet)
        assert not _arrives(watch, stray)
        answer = held.check()
        assert isinstance(answer, Answer)
        with _without_the_rule(stage, family):
            _send(pod, packet)
            assert _arrives(watch, stray)
