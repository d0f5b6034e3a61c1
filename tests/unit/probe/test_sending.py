"""ICMP errors from a socket's error queue, in words."""

import socket
import struct

import pytest

from svcproxy.probe.core.sending import icmp_text

V4 = struct.pack("=HH4s8x", socket.AF_INET, 0, bytes([192, 0, 2, 7]))
V6 = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, bytes([0xFD, *[0] * 14, 7]), 0)


def error(origin: int, kind: int, code: int, sender: bytes) -> bytes:
    return struct.pack("=IBBBBII", 111, origin, kind, code, 0, 0, 0) + sender


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (error(2, 3, 3, V4), "ICMP port unreachable from 192.0.2.7"),
        (error(2, 3, 13, V4), "ICMP administratively prohibited from 192.0.2.7"),
        (error(2, 3, 77, V4), "ICMP code 77 from 192.0.2.7"),
        (error(2, 11, 0, V4), "ICMP type 11 from 192.0.2.7"),
        (error(3, 1, 4, V6), "ICMPv6 port unreachable from fd00::7"),
        (error(3, 1, 1, V6), "ICMPv6 administratively prohibited from fd00::7"),
        (error(3, 1, 4, b""), "ICMPv6 port unreachable"),
        (error(1, 0, 0, b""), ""),
        (b"", ""),
    ],
)
def test_in_words(data: bytes, expected: str) -> None:
    assert icmp_text(data) == expected
