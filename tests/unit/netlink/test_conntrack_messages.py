"""Messages of connection tracking and of route look-ups."""

import struct
from collections.abc import Iterable

import pytest

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core import conntrack
from svcproxy.netlink.core import messages as wire
from svcproxy.netlink.core.attributes import attribute, nest
from svcproxy.netlink.core.conntrack import (
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    AddressPort,
    Destination,
    Flow,
)
from svcproxy.netlink.core.routes import is_local_route, route_request
from svcproxy.netlink.errors import MalformedError
from tests.unit.conntrack.ports import target

V4, V6 = IPFamily.IPV4, IPFamily.IPV6
CLIENT, VIP, POD = (
    target("192.168.50.100:40000"),
    target("10.96.0.10:53"),
    target("10.244.1.2:5353"),
)
CLIENT6, VIP6, POD6 = (
    target("fd00:1::64:40000"),
    target("fd00:10:96::a:53"),
    target("fd00:2::2:5353"),
)
ZONE = attribute(18, struct.pack("!H", 7))
ID = attribute(12, b"\x01\x02\x03\x04")
TIMEOUT = attribute(7, struct.pack("!I", 30))


def tuples(client: AddressPort, vip: AddressPort, pod: AddressPort, protocol: int = 17) -> bytes:
    original = conntrack.conntrack_tuple(CTA_TUPLE_ORIG, protocol, client, vip)
    return original + conntrack.conntrack_tuple(CTA_TUPLE_REPLY, protocol, pod, client)


def body(family: int, *parts: bytes) -> bytes:
    return struct.pack("=BBH", family, 0, 0) + b"".join(parts)


def only(parts: Iterable[wire.NetlinkMessage]) -> wire.NetlinkMessage:
    (found,) = parts
    return found


def test_a_tuple_is_encoded_as_the_kernel_encodes_it() -> None:
    # Recorded from a dump: original direction of a UDP flow.
    recorded = (
        "34000180 14000180 08000100 c0a83264 08000200 0a60000a"
        "1c000280 05000100 11000000 06000200 9c400000 06000300 00350000"
    )
    encoded = conntrack.conntrack_tuple(CTA_TUPLE_ORIG, 17, CLIENT, VIP)
    assert encoded == bytes.fromhex(recorded)


@pytest.mark.parametrize(
    ("number", "ends"), [(2, (CLIENT, VIP, POD)), (10, (CLIENT6, VIP6, POD6))], ids=["v4", "v6"]
)
@pytest.mark.parametrize("protocol", [17, 132])
def test_an_entry_is_decoded(
    number: int, ends: tuple[AddressPort, AddressPort, AddressPort], protocol: int
) -> None:
    handle = tuples(*ends, protocol) + TIMEOUT + ID
    expected = Flow(protocol, *ends[1], ends[2], handle)
    assert conntrack.decode_flow(body(number, handle)) == expected
    # The fast and the general decoder agree.
    connection = conntrack.Connection(protocol, ends[0].address, ends[1], ends[2])
    assert conntrack.decode_connection(body(number, handle)) == connection
    assert conntrack._decode_by_attributes(body(number, handle)) == connection


@pytest.mark.parametrize(("number", "ends"), [(2, (CLIENT, VIP, POD)), (10, (CLIENT6, VIP6, POD6))])
def test_an_entry_with_zones_in_its_tuples_is_decoded(
    number: int, ends: tuple[AddressPort, AddressPort, AddressPort]
) -> None:
    plain = tuples(*ends)
    half = len(plain) // 2
    zone = attribute(3, struct.pack("!H", 7))
    first = nest(CTA_TUPLE_ORIG, plain[4:half], zone)
    found = conntrack.decode_flow(body(number, first, plain[half:]))
    assert found == Flow(17, *ends[1], ends[2], first + plain[half:])


def test_the_state_of_a_tcp_connection() -> None:
    established = nest(4, nest(1, attribute(1, b"\x03"), attribute(2, b"\x07")))
    assert conntrack.tcp_state(body(2, tuples(CLIENT, VIP, POD, 6), TIMEOUT, established)) == 3
    assert conntrack.tcp_state(body(2, tuples(CLIENT, VIP, POD))) is None
    assert conntrack.tcp_state(body(2, nest(4, nest(1, attribute(1, b""))))) is None


def test_entries_without_ports_are_none() -> None:
    ip = nest(1, attribute(1, CLIENT.address), attribute(2, VIP.address))
    icmp = nest(2, attribute(1, b"\x01"), attribute(4, b"\x00\x01"))
    entry = nest(CTA_TUPLE_ORIG, ip, icmp) + nest(CTA_TUPLE_REPLY, ip, icmp)
    assert conntrack.decode_flow(body(2, entry)) is None
    assert conntrack.decode_flow(body(2)) is None
    assert conntrack.decode_flow(body(2, nest(CTA_TUPLE_ORIG, ip))) is None
    assert conntrack.decode_flow(b"") is None
    assert conntrack.decode_flow(body(7, tuples(CLIENT, VIP, POD))) is not None  # a new family


def test_a_deletion_names_the_entry_and_nothing_else() -> None:
    handle = tuples(CLIENT, VIP, POD) + TIMEOUT + ID + ZONE
    request = conntrack.delete_request(V4, Flow(17, *VIP, POD, handle))
    assert (request.kind, request.flags) == (conntrack.CT_DELETE, 0)
    original = conntrack.conntrack_tuple(CTA_TUPLE_ORIG, 17, CLIENT, VIP)
    assert request.body == body(2, original, ZONE, ID)


def filter_of(request: wire.NetlinkRequest) -> tuple[int, dict[int, tuple[int, int]]]:
    """The filter's flags for the original direction, and the positions of the attributes."""
    found = conntrack._attributes(request.body, 4, len(request.body))
    flags = conntrack._attributes(request.body, *found[25])
    return int(struct.unpack_from("=I", request.body, flags[1][0])[0]), found


def test_a_dump_asks_for_address_protocol_and_port() -> None:
    request = conntrack.dump_request(V4, Destination(17, VIP.address, 53))
    assert (request.kind, request.flags) == (conntrack.CT_GET, 0)
    flags, found = filter_of(request)
    assert flags == 0b101010
    assert VIP.address in request.body[slice(*found[CTA_TUPLE_ORIG])]


def test_a_dump_for_a_node_port_asks_for_protocol_and_port() -> None:
    assert filter_of(conntrack.dump_request(V4, Destination(17, b"", 30053)))[0] == 0b101000
    assert filter_of(conntrack.dump_request(V6, Destination(132, b"", 0)))[0] == 0b001000


def test_the_kernel_is_never_asked_to_compare_ipv6_addresses() -> None:
    request = conntrack.dump_request(V6, Destination(17, VIP6.address, 53))
    assert filter_of(request)[0] == 0b101000
    assert VIP6.address not in request.body
    assert not conntrack.filters_by_address(V6)


def test_a_dump_without_a_query_has_no_attributes() -> None:
    assert conntrack.dump_request(V6, None).body == body(10)


def test_messages_are_split() -> None:
    error = struct.pack("=IHHIIi", 20, wire.ERROR, 0, 5, 0, -2)
    odd = struct.pack("=IHHII", 17, 99, wire.FLAG_INTERRUPTED, 6, 0) + b"x\0\0\0"
    first, second = wire.messages(error + odd)
    assert (first.kind, first.sequence, first.error) == (wire.ERROR, 5, 2)
    assert (second.kind, second.flags, second.body, second.error) == (99, 0x10, b"x", 0)
    for wrong in (bytes(16), b"short", error[:-1], error + odd[:5]):
        with pytest.raises(MalformedError):
            list(wire.messages(wrong))


def test_routes_identify_local_addresses() -> None:
    request = route_request(V6, VIP6.address)
    assert (request.kind, request.body[:2]) == (26, bytes([10, 128]))
    assert request.body[12:] == attribute(1, VIP6.address)
    answers = [
        struct.pack("=IHHII8BI", 28, 24, 0, 1, 0, 2, 32, 0, 0, 255, 0, 0, kind, 0)
        for kind in (1, 2)
    ]
    verdicts = [is_local_route(only(wire.messages(answer))) for answer in answers]
    assert verdicts == [False, True]
    unreachable = struct.pack("=IHHIIi", 20, wire.ERROR, 0, 1, 0, -101)
    assert not is_local_route(only(wire.messages(unreachable)))
