"""Messages of nflog."""

import struct

import pytest

from svcproxy.netlink.core import nflog
from svcproxy.netlink.core.attributes import attribute, text
from svcproxy.netlink.core.nflog import LoggedPacket
from svcproxy.netlink.errors import MalformedError

CLIENT, VIP = b"\x0a\xf4\x01\x07", b"\x0a\x60\x00\x0a"
CLIENT6, VIP6 = b"\xfd" + b"\1" * 15, b"\xfd" + b"\2" * 15
PORTS = struct.pack("!HH", 40000, 80)


def ipv4(protocol: int = 6, options: bytes = b"") -> bytes:
    head = bytes([0x45 + len(options) // 4]) + bytes(8) + bytes([protocol]) + bytes(2)
    return head + CLIENT + VIP + options


def ipv6(protocol: int = 6) -> bytes:
    return b"\x60" + bytes(5) + bytes([protocol]) + bytes(1) + CLIENT6 + VIP6


def body(payload: bytes) -> bytes:
    return struct.pack("!BBH", 2, 0, 7) + text(10, "refused") + attribute(9, payload)


def test_packets_are_decoded() -> None:
    assert nflog.decode_packet(body(ipv4() + PORTS)) == LoggedPacket("refused", 6, CLIENT, VIP, 80)
    with_options = ipv4(17, bytes(8)) + PORTS
    assert nflog.decode_packet(body(with_options)) == LoggedPacket("refused", 17, CLIENT, VIP, 80)
    expected = LoggedPacket("refused", 132, CLIENT6, VIP6, 80)
    assert nflog.decode_packet(body(ipv6(132) + PORTS)) == expected


@pytest.mark.parametrize(
    "payload", [b"", b"\x45", b"\x75" * 60, ipv4(1) + bytes(8), ipv6(58) + bytes(8), ipv6()[:39]]
)
def test_packets_without_ports_are_none(payload: bytes) -> None:
    assert nflog.decode_packet(body(payload)) is None


@pytest.mark.parametrize("payload", [ipv4() + b"\0", ipv6(), ipv4(6, bytes(40))])
def test_a_packet_that_ends_too_early_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedError):
        nflog.decode_packet(body(payload))


def test_a_group_is_in_the_header_of_its_request() -> None:
    request = nflog.bind_request(0x1234, 128)
    assert request.kind == 0x401
    assert request.body[:4] == b"\0\0\x12\x34"
