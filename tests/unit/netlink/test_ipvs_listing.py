"""Parsing and formatting ``/proc/net/ip_vs``."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core.ipvs_listing import (
    LINES,
    Line,
    format_key,
    format_properties,
    format_real_server,
    normalize_properties,
    parse_key,
    parse_listing,
    parse_real_server,
)
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    ServerFlag,
    VirtualServer,
    VirtualServerKey,
)
from tests.fakes.ipvs_listing import PREAMBLE, TICKS, record
from tests.unit.netlink.addresses import addresses, ports

LISTING = b"""\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
SCTP  0A000001:0050 wlc\x20\x20
TCP  [fd00:0000:0000:0000:0000:0000:0000:0001]:0050 rr persistent 6000 80000000
  -> [fd00:0000:0000:0000:0000:0000:0000:0002]:0051      Masq    1      0          0\x20\x20\x20\x20\x20\x20\x20\x20\x20
UDP  0A000001:0050 wlc ops\x20\x20
  -> 0A000002:1F90      Masq    123456789 7          12\x20\x20\x20\x20\x20\x20\x20\x20
FWM  00000007 rr\x20
  -> 0A000002:1F90      Masq    1      0          0\x20\x20\x20\x20\x20\x20\x20\x20\x20
"""
"""Output of Linux 6.1.176; two of the counters are edited."""
V4, V6 = IPFamily.IPV4, IPFamily.IPV6
Servers = dict[VirtualServerKey, dict[RealServerKey, int]]


def test_servers_are_parsed_by_family() -> None:
    assert parse_listing(LISTING, V4) == {
        VirtualServerKey(Protocol.SCTP, "10.0.0.1", 80): {},
        VirtualServerKey(Protocol.UDP, "10.0.0.1", 80): {
            RealServerKey("10.0.0.2", 8080): 123456789
        },
    }
    assert parse_listing(LISTING, V6) == {
        VirtualServerKey(Protocol.TCP, "fd00::1", 80): {RealServerKey("fd00::2", 81): 1}
    }
    assert parse_listing(LISTING.partition(b"SCTP")[0], V4) == {}


def servers_of(family: IPFamily) -> st.SearchStrategy[Servers]:
    virtual = st.builds(VirtualServerKey, st.sampled_from(Protocol), addresses(family), ports)
    real = st.builds(RealServerKey, addresses(family), ports)
    return st.dictionaries(virtual, st.dictionaries(real, st.integers(0, 1 << 30), max_size=4))


def listing(servers: Servers, server: VirtualServer, counter: int) -> bytes:
    return PREAMBLE + b"".join(record(key, server, real, counter) for key, real in servers.items())


@given(st.data())
def test_all_servers_are_parsed(data: st.DataObject) -> None:
    ipv4, ipv6 = data.draw(servers_of(V4)), data.draw(servers_of(V6))
    server = VirtualServer("lc", data.draw(st.sampled_from([0, 1, 4, 5, 8])), 60)
    both = listing(ipv4 | ipv6, server, data.draw(st.integers(0, 4_000_000_000)))
    assert parse_listing(both, V4) == ipv4
    assert parse_listing(both, V6) == ipv6


@given(st.data())
def test_formatted_lines_match_the_listing(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(IPFamily))
    servers = data.draw(servers_of(family))
    server = VirtualServer("lc", data.draw(st.sampled_from([0, 1, 4, 5, 8])), 60)
    text = listing(servers, server, data.draw(st.integers(0, 4_000_000_000)))
    once = 0 if family is V6 else server.flags & ServerFlag.ONE_PACKET
    shown = replace(server, flags=server.flags & ServerFlag.PERSISTENT | once)
    expected: list[Line] = []
    for key, real in servers.items():
        expected.append((b"", format_key(key), format_properties(shown, family, TICKS)))
        expected += ((format_real_server(each, weight), b"", b"") for each, weight in real.items())
    assert LINES.findall(text) == expected
    assert [parse_key(line) for _, line, _ in expected if line] == list(servers)
    real_servers = [item for real in servers.values() for item in real.items()]
    assert [parse_real_server(line) for line, _, _ in expected if line] == real_servers
    for _, _, form in expected:
        assert not form or normalize_properties(form, family) == form


def test_properties_are_normalized() -> None:
    for family, given_form, usual in (
        (V4, b"rr", b"rr  "),
        (V4, b"rr ops", b"rr ops  "),
        (V4, b"rr  persistent 6000 FFFFFF00", b"rr  persistent 6000 FFFFFFFF"),
        (V6, b"rr persistent 6000 40000000", b"rr persistent 6000 80000000"),
        (V6, b"rr  ", b"rr "),
    ):
        assert normalize_properties(given_form, family) == usual


def test_a_firewall_mark_has_no_key() -> None:
    assert [parse_key(line) for _, line, _ in LINES.findall(LISTING) if line][-1] is None


def test_virtual_servers_of_other_protocols_keep_their_real_servers() -> None:
    """They are not attributed to the virtual server before."""
    foreign = b"IP_50  0A000009:0050 rr  \n  -> 0AF40009:1F90      Masq    1      0          0\n"
    first, fwm, rest = LISTING.partition(b"FWM")
    text = first + foreign + fwm + rest
    assert parse_listing(text, V4) == parse_listing(LISTING, V4)
    assert parse_key(b"IP_50  0A000009:0050") is None
    assert (b"", b"IP_50  0A000009:0050", b"rr  ") in LINES.findall(text)


def test_malformed_lines_are_skipped() -> None:
    for line in (
        b"TCP  0A00000:0050 rr",
        b"TCP  [fd00:0000]:0050 rr",
        b"  -> 0A000002:1F9 Masq 1 0 0",
        b"  -> 0A000002:1F90 Masq 99999999999999999999 0 0",
        b"TCP",
        b"\xff\x00 ->",
    ):
        for place in (b"SCTP", b"TCP", b"UDP", b"FWM"):
            head, found, tail = LISTING.partition(place)
            text = head + line + b"\n" + found + tail
            assert parse_listing(text, V4) == parse_listing(LISTING, V4)
            assert parse_listing(text, V6) == parse_listing(LISTING, V6)
            for real, header, properties in LINES.findall(text):
                if not real:
                    parse_key(header)
                    normalize_properties(properties, V4)
