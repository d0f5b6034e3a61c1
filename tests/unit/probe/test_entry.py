"""The connection tracking entry of a probe, byte by byte."""

import struct

import pytest

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core.attributes import attribute
from svcproxy.netlink.core.conntrack import AddressPort, conntrack_tuple
from svcproxy.netlink.core.messages import NetlinkRequest, encode
from svcproxy.netlink.errors import MalformedError
from svcproxy.probe.core.entry import Tuple, decode, event_filter, is_about, shown, target

V4 = Tuple(IPFamily.IPV4, Protocol.TCP, "10.244.1.9", 40000, "10.96.0.1", 80)
V6 = Tuple(IPFamily.IPV6, Protocol.UDP, "fd00::9", 40001, "fd00:10:96::1", 53)
NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17}


def body(sent: Tuple, endpoint: AddressPort, seen: AddressPort, status: int = 0) -> bytes:
    number = NUMBERS[sent.protocol]
    return (
        struct.pack("=BBH", 2 if sent.family is IPFamily.IPV4 else 10, 0, 0)
        + conntrack_tuple(1, number, *sent.ends)
        + conntrack_tuple(2, number, endpoint, seen)
        + attribute(3, struct.pack("!I", status))
    )


def reply(sent: Tuple) -> tuple[AddressPort, AddressPort]:
    length = len(sent.ends[0].address)
    return AddressPort(bytes([10]) * length, 8080), AddressPort(bytes([11]) * length, 2000)


@pytest.mark.parametrize("sent", [V4, V6])
def test_an_entry_says_where_the_probe_went_and_what_the_endpoint_sees(sent: Tuple) -> None:
    endpoint, seen = reply(sent)
    found = decode(body(sent, endpoint, seen, status=0x12))
    assert (found.endpoint, found.seen_source, found.masqueraded) == (endpoint, seen, True)
    assert not decode(body(sent, endpoint, seen, status=0x2)).masqueraded


@pytest.mark.parametrize("sent", [V4, V6])
def test_half_an_entry_is_malformed(sent: Tuple) -> None:
    whole = body(sent, *reply(sent))
    for end in range(4, len(whole)):
        try:
            decode(whole[:end])
        except MalformedError:
            continue
        assert end >= len(whole) - 8  # only the status is missing


@pytest.mark.parametrize("sent", [V4, V6])
def test_the_event_of_the_probe_is_recognised(sent: Tuple) -> None:
    own = body(sent, *reply(sent))
    other = body(
        Tuple(sent.family, sent.protocol, sent.destination, 40000, sent.source, 80), *reply(sent)
    )
    assert is_about(own, sent)
    assert not is_about(other, sent)
    assert not is_about(b"", sent)


def _passes(program: bytes, message: bytes) -> bool:
    """Run a classic BPF program of half-word loads, comparisons and returns, as the kernel does."""
    lines = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    value = at = 0
    while True:
        code, yes, no, constant = lines[at]
        at += 1
        if code == 0x28:
            if constant + 2 > len(message):
                return False
            (value,) = struct.unpack_from("!H", message, constant)
        elif code == 0x15:
            at += yes if value == constant else no
        else:
            return bool(constant)


@pytest.mark.parametrize("sent", [V4, V6])
def test_the_socket_filter_keeps_only_events_with_the_ports_of_the_probe(sent: Tuple) -> None:
    program = event_filter(sent)

    def event(source_port: int, port: int) -> bytes:
        other = Tuple(sent.family, sent.protocol, sent.source, source_port, sent.destination, port)
        return encode(NetlinkRequest(0x100, 0, body(other, *reply(sent))), 0)

    assert _passes(program, event(sent.source_port, sent.port))
    assert not _passes(program, event(sent.source_port + 1, sent.port))
    assert not _passes(program, event(sent.source_port, sent.port + 1))
    assert not _passes(program, event(sent.port, sent.source_port))
    assert not _passes(program, b"")


def test_ends_as_text() -> None:
    assert shown(V4.ends[1]) == "10.96.0.1:80"
    assert shown(V6.ends[0]) == target("fd00::9", 40001) == "[fd00::9]:40001"
