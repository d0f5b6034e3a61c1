"""Short constructors for Service ports, changes and flows."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from svcproxy.conntrack.core.stale import PROTOCOLS
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.netlink.core.conntrack import AddressPort, Destination, Flow
from svcproxy.state.desired import Changes

UDP, SCTP, TCP = Protocol.UDP, Protocol.SCTP, Protocol.TCP


class Addresses(NamedTuple):
    """Test addresses of one family."""

    family: IPFamily
    vip: str
    external: str
    other_vip: str
    node: str
    other_host: str
    pods: tuple[str, str, str]
    client: str


V4 = Addresses(
    IPFamily.IPV4,
    "10.96.0.10",
    "203.0.113.7",
    "10.96.0.11",
    "192.168.50.1",
    "198.51.100.9",
    ("10.244.1.2", "10.244.1.3", "10.244.1.4"),
    "192.168.50.100",
)
V6 = Addresses(
    IPFamily.IPV6,
    "fd00:10:96::a",
    "fd00:203::7",
    "fd00:10:96::b",
    "fd00:192:168:50::1",
    "2001:db8::9",
    ("fd00:10:244:1::2", "fd00:10:244:1::3", "fd00:10:244:1::4"),
    "fd00:192:168:50::64",
)
both_families = pytest.mark.parametrize("net", [V4, V6], ids=["IPv4", "IPv6"])


def split(text: str) -> tuple[str, int]:
    """``10.96.0.1:53``, ``fd00::1:53`` (the last colon counts) or ``:30053``, a node port."""
    address, _, port = text.rpartition(":")
    return address, int(port)


def target(text: str) -> AddressPort:
    address, port = split(text)
    return AddressPort(ip_address(address).packed, port)


def key(text: str, protocol: Protocol = UDP) -> Destination:
    address, port = split(text)
    return Destination(PROTOCOLS[protocol], ip_address(address).packed if address else b"", port)


def endpoints(texts: Iterable[str]) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(*split(text)) for text in texts)


def service_port(
    name: str,
    frontends: Iterable[str],
    cluster: Iterable[str] = (),
    local: Iterable[str] = (),
    protocol: Protocol = UDP,
) -> ServicePort:
    made = []
    for text in frontends:
        address, port = split(text)
        kind = FrontendKind.CLUSTER_IP if address else FrontendKind.NODE_PORT
        made.append(Frontend(kind, address, port, local=False, verdict=Verdict.FORWARD))
    identity = ServicePortName("default", name, "p", protocol)
    lists = endpoints(cluster), endpoints(local)
    serving = tuple(sorted({*lists[0], *lists[1]}))
    return ServicePort(identity, tuple(made), *lists, serving=serving)


def by_name(*ports: ServicePort) -> dict[ServicePortName, ServicePort]:
    return {port.name: port for port in ports}


def change(
    before: Mapping[ServicePortName, ServicePort], after: Mapping[ServicePortName, ServicePort]
) -> Changes:
    """The changes between two states."""
    names = [n for n in {**before, **after} if before.get(n) != after.get(n)]
    return Changes(
        ports={name: after.get(name) for name in names},
        previous={name: before[name] for name in names if name in before},
    )


def flow(destination: str, source: str = "", protocol: int = 17, handle: bytes = b"") -> Flow:
    """A flow to ``destination`` that ``source`` answers; untranslated without ``source``."""
    end = target(destination)
    return Flow(protocol, *end, target(source) if source else end, handle)
