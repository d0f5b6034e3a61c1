"""The kernel's trace events."""

import struct

import pytest

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core.attributes import attribute, nest, text, u32, u64
from svcproxy.netlink.core.messages import NetlinkRequest, encode
from svcproxy.probe.core.entry import Tuple
from svcproxy.probe.core.traces import (
    TraceEvent,
    decode_events,
    first_packet,
    handles,
    table_messages,
)

KIND = 10 << 8 | 17
POLICY, RETURN, RULE = 1, 2, 3


def event(kind: int, *parts: bytes, packet: int = 7, family: int = 2, chain: str = "c") -> bytes:
    found = text(1, "t") + text(2, chain) + u32(4, kind) + u32(6, packet) + b"".join(parts)
    return encode(NetlinkRequest(KIND, 0, struct.pack("!BBH", family, 0, 0) + found), 0)


def verdict(code: int, chain: str = "") -> bytes:
    return nest(5, u32(1, code & 0xFFFFFFFF), *([text(2, chain)] if chain else []))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (event(RULE, u64(3, 12), verdict(-3, "all3")), ("ip", 12, "jump all3")),
        (event(RULE, u64(3, 12), verdict(-4, "x")), ("ip", 12, "goto x")),
        (event(RULE, u64(3, 12), verdict(0)), ("ip", 12, "drop")),
        (event(RULE, u64(3, 12), verdict(0x10000), family=10), ("ip6", 12, "drop")),
        (event(RULE, u64(3, 1), verdict(-1)), ("ip", 1, "continue")),
        (event(RETURN, verdict(-1)), ("ip", 0, "return")),
        (event(POLICY, u32(16, 1)), ("ip", 0, "policy accept")),
        (event(POLICY, u32(16, 0), family=1), ("inet", 0, "policy drop")),
    ],
)
def test_an_event(data: bytes, expected: tuple[str, int, str]) -> None:
    (found,) = decode_events(data)
    assert (found.family, found.handle, found.verdict) == expected
    assert (found.table, found.chain, found.packet) == ("t", "c", 7)


def test_the_end_of_a_chain_without_a_consequence_is_left_out() -> None:
    assert decode_events(event(RULE, u64(3, 0), verdict(-1))) == []


def test_malformed_events_are_skipped() -> None:
    whole = event(RULE, u64(3, 12), verdict(-3, "all3"))
    for end in range(len(whole)):
        decode_events(whole[:end])
    broken = event(RULE, attribute(5, b"\xff\xff\xff\xff"))
    assert decode_events(broken) == []


def _event(packet: int, table: str, chain: str, handle: int) -> TraceEvent:
    return TraceEvent(packet, "ip", table, chain, handle, "continue")


def test_only_the_first_packet_of_the_probe_counts() -> None:
    """Others may trace too, and a later packet may have the number of an earlier one."""
    events = [
        _event(1, "other", "c", 1),
        _event(2, "probe", "prerouting", 4),
        _event(2, "svcproxy", "services", 5),
        _event(1, "svcproxy", "services", 6),
        _event(2, "probe", "prerouting", 4),
        _event(2, "svcproxy", "services", 7),
    ]
    assert [e.handle for e in first_packet(events, "probe")] == [5]
    assert first_packet(events[:1], "probe") == []


def test_rules_by_handle() -> None:
    bodies = [text(1, "t") + u64(3, 9), text(1, "t") + u64(3, 4)]
    assert {h: place for h, (place, _) in handles(bodies).items()} == {9: 0, 4: 1}


@pytest.mark.parametrize("family", list(IPFamily))
def test_the_table_is_owned_and_matches_the_probe_only(family: IPFamily) -> None:
    v6 = family is IPFamily.IPV6
    source, destination = ("fd00::9", "fd00::1") if v6 else ("10.0.0.9", "10.0.0.1")
    sent = Tuple(family, Protocol.UDP, source, 40000, destination, 53)
    messages = table_messages("svcproxy-probe-1", sent)
    assert u32(2, 2) in messages[0].body  # NFT_TABLE_F_OWNER
    rules = [m.body for m in messages if m.description.startswith("rule")]
    assert len(rules) == 2
    for rule in rules:
        for part in (sent.ends[0].address, sent.ends[1].address, struct.pack("!HH", 40000, 53)):
            assert part in rule
