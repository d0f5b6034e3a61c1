"""Messages of ctnetlink and rtnetlink as bytes: encoding and decoding, no sockets.

Layouts and numbers are those of ``linux/netlink.h``, ``linux/rtnetlink.h``,
``linux/netfilter/nfnetlink.h`` and ``nfnetlink_conntrack.h``; the filter flags are the
kernel's ``net/netfilter/nf_internals.h`` (since 5.8). Headers are in host byte order, what
describes packets is in network byte order.
"""

from collections.abc import Iterator, Mapping
from struct import Struct

from svcproxy.conntrack.core.stale import Flow, Key, Target
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import HEADER, MalformedError, attribute, nest
from svcproxy.netlink.core.messages import FLAG_ACK, FLAG_DUMP, Message, Request, encode

CT_NEW, CT_GET, CT_DELETE = 0x100, 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | message
_ROUTE, _GET_ROUTE = 24, 26
_ROUTE_LOCAL = 2  # RTN_LOCAL

CTA_TUPLE_ORIG, CTA_TUPLE_REPLY = 1, 2
_CTA_ID, _CTA_ZONE, _CTA_FILTER = 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_ADDRESSES = {4: (1, 2), 16: (3, 4)}  # source and destination, by the length of an address
_PROTO_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_FILTER_ORIG, _FILTER_REPLY = 1, 2
_BY_DESTINATION, _BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 1, 1 << 3, 1 << 5
_TYPE_MASK = 0x3FFF

_NFGEN = Struct("=BBH")
_ROUTE_MESSAGE = Struct("=8BI")
_U32 = Struct("=I")
_U16 = Struct("!H")
_FAMILIES = {IPFamily.IPV4: 2, IPFamily.IPV6: 10}


def conntrack_tuple(kind: int, protocol: int, source: Target, destination: Target) -> bytes:
    """Encode one direction of a flow, exactly as the kernel does."""
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


def conntrack_message(
    family: IPFamily, kind: int, flags: int, sequence: int, attributes: bytes
) -> bytes:
    """Encode a request to the connection tracking of one family."""
    body = _NFGEN.pack(_FAMILIES[family], 0, 0) + attributes
    return encode(Request(kind, flags, body), sequence)


def dump_request(family: IPFamily, query: Key | None, sequence: int) -> bytes:
    """Encode a request for the flows of a family that match ``query``, all if it is ``None``.

    Kernels before 5.8 know nothing of filters and send everything. SCTP ports are not compared
    by any kernel, and IPv6 addresses are compared the wrong way round: the filter lets through
    exactly what it was to keep out (``ctnetlink_filter_match_tuple``, seen in 6.18). So they
    are never asked for.
    """
    attributes = b"" if query is None else _filter(query)
    return conntrack_message(family, CT_GET, FLAG_DUMP, sequence, attributes)


def filters_by_address(family: IPFamily) -> bool:
    """Whether the kernel's filter can be trusted with addresses of this family."""
    return family is IPFamily.IPV4


def _filter(query: Key) -> bytes:
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


def delete_request(family: IPFamily, flow: Flow, sequence: int) -> bytes:
    """Encode the deletion of exactly this entry; the answer is an ``ERROR`` message.

    The entry's number goes along: it keeps a new flow between the same ends, which may have
    taken its place meanwhile, from being hit (unless it got the same memory, hence number).
    """
    found = _attributes(flow.handle, 0, len(flow.handle))
    kept = (CTA_TUPLE_ORIG, _CTA_ZONE, _CTA_ID)
    # An attribute's header lies in the four bytes before its value.
    parts = (flow.handle[found[k][0] - 4 : found[k][1]] for k in kept if k in found)
    attributes = b"".join(part + bytes(-len(part) % 4) for part in parts)
    return conntrack_message(family, CT_DELETE, FLAG_ACK, sequence, attributes)


def _both_ways(length: int, fill: int) -> bytes:
    end = Target(bytes([fill]) * length, fill << 8 | fill)
    kinds = (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY)
    return b"".join(conntrack_tuple(kind, fill, end, end) for kind in kinds)


class _Layout:
    """Where the fields of an entry lie when the kernel writes its tuples in the usual order.

    A dump can have a million entries; one masked comparison of all attribute headers replaces
    a walk from attribute to attribute, which takes several times as long.
    """

    def __init__(self, length: int) -> None:
        zeros, ones = _both_ways(length, 0x00), _both_ways(length, 0xFF)
        self.start, self.end = _NFGEN.size, _NFGEN.size + len(zeros)
        self.expected = int.from_bytes(zeros, "big")
        # What differs between the two is data, what does not is structure.
        self.mask = ~(self.expected ^ int.from_bytes(ones, "big"))
        original = f"{16 + length}x {length}s 8x B 15x H 2x"
        reply = f"12x {length}s {20 + length}x H 10x"
        self.fields = Struct(f"!{_NFGEN.size}x {original} {reply}")


_LAYOUTS = {2: _Layout(4), 10: _Layout(16)}


def decode_flow(body: bytes) -> Flow | None:
    """Decode the entry in a message's body; ``None`` if it has no ports (ICMP, GRE, ...).

    Raises:
        MalformedError: a length does not fit.
    """
    layout = _LAYOUTS.get(body[0]) if body else None
    if layout is not None and len(body) >= layout.end:
        headers = int.from_bytes(body[layout.start : layout.end], "big") & layout.mask
        if headers == layout.expected:
            address, protocol, port, source, source_port = layout.fields.unpack_from(body)
            target = Target(source, source_port)
            return Flow(protocol, address, port, target, body[_NFGEN.size :])
    return _decode_step_by_step(body)


def _decode_step_by_step(body: bytes) -> Flow | None:
    """Decode an entry whose tuples hold something else besides, for example zones."""
    found = _attributes(body, _NFGEN.size, len(body))
    if CTA_TUPLE_ORIG not in found or CTA_TUPLE_REPLY not in found:
        return None
    original = _ends(body, *found[CTA_TUPLE_ORIG])
    reply = _ends(body, *found[CTA_TUPLE_REPLY])
    if original is None or reply is None:
        return None
    protocol, _, destination = original
    return Flow(protocol, *destination, reply[1], body[_NFGEN.size :])


def _ends(body: bytes, start: int, end: int) -> tuple[int, Target, Target] | None:
    """The protocol, source and destination of an encoded tuple, if it has ports."""
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
    return number, Target(source, from_port), Target(destination, to_port)


def _numbers(proto: Mapping[int, tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Where the numbers of a tuple begin and end, and how many bytes each needs."""
    for kind, size in ((_PROTO_NUMBER, 1), (_SOURCE_PORT, 2), (_DESTINATION_PORT, 2)):
        yield *proto[kind], size


def _attributes(data: bytes, start: int, end: int) -> dict[int, tuple[int, int]]:
    """Where the value of each attribute between ``start`` and ``end`` begins and ends."""
    found = {}
    while start + HEADER.size <= end:
        size, kind = HEADER.unpack_from(data, start)
        if size < HEADER.size or start + size > end:
            raise MalformedError(f"attribute of {size} bytes at byte {start} of {end}")
        found[kind & _TYPE_MASK] = (start + HEADER.size, start + size)
        start += (size + 3) & ~3
    return found


def route_request(family: IPFamily, address: bytes, sequence: int) -> bytes:
    """Encode the question which route packets to ``address`` take."""
    lengths = (_FAMILIES[family], len(address) * 8)
    body = _ROUTE_MESSAGE.pack(*lengths, 0, 0, 0, 0, 0, 0, 0) + attribute(1, address)  # RTA_DST
    return encode(Request(_GET_ROUTE, 0, body), sequence)


def is_local_route(message: Message) -> bool:
    """Whether the answer to ``route_request`` says that the address is the machine's own."""
    if message.kind != _ROUTE or len(message.body) < _ROUTE_MESSAGE.size:
        return False
    return bool(_ROUTE_MESSAGE.unpack_from(message.body)[7] == _ROUTE_LOCAL)
