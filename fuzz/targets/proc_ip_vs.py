"""``/proc/net/ip_vs``: foreign and malformed lines do not affect Services' virtual servers."""

from svcproxy.backends.base import Desired
from svcproxy.backends.ipvs.core.audit import Audit, Difference
from svcproxy.backends.ipvs.core.difference import Observed
from svcproxy.backends.ipvs.core.planner import Planner
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.netlink.core import ipvs_listing
from svcproxy.netlink.core.kernel_objects import RealServerKey, VirtualServer, VirtualServerKey

_PREAMBLE = (
    b"IP Virtual Server version 1.2.1 (size=4096)\n"
    b"Prot LocalAddress:Port Scheduler Flags\n"
    b"  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
)
_VIPS = {IPFamily.IPV4: ("10.0.0.1", "10.0.0.2"), IPFamily.IPV6: ("fd00::1", "::102:304")}
_REAL = {IPFamily.IPV4: "10.244.0.1", IPFamily.IPV6: "fd00:244::1"}
_TICKS = 250

SEEDS = (
    b"TCP  0A000001:0050 wlc  \n  -> 0A000002:1F90      Masq    1      0          0\n",
    b"IP_50  0A000009:0050 rr  \n  -> 0AF40009:1F90      Masq    1      0          0\n",
    b"UDP  [fd00:0000:0000:0000:0000:0000:0000:0001]:0035 rr persistent 6000 80000000\n",
    b"FWM  00000007 IPv6 rr \n  -> [fd00:0000:0000:0000:0000:0000:0000:0002]:0051 Tunnel 7 0 0\n",
    b"  -> ZZ:1F90 Masq 99999999999999999999999 0 0\nTCP  [::]:0050\nSCTP \n\xff\x00\n",
    b"TCP  0A000009:0050 rr ops persistent\nTCP  0A000009:00500 rr\nIP Virtual\n",
)


def check(data: bytes) -> None:
    """Parse a listing with the input between the virtual servers of two Services."""
    for line in ipvs_listing.LINES.findall(data):
        _parse(*line)
    for family in IPFamily:
        ipvs_listing.parse_listing(data, family)
        _others_survive(data, family)


def _parse(real: bytes, written: bytes, properties: bytes) -> None:
    if real:
        ipvs_listing.parse_real_server(real)
    ipvs_listing.parse_key(written)
    for family in IPFamily:
        ipvs_listing.normalize_properties(properties, family)


def _others_survive(data: bytes, family: IPFamily) -> None:
    keys = [VirtualServerKey(Protocol.TCP, vip, 80) for vip in _VIPS[family]]
    first, second = (_record(key, family) for key in keys)
    listing = b"".join((_PREAMBLE, first, b"FWM  00000001 rr \n", data, b"\n", second))
    real = RealServerKey(_REAL[family], 8080)
    named = [ipvs_listing.format_key(key).split()[1] in data for key in keys]
    found = ipvs_listing.parse_listing(listing, family)
    for key, overwritten in zip(keys, named, strict=True):
        assert overwritten or found[key] == {real: 1}, key
    if not any(named):
        for difference in _audited(listing, family, len(data) % 97 + 1):
            assert difference.key not in keys, difference


def _record(key: VirtualServerKey, family: IPFamily) -> bytes:
    properties = ipvs_listing.format_properties(VirtualServer("rr"), family, _TICKS)
    real = ipvs_listing.format_real_server(RealServerKey(_REAL[family], 8080), 1)
    return b"%b %b\n  -> %b      0          0\n" % (ipvs_listing.format_key(key), properties, real)


def _audited(listing: bytes, family: IPFamily, size: int) -> list[Difference]:
    planner = Planner(IpvsSettings(family=family))
    ports = {}
    for number, vip in enumerate(_VIPS[family]):
        name = ServicePortName("ns", f"s{number}", "", Protocol.TCP)
        frontend = Frontend(FrontendKind.CLUSTER_IP, vip, 80, local=False, verdict=Verdict.FORWARD)
        ports[name] = ServicePort(name, (frontend,), (Endpoint(_REAL[family], 8080),), ())
    planner.plan(
        Desired(ports, planner.settings), planner.settings, Observed({}, {}, {}, {}, frozenset())
    )
    audit = Audit(planner, _TICKS)
    audit.resynced()
    audit.compute(len(ports))
    audit.begin()
    found = [audit.take(listing[n : n + size]) for n in range(0, len(listing), size)]
    return [difference for difference in (*found, audit.end()) if difference is not None]
