"""Messages of ctnetlink: listing and deleting connection tracking entries.

Layouts and numbers are those of ``linux/netfilter/nfnetlink.h`` and ``nfnetlink_conntrack.h``; the
filter flags are those of the kernel's ``net/netfilter/nf_internals.h`` (Linux 5.8). Headers are in
host byte order, numbers that describe packets in network byte order.
"""

from collections.abc import Iterator, Mapping
from struct import Struct
from typing import NamedTuple

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import HEADER, attribute, nest
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.messages import NetlinkRequest
from svcproxy.netlink.errors import MalformedError

CT_NEW, CT_GET, CT_DELETE = 0x100, 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | message

EVENTS_NEW = 1
"""The multicast group of new connections (``NFNLGRP_CONNTRACK_NEW``)."""

CTA_TUPLE_ORIG, CTA_TUPLE_REPLY = 1, 2
_CTA_PROTOINFO, _PROTOINFO_TCP, _TCP_STATE = 4, 1, 1
_CTA_ID, _CTA_ZONE, _CTA_FILTER = 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_ADDRESSES = {4: (1, 2), 16: (3, 4)}  # source and destination, by the length of an address
_PROTO_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_FILTER_ORIG, _FILTER_REPLY = 1, 2
_BY_DESTINATION, _BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 1, 1 << 3, 1 << 5
_TYPE_MASK = 0x3FFF

_NFGEN = Struct("=BBH")
_U32 = Struct("=I")
_U16 = Struct("!H")


class AddressPort(NamedTuple):
    """A packed address (4 or 16 bytes) and a port."""

    address: bytes
    port: int


class Destination(NamedTuple):
    """An original destination of flows: protocol number, packed address and port.

    In a query, an empty address matches any address and port 0 any port.
    """

    protocol: int
    address: bytes
    port: int


class Flow(NamedTuple):
    """A connection tracking entry.

    Attributes:
        protocol: the protocol number.
        address: the packed address of the original destination.
        port: the port of the original destination.
        source: the source of the replies: the endpoint, or the original destination if the flow is
            not translated.
        handle: the entry's attributes, by which the kernel finds it again.
    """

    protocol: int
    address: bytes
    port: int
    source: AddressPort
    handle: bytes


class Connection(NamedTuple):
    """A connection, from an entry in a dump or from an event.

    Attributes:
        protocol: the protocol number.
        client: the packed source address of the original direction.
        destination: the original destination.
        endpoint: the source of the replies; the destination if it is not translated.
    """

    protocol: int
    client: bytes
    destination: AddressPort
    endpoint: AddressPort


def conntrack_tuple(
    kind: int, protocol: int, source: AddressPort, destination: AddressPort
) -> bytes:
    """Encode one direction of a flow, byte for byte as the kernel does."""
    by_source, by_destination = _ADDRESSES[len(source.address)]
    return nest(
        kind,
        nest(
            _TUPLE_IP,
            attribute(by_source, source.address),
            attribute(by_destination, destination.address),
        ),
        nest(
            _TUPLE_PROTO,
            attribute(_PROTO_NUMBER, bytes([protocol])),
            attribute(_SOURCE_PORT, _U16.pack(source.port)),
            attribute(_DESTINATION_PORT, _U16.pack(destination.port)),
        ),
    )


def conntrack_request(family: IPFamily, kind: int, flags: int, attributes: bytes) -> NetlinkRequest:
    """Build a request to the connection tracking of one family."""
    return NetlinkRequest(kind, flags, _NFGEN.pack(FAMILY_NUMBERS[family], 0, 0) + attributes)


def dump_request(family: IPFamily, query: Destination | None) -> NetlinkRequest:
    """Build the request for the flows of a family that match ``query``; all flows if ``None``.

    Kernels before 5.8 ignore filters and return all flows. No kernel compares SCTP ports. IPv6
    addresses are compared the wrong way round (``ctnetlink_filter_match_tuple``, seen in 6.18): the
    filter returns exactly the flows that do not match. So IPv6 addresses are left out of it.
    """
    attributes = b"" if query is None else _filter(query)
    return conntrack_request(family, CT_GET, 0, attributes)


def filters_by_address(family: IPFamily) -> bool:
    """Return whether the kernel filters addresses of this family correctly."""
    return family is IPFamily.IPV4


def _filter(query: Destination) -> bytes:
    flags, parts = _BY_PROTOCOL, []
    proto = [attribute(_PROTO_NUMBER, bytes([query.protocol]))]
    if query.port:
        flags |= _BY_DESTINATION_PORT
        proto.append(attribute(_DESTINATION_PORT, _U16.pack(query.port)))
    if len(query.address) == 4:
        flags |= _BY_DESTINATION
        parts.append(nest(_TUPLE_IP, attribute(_ADDRESSES[4][1], query.address)))
    parts.append(nest(_TUPLE_PROTO, *proto))
    wanted = [attribute(_FILTER_ORIG, _U32.pack(flags)), attribute(_FILTER_REPLY, _U32.pack(0))]
    return nest(CTA_TUPLE_ORIG, *parts) + nest(_CTA_FILTER, *wanted)


def delete_request(family: IPFamily, flow: Flow) -> NetlinkRequest:
    """Build the request that deletes exactly this entry; ENOENT if it does not exist.

    The request includes the entry's id. Otherwise it could delete a new flow between the same
    addresses and ports. (The kernel derives ids from memory addresses, so a new flow in the same
    memory has the same id.)
    """
    found = _attributes(flow.handle, 0, len(flow.handle))
    kept = (CTA_TUPLE_ORIG, _CTA_ZONE, _CTA_ID)
    # An attribute's header lies in the four bytes before its value.
    parts = (flow.handle[found[k][0] - 4 : found[k][1]] for k in kept if k in found)
    attributes = b"".join(part + bytes(-len(part) % 4) for part in parts)
    return conntrack_request(family, CT_DELETE, 0, attributes)


def original_source(flow: Flow) -> AddressPort:
    """Return the source of the first packet of a flow.

    Raises:
        MalformedError: the entry is malformed.
    """
    found = _attributes(flow.handle, 0, len(flow.handle))
    ends = _ends(flow.handle, *found[CTA_TUPLE_ORIG]) if CTA_TUPLE_ORIG in found else None
    if ends is None:
        raise MalformedError("an entry without its original source")
    return ends[1]


def _both_ways(length: int, fill: int) -> bytes:
    end = AddressPort(bytes([fill]) * length, fill << 8 | fill)
    kinds = (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY)
    return b"".join(conntrack_tuple(kind, fill, end, end) for kind in kinds)


class _TupleLayout:
    """The positions of an entry's fields when the kernel writes its tuples in the usual order.

    A dump can have a million entries. One masked comparison of all attribute headers is several
    times faster than parsing attribute by attribute.
    """

    def __init__(self, length: int) -> None:
        zeros, ones = _both_ways(length, 0x00), _both_ways(length, 0xFF)
        self.start, self.end = _NFGEN.size, _NFGEN.size + len(zeros)
        self.expected = int.from_bytes(zeros, "big")
        # Bits that differ between the two are data, the others are structure.
        self.mask = ~(self.expected ^ int.from_bytes(ones, "big"))
        original = f"{16 + length}x {length}s 8x B 15x H 2x"
        reply = f"12x {length}s {20 + length}x H 10x"
        self.fields = Struct(f"!{_NFGEN.size}x {original} {reply}")
        ends = f"12x {length}s 4x {length}s 8x B 15x H 2x"
        self.connection = Struct(f"!{_NFGEN.size}x {ends} {reply}")

    def fits(self, body: bytes) -> bool:
        """Whether an entry's tuples are in the usual order."""
        if len(body) < self.end:
            return False
        return int.from_bytes(body[self.start : self.end], "big") & self.mask == self.expected


_LAYOUTS = {2: _TupleLayout(4), 10: _TupleLayout(16)}


def decode_flow(body: bytes) -> Flow | None:
    """Decode the entry in a message's body; ``None`` if it has no ports (ICMP, GRE etc.).

    Raises:
        MalformedError: a length does not fit.
    """
    layout = _LAYOUTS.get(body[0]) if body else None
    if layout is not None and layout.fits(body):
        address, protocol, port, source, source_port = layout.fields.unpack_from(body)
        target = AddressPort(source, source_port)
        return Flow(protocol, address, port, target, body[_NFGEN.size :])
    found = _decode_by_attributes(body)
    if found is None:
        return None
    return Flow(found.protocol, *found.destination, found.endpoint, body[_NFGEN.size :])


def decode_connection(body: bytes) -> Connection | None:
    """Decode the entry in a message's body; ``None`` if it has no ports (ICMP, GRE etc.).

    Raises:
        MalformedError: a length does not fit.
    """
    layout = _LAYOUTS.get(body[0]) if body else None
    if layout is not None and layout.fits(body):
        client, address, protocol, port, source, source_port = layout.connection.unpack_from(body)
        return Connection(
            protocol, client, AddressPort(address, port), AddressPort(source, source_port)
        )
    return _decode_by_attributes(body)


def tcp_state(body: bytes) -> int | None:
    """Return the state of a TCP connection (``enum tcp_conntrack``); ``None`` if it has none.

    Raises:
        MalformedError: a length does not fit.
    """
    start, end = _NFGEN.size, len(body)
    for kind in (_CTA_PROTOINFO, _PROTOINFO_TCP, _TCP_STATE):
        found = _attributes(body, start, end).get(kind)
        if found is None:
            return None
        start, end = found
    return body[start] if end > start else None


def _decode_by_attributes(body: bytes) -> Connection | None:
    """Decode an entry whose tuples have more attributes than usual, for example zones."""
    found = _attributes(body, _NFGEN.size, len(body))
    if CTA_TUPLE_ORIG not in found or CTA_TUPLE_REPLY not in found:
        return None
    original = _ends(body, *found[CTA_TUPLE_ORIG])
    reply = _ends(body, *found[CTA_TUPLE_REPLY])
    if original is None or reply is None:
        return None
    protocol, client, destination = original
    return Connection(protocol, client.address, destination, reply[1])


def _ends(body: bytes, start: int, end: int) -> tuple[int, AddressPort, AddressPort] | None:
    """Decode the protocol, source and destination of a tuple; ``None`` if it has no ports."""
    parts = _attributes(body, start, end)
    if _TUPLE_IP not in parts or _TUPLE_PROTO not in parts:
        return None
    ip = _attributes(body, *parts[_TUPLE_IP])
    proto = _attributes(body, *parts[_TUPLE_PROTO])
    kinds = next((pair for pair in _ADDRESSES.values() if pair[0] in ip and pair[1] in ip), None)
    if kinds is None or not {_PROTO_NUMBER, _SOURCE_PORT, _DESTINATION_PORT} <= proto.keys():
        return None
    source, destination = (body[slice(*ip[kind])] for kind in kinds)
    ports = (_SOURCE_PORT, _DESTINATION_PORT)
    if (len(source), len(destination)) not in {(4, 4), (16, 16)}:
        raise MalformedError(f"address of {len(source)} bytes")
    if any(end - begin < size for begin, end, size in _numbers(proto)):
        raise MalformedError("half a number in a tuple")
    from_port, to_port = (_U16.unpack_from(body, proto[kind][0])[0] for kind in ports)
    number = body[proto[_PROTO_NUMBER][0]]
    return number, AddressPort(source, from_port), AddressPort(destination, to_port)


def _numbers(proto: Mapping[int, tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield where each number of a tuple begins and ends, and how many bytes it needs."""
    for kind, size in ((_PROTO_NUMBER, 1), (_SOURCE_PORT, 2), (_DESTINATION_PORT, 2)):
        yield *proto[kind], size


def _attributes(data: bytes, start: int, end: int) -> dict[int, tuple[int, int]]:
    """Return where the value of each attribute between ``start`` and ``end`` begins and ends."""
    found = {}
    while start + HEADER.size <= end:
        size, kind = HEADER.unpack_from(data, start)
        if size < HEADER.size or start + size > end:
            raise MalformedError(f"attribute of {size} bytes at byte {start} of {end}")
        found[kind & _TYPE_MASK] = (start + HEADER.size, start + size)
        start += (size + 3) & ~3
    return found
