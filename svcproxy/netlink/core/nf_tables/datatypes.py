"""What set keys and map values consist of, and how ``nft`` is told to print them.

The kernel knows only lengths; the type numbers and the user data are notes from whoever makes a
set to whoever lists it. They are those of nft 1.0.6 (``src/datatype.c``, and ``typeof`` in
``src/netlink.c``), and newer versions read them alike.
"""

from functools import lru_cache
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_pton
from struct import Struct
from typing import NamedTuple

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core.attributes import U16

_CONCAT_BITS = 6
_HOST_U32 = Struct("=I")
_KEY_ORDER, _DATA_ORDER, _KEY_TYPEOF, _DATA_TYPEOF, _COMMENT = 0, 1, 3, 4, 7
_NETWORK_ORDER = 2


class DataType(NamedTuple):
    """One part of a concatenation; it fills whole words of four bytes.

    ``typeof`` names the expression that the part stands for, where no type number will do:
    its kind and the numbers that describe it.
    """

    number: int
    length: int
    typeof: tuple[int, tuple[int, ...]]

    @property
    def size(self) -> int:
        """The bytes that it fills."""
        return (self.length + 3) & ~3


Concatenation = tuple[DataType, ...]

# Kinds of expression in ``typeof``, and headers in payload expressions.
_PAYLOAD, _META, _CONCAT, _NUMGEN = 7, 9, 13, 23
_TRANSPORT, _IP, _IP6 = 11, 12, 13

PROTOCOL = DataType(12, 1, (_META, (16,)))
PORT = DataType(13, 2, (_PAYLOAD, (_TRANSPORT, 2)))
WORD = DataType(19, 4, (_META, (3,)))
"""A number in host byte order; for nft a packet mark, which it prints in hexadecimal."""
_INTEGER = 4
ADDRESS = {
    IPFamily.IPV4: DataType(7, 4, (_PAYLOAD, (_IP, 12))),
    IPFamily.IPV6: DataType(8, 16, (_PAYLOAD, (_IP6, 9))),
}


def numgen_index(count: int) -> DataType:
    """A number in host byte order, as ``numgen`` makes it; only ``typeof`` makes nft print it."""
    return DataType(_INTEGER, 4, (_NUMGEN, (1, count, 0)))


_PROTOCOL_KEYS = {
    Protocol.TCP: b"\x06\0\0\0",
    Protocol.UDP: b"\x11\0\0\0",
    Protocol.SCTP: b"\x84\0\0\0",
}
PROTOCOL_NAMES = {key[0]: protocol.keyword for protocol, key in _PROTOCOL_KEYS.items()}


def size(fields: Concatenation) -> int:
    """The length of a key in bytes."""
    return sum(field.size for field in fields)


def type_number(fields: Concatenation) -> int:
    """The number of a type, or of a concatenation of types."""
    number = 0
    for field in fields:
        number = number << _CONCAT_BITS | field.number
    return number


def set_userdata(key: Concatenation, data: Concatenation | None, comment: str) -> bytes:
    """The user data of a set or map: byte orders, ``typeof`` where needed, and a comment."""
    notes = _note(_KEY_ORDER, _HOST_U32.pack(_order(key)))
    if data is not None:
        notes += _note(_DATA_ORDER, _HOST_U32.pack(_order(data)))
    if any(field.number == _INTEGER for field in key):
        notes += _note(_KEY_TYPEOF, _typeof(key))
        if data is not None:
            notes += _note(_DATA_TYPEOF, _typeof(data))
    return notes + (_note(_COMMENT, comment.encode() + b"\0") if comment else b"")


def _order(fields: Concatenation) -> int:
    if len(fields) > 1:
        return 0
    return _NETWORK_ORDER


def _note(kind: int, value: bytes) -> bytes:
    return bytes((kind, len(value))) + value


def _typeof(fields: Concatenation) -> bytes:
    if len(fields) == 1:
        return _typeof_field(fields[0])
    parts = b"".join(_note(i, _typeof_field(field)) for i, field in enumerate(fields))
    return _note(0, _HOST_U32.pack(_CONCAT)) + _note(1, parts)


def _typeof_field(field: DataType) -> bytes:
    kind, numbers = field.typeof
    described = b"".join(_note(i, _HOST_U32.pack(n)) for i, n in enumerate(numbers))
    return _note(0, _HOST_U32.pack(kind)) + _note(1, described)


COMMENT_LENGTH = 250
"""Longer comments are cut: the kernel keeps 256 bytes, the name of a Service port has 143."""


def encode_comment(comment: str) -> bytes:
    """The user data of an element, a rule, a chain or a table: a comment."""
    return _note(0, comment.encode(errors="replace")[:COMMENT_LENGTH] + b"\0")


def decode_comment(notes: bytes) -> str:
    """The comment in the user data of an element, empty if there is none."""
    if len(notes) > 2 and notes[0] == 0:
        return notes[2 : 2 + notes[1]].rstrip(b"\0").decode(errors="replace")
    return ""


def address_key(address: str) -> bytes:
    """An address in network byte order. ``ipaddress`` takes twenty times as long."""
    return inet_pton(AF_INET6 if ":" in address else AF_INET, address)


@lru_cache(maxsize=4096)
def port_key(port: int) -> bytes:
    """A port, filled up to a word."""
    return U16.pack(port) + b"\0\0"


def protocol_key(protocol: Protocol) -> bytes:
    """A protocol's number, filled up to a word."""
    return _PROTOCOL_KEYS[protocol]


@lru_cache(maxsize=4096)
def index_key(index: int) -> bytes:
    """An endpoint's place in its list."""
    return _HOST_U32.pack(index)


def format_value(fields: Concatenation, value: bytes) -> str:
    """A key or value as nft would print it, for messages."""
    parts = []
    at = 0
    for field in fields:
        raw = value[at : at + field.length]
        parts.append(_show(field, raw))
        at += field.size
    return " . ".join(parts)


def _show(field: DataType, raw: bytes) -> str:
    if field in ADDRESS.values():
        return str(ip_address(raw))
    if field == PROTOCOL:
        return PROTOCOL_NAMES.get(raw[0], str(raw[0]))
    if field == PORT:
        return str(int.from_bytes(raw, "big"))
    return str(_HOST_U32.unpack(raw)[0])
