"""The audit of handwritten listings of virtual servers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.backends.base import Desired
from svcproxy.backends.ipvs.core.audit import Audit, Difference
from svcproxy.backends.ipvs.core.difference import Observed
from svcproxy.backends.ipvs.core.planner import Planner
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.netlink.core.kernel_objects import RealServerKey, VirtualServer, VirtualServerKey
from tests.fakes.ipvs_listing import PREAMBLE

WEB = VirtualServerKey(Protocol.TCP, "10.96.0.1", 80)
DNS = VirtualServerKey(Protocol.UDP, "10.96.0.2", 53)
ONE, TWO, THREE = "10.244.0.1", "10.244.0.2", "10.244.0.3"

LISTING = (
    PREAMBLE
    + b"""\
TCP  0A600001:0050 rr\x20\x20
  -> 0AF40001:1F90      Masq    1      17         4\x20\x20\x20\x20\x20\x20\x20\x20\x20
  -> 0AF40002:1F90      Masq    1      0          0\x20\x20\x20\x20\x20\x20\x20\x20\x20
TCP  C0A83201:7530 rr\x20\x20
UDP  0A600002:0035 rr  persistent 1080000 FFFFFFFF
  -> 0AF40001:1F90      Masq    1      0          0\x20\x20\x20\x20\x20\x20\x20\x20\x20
TCP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0050 rr\x20
  -> [2001:0db8:0000:0000:0000:0000:0000:0002]:0050      Tunnel  1      0          0\x20\x20\x20
FWM  00000007 rr\x20
  -> 0AF40007:1F90      Route   1      0          0\x20\x20\x20\x20\x20\x20\x20\x20\x20
"""
)
"""Two Services as expected, and virtual servers of other programs and of the other family."""


def port(key: VirtualServerKey, *endpoints: str, affinity: int = 0) -> ServicePort:
    """A Service port at a cluster IP; its endpoints are on another node."""
    kind, verdict = FrontendKind.CLUSTER_IP, Verdict.FORWARD
    frontend = Frontend(kind, key.address, key.port, local=False, verdict=verdict)
    return ServicePort(
        ServicePortName("ns", "a", "", key.protocol),
        frontends=(frontend,),
        cluster_endpoints=tuple(Endpoint(address, 8080) for address in endpoints),
        local_endpoints=(),
        affinity_seconds=affinity,
    )


def observed(**found: Any) -> Observed:
    return Observed(
        **{"tables": {}, "servers": {}, "real": {}, "sets": {}, "bound": frozenset()} | found
    )


class Audited:
    """An audit of two Services, with its planner."""

    def __init__(self) -> None:
        settings = IpvsSettings(IPFamily.IPV4)
        self.planner = Planner(settings, 60)
        self.audit = Audit(self.planner, ticks=100)
        ports = {each.name: each for each in (port(WEB, ONE, TWO), port(DNS, ONE, affinity=10800))}
        self.planner.plan(Desired(ports, settings), settings, observed())
        self.audit.resynced()
        self.change()

    def change(self, *ports: ServicePort) -> None:
        """Change Service ports and compute their expected lines."""
        plan = self.planner.plan_changes({each.name: each for each in ports})
        assert plan is not None
        self.audit.changed(plan)
        self.planner.draining.apply(plan, 0.0)
        self.audit.compute(99)
        assert not self.audit.outdated

    def read(self, *pieces: bytes) -> Difference | None:
        """Make a pass without querying unseen virtual servers."""
        self.audit.begin()
        found = [self.audit.take(piece) for piece in pieces]
        found.append(self.audit.end())
        return next((each for each in found if each is not None), None)


@pytest.fixture
def audited() -> Audited:
    return Audited()


@given(st.lists(st.integers(0, len(LISTING)), max_size=9))
def test_chunks_may_end_anywhere(cuts: list[int]) -> None:
    audited, ends = Audited(), sorted(cuts)
    pieces = [LISTING[a:b] for a, b in zip([0, *ends], [*ends, len(LISTING)], strict=True)]
    for _ in range(2):
        assert audited.read(*pieces) is None
        assert audited.audit.unseen() == []
        assert audited.audit.seen == 1


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (b"0A600001:0050 rr", b"0A600001:0050 lc", WEB),
        (b"0A600001:0050 rr  ", b"0A600001:0050 rr ops  ", WEB),
        (b"0A600001:0050 rr  ", b"0A600001:0050 rr  persistent 1080000 FFFFFFFF", WEB),
        (b"persistent 1080000 FFFFFFFF", b"", DNS),
        (b"persistent 1080000 ", b"persistent 1079900 ", DNS),
        (b"  -> 0AF40002:1F90      Masq    1 ", b"  -> 0AF40002:1F90      Masq    0 ", WEB),
        (b"  -> 0AF40002:1F90      Masq    1 ", b"  -> 0AF40002:1F90      Masq    10 ", WEB),
        (b"  -> 0AF40002:1F90", b"  -> 0AF40002:1F91", WEB),
        (b"  -> 0AF40002:1F90", b"  -> 0AF40003:1F90", WEB),
        (b"  -> 0AF40002:1F90      Masq    1      0          0         \n", b"", WEB),
        (b"0AF40002:1F90 ", b"0AF40001:1F90 ", WEB),
        (b"C0A83201:7530", b"0A600001:7530", WEB._replace(port=0x7530)),
    ],
)
def test_every_compared_property_is_checked(
    audited: Audited, old: bytes, new: bytes, key: VirtualServerKey
) -> None:
    damaged = LISTING.replace(old, new)
    assert damaged != LISTING
    found = audited.read(damaged)
    assert found is not None
    assert found.key == key
    assert audited.read(LISTING) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b" 17         4 ", b" 4000000000 9 "),
        (b" FFFFFFFF", b" FFFFFF00"),
        (b"0AF40001:1F90      Masq    1      17", b"0AF40001:1F90      Route   1      17"),
        (b"C0A83201:7530 rr", b"C0A83201:7531 lc"),
    ],
)
def test_other_properties_are_ignored(audited: Audited, old: bytes, new: bytes) -> None:
    """A resync would not change them, and every difference causes a resync."""
    changed = LISTING.replace(old, new)
    assert changed != LISTING
    assert audited.read(changed) is None


def test_the_order_of_real_servers_does_not_matter(audited: Audited) -> None:
    first, second = LISTING.split(b"\n")[4:6]
    swapped = LISTING.replace(first + b"\n" + second, second + b"\n" + first)
    assert swapped != LISTING
    assert audited.read(swapped) is None


def test_servers_missing_in_the_listing_are_queried(audited: Audited) -> None:
    begin, end = LISTING.index(b"UDP"), LISTING.index(b"TCP  [")
    assert audited.read(LISTING[:begin] + LISTING[end:]) is None
    (written,) = audited.audit.unseen()
    assert audited.audit.to_query(written) == DNS
    server, real = VirtualServer("rr", 1, 10800), RealServerKey(ONE, 8080)
    assert audited.audit.answer(DNS, server, {real: 0}) is not None
    assert audited.audit.answer(DNS, None, {}) is not None
    assert audited.audit.answer(DNS, server, {real: 1}) is None
    assert audited.audit.to_query(written) is None
    assert audited.audit.unseen() == []


def test_deleted_servers_are_not_queried(audited: Audited) -> None:
    begin = LISTING.index(b"UDP")
    audited.read(LISTING[:begin])
    (written,) = audited.audit.unseen()
    audited.change(port(DNS))
    assert audited.audit.to_query(written) is None
    assert audited.audit.unseen() == []


def test_real_servers_may_drain(audited: Audited) -> None:
    """They may exist or not, but their weight is 0."""
    audited.change(port(WEB, ONE))
    assert audited.read(LISTING) is not None, "a draining server has weight 0"
    line = b"  -> 0AF40002:1F90      Masq    1 "
    assert audited.read(LISTING.replace(line, line.replace(b"1 ", b"0 "))) is None
    start = LISTING.index(line)
    assert audited.read(LISTING[:start] + LISTING[LISTING.index(b"\n", start) + 1 :]) is None


def test_a_virtual_server_may_drain(audited: Audited) -> None:
    audited.change(port(WEB))
    draining = LISTING.replace(b"Masq    1      17", b"Masq    0      17")
    draining = draining.replace(b"2:1F90      Masq    1", b"2:1F90      Masq    0")
    assert audited.read(draining) is None
    assert audited.read(draining.replace(b"2:1F90", b"9:1F90")) is not None
    assert audited.read(LISTING) is not None


def test_a_server_that_changes_while_half_read_is_queried(audited: Audited) -> None:
    cut = LISTING.index(b"  -> 0AF40002")
    audited.audit.begin()
    assert audited.audit.take(LISTING[:cut]) is None
    audited.change(port(WEB, ONE, TWO, THREE))
    assert audited.audit.take(LISTING[cut:]) is None
    assert audited.audit.end() is None
    assert audited.audit.unseen() == []
    assert audited.read(LISTING) is not None, "only in that pass"


def test_ipv6_properties_are_parsed_as_the_kernel_writes_them() -> None:
    settings = IpvsSettings(IPFamily.IPV6)
    planner = Planner(settings)
    key = VirtualServerKey(Protocol.SCTP, "fd00:10::1", 80)
    wanted = port(key, "fd00:2::", affinity=60)
    planner.plan(Desired({wanted.name: wanted}, settings), settings, observed())
    audit = Audit(planner, ticks=250)
    audit.resynced()
    audit.compute(1)
    audit.begin()
    text = b"""\
SCTP  [fd00:0010:0000:0000:0000:0000:0000:0001]:0050 rr persistent 15000 80000000
  -> [fd00:0002:0000:0000:0000:0000:0000:0000]:1F90      Masq    1      0          0\x20\x20\x20
"""
    assert audit.take(LISTING + text) is None
    assert audit.end() is None
    assert audit.unseen() == []
    audit.begin()
    audit.take(text.replace(b":1F90", b":1F91"))
    assert audit.end() is not None
