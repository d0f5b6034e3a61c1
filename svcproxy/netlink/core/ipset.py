"""Messages of ipset's netlink interface: encoding requests, decoding answers.

The numbers are those of ``linux/netfilter/ipset/ip_set.h``. Numbers within attributes are
big-endian, and the attribute type has a flag for that. Sets are created as kube-proxy creates
them, without timeouts, counters or comments.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import NamedTuple

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.addresses import packed, text
from svcproxy.netlink.core.attributes import attribute, collect, nest, string, walk
from svcproxy.netlink.core.families import FAMILY_NUMBERS, PROTOCOL_NUMBERS
from svcproxy.netlink.core.ipvs import UNREADABLE
from svcproxy.netlink.core.kernel_objects import SetEntry, SetKind
from svcproxy.netlink.core.messages import HEADER, NetlinkRequest
from svcproxy.netlink.core.operations import (
    AddEntries,
    CreateSet,
    DestroySet,
    FlushSet,
    RemoveEntries,
    SetOperation,
    SwapSets,
)
from svcproxy.netlink.errors import MalformedError

MAX_ENTRIES = 1000
"""Entries in one message. Their list is one attribute of at most 65,535 bytes (``_MAX_BYTES``)."""
_MAX_BYTES = 60_000

REVISIONS = {
    "bitmap:port": 3,
    "hash:ip": 4,
    "hash:ip,port": 5,
    "hash:ip,port,ip": 5,
    "hash:ip,port,net": 7,
}
"""The supported set types, in the revisions of Linux 3.19 and ipset 6.24, which every kernel and
``ipset`` program in use supports. Later revisions only add features that are not used here."""

NOT_A_MEMBER = 4103
"""The error number by which ipset denies a test (``IPSET_ERR_EXIST``)."""

_SUBSYSTEM = 6
_VERSION = 6  # of the protocol, since Linux 2.6.39
_CREATE, _DESTROY, _FLUSH, _SWAP, _LIST, _ADD, _DELETE, _TEST, _TYPE = 2, 3, 4, 6, 7, 9, 10, 11, 13
_PROTOCOL, _NAME, _TYPE_NAME, _REVISION, _FAMILY, _FLAGS, _DATA, _LIST_OF_DATA, _LINE = range(1, 10)
_OTHER_NAME = _TYPE_NAME
_ONLY_HEADERS = 1 << 2
_IP, _NETMASK_BITS, _PORT, _PORT_TO, _TIMEOUT, _IP_PROTOCOL, _CREATE_FLAGS = 1, 3, 4, 5, 6, 7, 8
_HASH_SIZE, _MAXIMUM, _NETMASK = 18, 19, 20
_ELEMENTS, _REFERENCES = 24, 25
_IP2, _BITS2 = 20, 21
_IPV4, _IPV6 = 1, 2
_BIG = 0x4000  # NLA_F_NET_BYTEORDER
_INITIAL_HASH_SIZE = 1024
_ALL_PORTS = (0, 65535)
_MOST_ELEMENTS = 65536

_U16, _U32, _LINE_NUMBER = Struct("!H"), Struct("!I"), Struct("=I")
_FAMILY_HEADER = Struct("=BBH")
_PROTOCOLS = {number: protocol for protocol, number in PROTOCOL_NUMBERS.items()}

_REASONS = {
    4097: "the kernel does not support version 6 of ipset's protocol",
    4098: "the kernel does not support the set type",
    4099: "the kernel's limit of sets is reached",
    4100: "a rule refers to it",
    4101: "there is no set with the second name",
    4102: "the two sets are of different types",
    4104: "the prefix length is not possible",
    4106: "the set is of the other IP family",
}
_INCOMPATIBLE = {4102, 4106}
_HASH_REASONS = {
    4352: "the set is full",
    4353: "the entry is all zero",
    4354: "the protocol is not possible",
    4355: "the protocol is missing",
}
_BITMAP_REASONS = {4352: "the port is out of the set's range", 4353: "the range is too large"}


class ListedSet(NamedTuple):
    """A set in the kernel.

    Attributes:
        kind: its kind; ``None`` if no ``SetKind`` of the requested family describes the set: it
            is of the other family or of an unsupported type, has timeouts, counters or comments,
            or holds a range of ports only.
        elements: how many entries it has.
        references: how many rules refer to it.
        family: the number of its family; 0 for a set of ports only.
    """

    kind: SetKind | None
    elements: int
    references: int
    family: int = 0


class PartialRequest(NamedTuple):
    """A request, and the operation or the part of an operation that it executes."""

    operation: SetOperation
    request: NetlinkRequest


def module_of(kind: str) -> str:
    """Return the kernel module of a set type: ``ip_set_hash_ipport`` for ``hash:ip,port``."""
    return "ip_set_" + kind.replace(":", "_").replace(",", "")


def operation_requests(operation: SetOperation, family: IPFamily) -> Iterator[PartialRequest]:
    """Encode an operation; an operation with many entries takes several messages."""
    match operation:
        case CreateSet():
            yield PartialRequest(operation, _request(_CREATE, family, _creation(operation, family)))
        case AddEntries() | RemoveEntries():
            yield from _batches(operation, family)
        case SwapSets():
            names = _name(_NAME, operation.name) + _name(_OTHER_NAME, operation.other)
            yield PartialRequest(operation, _request(_SWAP, family, names))
        case FlushSet():
            yield PartialRequest(operation, _request(_FLUSH, family, _name(_NAME, operation.name)))
        case DestroySet():
            yield PartialRequest(
                operation, _request(_DESTROY, family, _name(_NAME, operation.name))
            )


def single_entry_requests(
    operation: AddEntries | RemoveEntries, family: IPFamily
) -> Iterator[PartialRequest]:
    """Encode an operation with one message for each entry."""
    for entry in operation.entries:
        data = [nest(_DATA, _entry(operation.kind, entry, 1))]
        yield _batch(operation._replace(entries=(entry,)), family, data)


def refused_entry(body: bytes) -> int | None:
    """Return the position of the refused entry in a message; ``None`` if the kernel refused all.

    The kernel has executed the entries before it and has not processed those after it.

    Args:
        body: the bytes after the error number in the kernel's answer. Instead of an ordinary
            acknowledgement, ipset returns the message with the number of the refused entry.
    """
    start = HEADER.size + _FAMILY_HEADER.size
    try:
        line = collect(body, start).get(_LINE)
    except MalformedError:
        line = None
    if line is None or len(line) != _LINE_NUMBER.size:
        return None
    return int(_LINE_NUMBER.unpack(line)[0]) - 1


def explanation(operation: SetOperation, number: int) -> str:
    """Explain one of ipset's own error numbers; empty for an errno."""
    if number >= 4352 and isinstance(operation, CreateSet | AddEntries | RemoveEntries):
        hash_type = operation.kind.type.startswith("hash:")
        reasons = _HASH_REASONS if hash_type else _BITMAP_REASONS
        return reasons.get(number, f"ipset error {number}")
    reason = _REASONS.get(number, "" if number < 4096 else f"ipset error {number}")
    if number in _INCOMPATIBLE and isinstance(operation, SwapSets):
        name = operation.other
        reason += f"; remove the rules that refer to {name}, then: ipset destroy {name}"
    return reason


def headers_request(family: IPFamily) -> NetlinkRequest:
    """List all sets of both families without their entries."""
    return _request(_LIST, family, attribute(_FLAGS | _BIG, _U32.pack(_ONLY_HEADERS)))


def entries_request(family: IPFamily, name: str) -> NetlinkRequest:
    """List one set with its entries; ENOENT means that it does not exist."""
    return _request(_LIST, family, _name(_NAME, name))


def test_member_request(family: IPFamily, name: str, address: str) -> NetlinkRequest:
    """Ask whether a set of addresses has a member; ``NOT_A_MEMBER`` or ENOENT if not."""
    return _member_request(_TEST, family, name, address)


def remove_member_request(family: IPFamily, name: str, address: str) -> NetlinkRequest:
    """Remove a member from a set of addresses."""
    return _member_request(_DELETE, family, name, address)


def _member_request(command: int, family: IPFamily, name: str, address: str) -> NetlinkRequest:
    data = nest(_DATA, _address(_IP, address), attribute(_LINE, _LINE_NUMBER.pack(0)))
    return _request(command, family, _name(_NAME, name) + data)


def type_request(family: IPFamily, kind: str) -> NetlinkRequest:
    """Ask for a set type; the kernel loads the module of the type if necessary."""
    number = 0 if kind == "bitmap:port" else FAMILY_NUMBERS[family]
    return _request(_TYPE, family, _name(_TYPE_NAME, kind) + attribute(_FAMILY, bytes([number])))


def decode_headers(bodies: Iterable[bytes], family: IPFamily) -> dict[str, ListedSet]:
    """Decode the answers to ``headers_request`` by name; malformed ones are skipped."""
    found = {}
    for body in bodies:
        try:
            given = collect(body, _FAMILY_HEADER.size)
            if _TYPE_NAME in given:
                data = collect(given.get(_DATA, b""))
                elements, references = (_number(data, n) for n in (_ELEMENTS, _REFERENCES))
                kind, number = _kind(given, data, family), given.get(_FAMILY, b"\0")[0]
                found[string(given[_NAME])] = ListedSet(kind, elements, references, number)
        except UNREADABLE:
            continue
    return found


def decode_entries(bodies: Iterable[bytes], kind: SetKind) -> Iterator[SetEntry]:
    """Decode the answers to ``entries_request`` for a set of the given kind.

    A malformed entry is skipped. After an invalid length, the rest of the message is skipped.
    """
    for body in bodies:
        with contextlib.suppress(MalformedError):
            entries = collect(body, _FAMILY_HEADER.size).get(_LIST_OF_DATA, b"")
            for _, data, _ in walk(entries):
                try:
                    decoded = _decoded(collect(data), kind)
                except UNREADABLE:
                    continue
                yield decoded


def _kind(given: dict[int, bytes], data: dict[int, bytes], family: IPFamily) -> SetKind | None:
    name = string(given[_TYPE_NAME])
    special = {_TIMEOUT, _CREATE_FLAGS, _NETMASK} & data.keys()
    if name not in REVISIONS or special:
        return None
    if name == "bitmap:port":
        ports = tuple(_U16.unpack(data[kind])[0] for kind in (_PORT, _PORT_TO))
        return SetKind(name, 0) if ports == _ALL_PORTS else None
    if given[_FAMILY][0] != FAMILY_NUMBERS[family]:
        return None
    return SetKind(name, _number(data, _MAXIMUM))


def _request(command: int, family: IPFamily, attributes: bytes) -> NetlinkRequest:
    # Without NLM_F_EXCL, adding an existing and deleting a missing object succeeds.
    header = _FAMILY_HEADER.pack(FAMILY_NUMBERS[family], 0, 0) + attribute(
        _PROTOCOL, bytes([_VERSION])
    )
    return NetlinkRequest(_SUBSYSTEM << 8 | command, 0, header + attributes)


def _name(kind: int, name: str) -> bytes:
    return attribute(kind, name.encode() + b"\0")


def _creation(operation: CreateSet, family: IPFamily) -> bytes:
    name, kind = operation
    if kind.type == "bitmap:port":
        number = 0
        low, high = _ALL_PORTS
        data = attribute(_PORT | _BIG, _U16.pack(low)) + attribute(_PORT_TO | _BIG, _U16.pack(high))
    else:
        number = FAMILY_NUMBERS[family]
        data = attribute(_HASH_SIZE | _BIG, _U32.pack(_INITIAL_HASH_SIZE))
        data += attribute(_MAXIMUM | _BIG, _U32.pack(kind.maximum))
    return b"".join(
        (
            _name(_NAME, name),
            _name(_TYPE_NAME, kind.type),
            attribute(_REVISION, bytes([REVISIONS[kind.type]])),
            attribute(_FAMILY, bytes([number])),
            nest(_DATA, data),
        )
    )


def _batches(operation: AddEntries | RemoveEntries, family: IPFamily) -> Iterator[PartialRequest]:
    start, size, data = 0, 0, list[bytes]()
    for position, entry in enumerate(operation.entries):
        encoded = nest(_DATA, _entry(operation.kind, entry, len(data) + 1))
        if len(data) == MAX_ENTRIES or size + len(encoded) > _MAX_BYTES:
            yield _batch(
                operation._replace(entries=operation.entries[start:position]), family, data
            )
            encoded = nest(_DATA, _entry(operation.kind, entry, 1))
            start, size, data = position, 0, []
        data.append(encoded)
        size += len(encoded)
    if data:
        yield _batch(operation._replace(entries=operation.entries[start:]), family, data)


def _batch(
    operation: AddEntries | RemoveEntries, family: IPFamily, data: Sequence[bytes]
) -> PartialRequest:
    command = _ADD if isinstance(operation, AddEntries) else _DELETE
    # The kernel writes the number of a refused entry into this attribute.
    line = attribute(_LINE, _LINE_NUMBER.pack(0))
    attributes = _name(_NAME, operation.name) + line + nest(_LIST_OF_DATA, *data)
    return PartialRequest(operation, _request(command, family, attributes))


def _entry(kind: SetKind, entry: SetEntry, line: int) -> bytes:
    parts = [attribute(_LINE, _LINE_NUMBER.pack(line))]
    if entry.address:
        parts.append(_address(_IP, entry.address))
    if kind.type != "hash:ip":
        parts.append(attribute(_PORT | _BIG, _U16.pack(entry.port)))
    if entry.protocol is not None:
        parts.append(attribute(_IP_PROTOCOL, bytes([PROTOCOL_NUMBERS[entry.protocol]])))
    if entry.other:
        address, _, bits = entry.other.partition("/")
        parts.append(_address(_IP2, address))
        if bits:
            parts.append(attribute(_BITS2, bytes([int(bits)])))
    return b"".join(parts)


def _address(kind: int, address: str) -> bytes:
    value = packed(address)
    return nest(kind, attribute((_IPV4 if len(value) == 4 else _IPV6) | _BIG, value))


def _decoded(data: dict[int, bytes], kind: SetKind) -> SetEntry:
    number = data[_IP_PROTOCOL][0] if _IP_PROTOCOL in data else 0
    other = _text(data[_IP2]) if _IP2 in data else ""
    if kind.type == "hash:ip,port,net":
        bits = data[_BITS2][0] if _BITS2 in data else 128 if ":" in other else 32
        other = f"{other}/{bits}"
    return SetEntry(
        address=_text(data[_IP]) if _IP in data else "",
        protocol=_PROTOCOLS.get(number),
        port=_U16.unpack(data[_PORT])[0] if _PORT in data else 0,
        other=other,
    )


def _text(nested: bytes) -> str:
    return next(text(value) for _, value, _ in walk(nested))


def _number(data: dict[int, bytes], kind: int) -> int:
    return int(_U32.unpack(data[kind])[0]) if kind in data else 0
