"""Reading ``/proc/net/ip_vs``."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.backends.ipvs.procfile import fingerprint, parse
from svcproxy.backends.ipvs.values import RealServerKey, VirtualServerKey
from svcproxy.model.names import IPFamily, Protocol
from tests.unit.ipvs.values import addresses, ports

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
"""What Linux 6.1.176 printed, but for two of the counters."""
V4, V6 = IPFamily.IPV4, IPFamily.IPV6
Servers = dict[VirtualServerKey, dict[RealServerKey, int]]


def test_each_family_finds_its_own() -> None:
    assert parse(LISTING, V4) == {
        VirtualServerKey(Protocol.SCTP, "10.0.0.1", 80): {},
        VirtualServerKey(Protocol.UDP, "10.0.0.1", 80): {
            RealServerKey("10.0.0.2", 8080): 123456789
        },
    }
    assert parse(LISTING, V6) == {
        VirtualServerKey(Protocol.TCP, "fd00::1", 80): {RealServerKey("fd00::2", 81): 1}
    }
    assert parse(LISTING.partition(b"SCTP")[0], V4) == {}


def servers_of(family: IPFamily) -> st.SearchStrategy[Servers]:
    virtual = st.builds(VirtualServerKey, st.sampled_from(Protocol), addresses(family), ports)
    real = st.builds(RealServerKey, addresses(family), ports)
    return st.dictionaries(virtual, st.dictionaries(real, st.integers(0, 1 << 30), max_size=4))


def written(address: str, port: int) -> str:
    packed = ip_address(address).packed
    if len(packed) == 4:
        return f"{packed.hex().upper()}:{port:04X}"
    return f"[{packed.hex(':', 2)}]:{port:04X}"


def listing(servers: Servers, counter: int) -> bytes:
    """As ``ip_vs_info_seq_show`` writes it."""
    lines = LISTING.decode().splitlines()[:3]
    for (protocol, address, port), real in servers.items():
        lines.append(f"{protocol}  {written(address, port)} rr ")
        lines += (
            f"  -> {written(*key)}      {'Masq':<7} {weight:<6} {counter:<10} {counter:<10}"
            for key, weight in real.items()
        )
    return "\n".join([*lines, ""]).encode()


@given(st.data())
def test_all_is_read(data: st.DataObject) -> None:
    ipv4, ipv6 = data.draw(servers_of(V4)), data.draw(servers_of(V6))
    both = listing(ipv4 | ipv6, 5)
    assert parse(both, V4) == ipv4
    assert parse(both, V6) == ipv6
    assert fingerprint([both], V4) == fingerprint([listing(ipv4, 4_000_000_000)], V4)
    assert fingerprint([both], V6) == fingerprint([listing(ipv6, 0)], V6)


def test_the_fingerprint_is_of_all_but_counters() -> None:
    for family, old, new in (
        (V4, b"wlc ", b"rr  "),
        (V4, b" 123456789 ", b" 123456788 "),
        (V4, b"wlc ops", b"wlc    "),
        (V4, b"0A000002:1F90      Masq    123", b"0A000002:1F91      Masq    123"),
        (V6, b"persistent 6000", b"persistent 6001"),
        (V6, b"0002]:0051", b"0003]:0051"),
    ):
        other = V4 if family is V6 else V6
        changed = LISTING.replace(old, new)
        assert fingerprint([changed], family) != fingerprint([LISTING], family), old
        assert fingerprint([changed], other) == fingerprint([LISTING], other), old
    counted = LISTING.replace(b" 7          12 ", b" 8          13 ")
    assert counted != LISTING
    assert fingerprint([counted], V4) == fingerprint([LISTING], V4)


@given(st.lists(st.integers(0, len(LISTING)), max_size=5))
def test_the_fingerprint_does_not_depend_on_how_much_was_read_at_a_time(cuts: list[int]) -> None:
    ends = sorted(cuts)
    pieces = [LISTING[a:b] for a, b in zip([0, *ends], [*ends, len(LISTING)], strict=True)]
    for family in IPFamily:
        assert fingerprint(pieces, family) == fingerprint([LISTING], family)
