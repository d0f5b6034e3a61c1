"""Stale flows in real connection tracking tables, each in its own network namespace."""

import os
import struct
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

import pytest

from svcproxy.conntrack.cleaner import StaleFlows
from svcproxy.conntrack.table import Table
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core import conntrack
from svcproxy.netlink.core.attributes import attribute, nest
from svcproxy.netlink.core.conntrack import Destination, Flow
from svcproxy.netlink.core.messages import FLAG_CREATE, NetlinkRequest
from svcproxy.netlink.socket import NETFILTER
from svcproxy.state.desired import Changes
from testbed import netns
from testbed.cluster import PREFIX
from testbed.netns import NetNS
from testbed.waiting import eventually
from tests.unit.conntrack.ports import (
    V4,
    V6,
    Addresses,
    both_families,
    by_name,
    change,
    service_port,
    target,
)

pytestmark = pytest.mark.kernel

NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
EVERYTHING = Destination(0, b"", 0)  # no entry has protocol 0, so the kernel is asked for all


Entry = tuple[str, str, str]  # protocol, original destination, source of the replies


class Space:
    """A network namespace with its own connection tracking table and the two node addresses."""

    def __init__(self) -> None:
        self.netns = NetNS(f"{PREFIX}-{os.getpid()}-conntrack")

    def create(self, net: Addresses, entries: Iterable[Entry], *extra: bytes) -> None:
        """Create entries, each from a different port of the client."""
        attributes = attribute(7, struct.pack("!I", 600)) + b"".join(extra)  # CTA_TIMEOUT
        requests = []
        for number, (protocol, destination, source) in enumerate(entries):
            client = target(f"{net.client}:{10000 + number % 50000}")
            to, back = target(destination), target(source)
            tuples = conntrack.conntrack_tuple(1, NUMBERS[protocol], client, to)
            tuples += conntrack.conntrack_tuple(2, NUMBERS[protocol], back, client)
            if protocol == "tcp":
                established = nest(1, attribute(1, b"\x03"))
                tuples += nest(4, established)  # CTA_PROTOINFO
            requests.append(
                conntrack.conntrack_request(
                    net.family, conntrack.CT_NEW, FLAG_CREATE, tuples + attributes
                )
            )
        self.netns.call(lambda: _send(requests))

    def entries(self, net: Addresses) -> list[Entry]:
        """Return the entries of one family."""
        found: list[Flow] = []

        def keep(flow: Flow) -> bool:
            found.append(flow)
            return False

        self.netns.call(lambda: _unfiltered(net.family).find(EVERYTHING, keep))
        return sorted(_entry(flow) for flow in found)


def _send(requests: list[NetlinkRequest]) -> None:
    with NetlinkClient(NETFILTER) as client:
        assert client.execute(requests) == []


def _unfiltered(family: IPFamily) -> Table:
    table = Table(family)
    table.filtering = False
    return table


def _text(address: bytes, port: int) -> str:
    return f"{ip_address(address)}:{port}"


def _entry(flow: Flow) -> Entry:
    names = {number: name for name, number in NUMBERS.items()}
    return names[flow.protocol], _text(flow.address, flow.port), _text(*flow.source)


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space()
    netns.ip_batch([f"netns add {made.netns.name}"])
    try:
        made.netns.sysctl({"ipv6/conf/all/disable_ipv6": "0", "ipv6/conf/all/accept_dad": "0"})
        lines = ["link set lo up", f"addr add {V4.node} dev lo", f"addr add {V6.node} dev lo nodad"]
        netns.ip_batch(lines, made.netns.name)
        yield made
    finally:
        netns.remove([made.netns.name])


def dns(
    net: Addresses, pods: Iterable[str], protocol: Protocol = Protocol.UDP
) -> dict[ServicePortName, ServicePort]:
    frontends = (f"{net.vip}:53", f"{net.external}:53", ":30053")
    return by_name(
        service_port("dns", frontends, [f"{pod}:5353" for pod in pods], protocol=protocol)
    )


def to_dns(net: Addresses, pod: str, protocol: str = "udp") -> list[Entry]:
    places = (f"{net.vip}:53", f"{net.external}:53", f"{net.node}:30053")
    return [(protocol, place, f"{pod}:5353") for place in places]


def untouched(net: Addresses, pod: str) -> list[Entry]:
    """Flows that resemble stale ones but do not belong to the Service."""
    return [
        ("udp", f"{net.other_vip}:53", f"{pod}:5353"),
        ("udp", f"{net.other_vip}:30053", f"{pod}:5353"),
        ("udp", f"{net.vip}:54", f"{pod}:5353"),
        ("udp", f"{net.other_host}:30053", f"{net.other_host}:30053"),
        ("tcp", f"{net.vip}:53", f"{pod}:5353"),
        ("tcp", f"{net.node}:30053", f"{pod}:5353"),
        ("udp", f"{pod}:53", f"{pod}:53"),
    ]


def clean(space: Space, net: Addresses, changes: Changes) -> int:
    return space.netns.call(lambda: StaleFlows(net.family).clean(changes))


def scaled(
    net: Addresses, before: Iterable[str], after: Iterable[str] | None, protocol: Protocol
) -> Changes:
    """A change of the endpoints; the Service is deleted if ``after`` is ``None``."""
    return change(dns(net, before, protocol), {} if after is None else dns(net, after, protocol))


@both_families
@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.SCTP])
def test_exactly_the_flows_to_a_removed_endpoint_are_deleted(
    space: Space, net: Addresses, protocol: Protocol
) -> None:
    a, b, _ = net.pods
    stale, kept = to_dns(net, b, protocol.keyword), to_dns(net, a, protocol.keyword)
    kept += untouched(net, b)
    space.create(net, [*stale, *kept])
    assert clean(space, net, scaled(net, [a, b], [a], protocol)) == len(stale)
    assert space.entries(net) == sorted(kept)


@both_families
@pytest.mark.parametrize("after", [[], None], ids=["scaled to zero", "disappeared"])
def test_flows_of_a_service_without_endpoints_are_deleted(
    space: Space, net: Addresses, after: list[str] | None
) -> None:
    a, b, _ = net.pods
    # A program on the node may use the node port's number now.
    kept = [*untouched(net, b), ("udp", f"{net.node}:30053", f"{net.node}:30053")]
    space.create(net, [*to_dns(net, a), *to_dns(net, b), *kept])
    assert clean(space, net, scaled(net, [a, b], after, Protocol.UDP)) == 6
    assert space.entries(net) == sorted(kept)


@both_families
def test_flows_that_began_before_the_first_endpoint_are_deleted(
    space: Space, net: Addresses
) -> None:
    places = (f"{net.vip}:53", f"{net.external}:53", f"{net.node}:30053")
    kept = untouched(net, net.pods[1])
    space.create(net, [*(("udp", place, place) for place in places), *kept])
    assert clean(space, net, scaled(net, [], [net.pods[0]], Protocol.UDP)) == 3
    assert space.entries(net) == sorted(kept)


@both_families
def test_the_other_family_is_left_alone(space: Space, net: Addresses) -> None:
    other = V6 if net is V4 else V4
    for one in (net, other):
        space.create(one, to_dns(one, one.pods[0]))
    assert clean(space, net, scaled(net, [net.pods[0]], [], Protocol.UDP)) == 3
    assert space.entries(net) == []
    assert space.entries(other) == sorted(to_dns(other, other.pods[0]))


@both_families
def test_a_start_checks_all_ports(space: Space, net: Addresses) -> None:
    a, b, _ = net.pods
    many = by_name(
        *(service_port(f"s{n}", [f"{net.vip}:{1000 + n}"], [f"{a}:53"]) for n in range(100))
    )
    right = [("udp", f"{net.vip}:{1000 + n}", f"{a}:53") for n in range(100)]
    wrong = [("udp", f"{net.vip}:{1000 + n}", f"{b}:53") for n in range(100)]
    kept = [*right, *to_dns(net, a), *untouched(net, b)]
    space.create(net, [*wrong, *to_dns(net, b), *kept])
    ports = {**many, **dns(net, [a])}
    assert space.netns.call(lambda: StaleFlows(net.family).clean_all(ports)) == 103
    assert space.entries(net) == sorted(kept)


@both_families
def test_the_kernel_filters(space: Space, net: Addresses) -> None:
    """The number of entries that reach user space depends on the frontend, not on the table."""
    others = [("udp", f"{net.other_vip}:54", f"{net.pods[0]}:5353")] * 3000
    space.create(net, [*others, *to_dns(net, net.pods[0])])
    seen: list[Flow] = []

    def see(flow: Flow) -> bool:
        seen.append(flow)
        return True

    def look() -> tuple[int, bool]:
        table = Table(net.family)
        found = table.find(Destination(17, target(f"{net.vip}:53").address, 53), see)
        return len(found), table.filtering

    # The kernel does not filter by IPv6 address, so flows to both addresses with port 53 arrive.
    hits = 1 if net is V4 else 2
    assert space.netns.call(look) == (hits, True)
    assert len(seen) == hits
    assert len(space.entries(net)) == 3003


def test_entries_without_ports_are_ignored_without_filters(space: Space) -> None:
    icmp = "-p icmp --icmp-type 8 --icmp-code 0 --icmp-id 1 -t 60"
    space.netns.run("conntrack", "-I", "-s", V4.client, "-d", V4.vip, *icmp.split())
    space.create(V4, to_dns(V4, V4.pods[0]))

    def sweep() -> int:
        flows = StaleFlows(IPFamily.IPV4, _unfiltered(IPFamily.IPV4))
        return flows.clean(scaled(V4, [V4.pods[0]], [], Protocol.UDP))

    assert space.netns.call(sweep) == 3


@both_families
def test_entries_in_zones_are_found_and_deleted_there(space: Space, net: Addresses) -> None:
    space.create(net, to_dns(net, net.pods[0]), attribute(18, struct.pack("!H", 7)))
    space.create(net, to_dns(net, net.pods[1]))
    changes = scaled(net, net.pods[:2], net.pods[1:2], Protocol.UDP)
    assert clean(space, net, changes) == 3
    assert space.entries(net) == sorted(to_dns(net, net.pods[1]))


@both_families
def test_another_flow_between_the_same_ends_is_not_deleted(space: Space, net: Addresses) -> None:
    entry = ("udp", f"{net.vip}:53", f"{net.pods[0]}:5353")
    table, query = Table(net.family), Destination(17, b"", 53)
    space.create(net, [entry])
    (flow,) = space.netns.call(lambda: table.find(query, lambda _: True))
    start, end = conntrack._attributes(flow.handle, 0, len(flow.handle))[12]  # CTA_ID
    number = bytes(byte ^ 0xFF for byte in flow.handle[start:end])
    other = flow._replace(handle=flow.handle[:start] + number + flow.handle[end:])
    assert space.netns.call(lambda: table.delete([other])) == 0
    assert space.entries(net) == [entry]
    assert space.netns.call(lambda: table.delete([flow, flow])) == 1
    assert space.entries(net) == []


def test_many_flows_are_deleted_in_batches(space: Space) -> None:
    pods = V4.pods
    space.create(V4, [("udp", f"{V4.vip}:53", f"{pods[0]}:5353")] * 2050)
    assert clean(space, V4, scaled(V4, pods[:1], pods[1:], Protocol.UDP)) == 2050
    assert space.entries(V4) == []


@both_families
def test_local_addresses_are_recognized(space: Space, net: Addresses) -> None:
    loopback = "127.0.0.53" if net is V4 else "::1"
    table = Table(net.family)
    addresses = [ip_address(a).packed for a in (net.node, loopback, net.vip, net.other_host)]

    def verdicts() -> list[bool]:
        return space.netns.call(lambda: [table.is_local(address) for address in addresses])

    # The kernel creates an IPv6 address's route shortly after the address (``addrconf_dad_start``).
    eventually(lambda: verdicts() == [True, True, False, False], "the node's own addresses")
