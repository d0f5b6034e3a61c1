"""The datatypes of set keys and map values, and the user data from which ``nft`` prints them.

The kernel only uses their lengths. It stores type numbers and user data for programs that list the
set. They are those of nft 1.0.6 (``src/datatype.c``, and ``typeof`` in ``src/netlink.c``); later
versions understand them as well.
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
    """The type of one part of a concatenation, which is padded to words of four bytes.

    Attributes:
        number: nft's number of the type.
        length: the length of a value in bytes, without padding.
        typeof: the expression that yields such values: its kind, and the numbers that describe it.
            nft needs it for types whose number does not suffice.
    """

    number: int
    length: int
    typeof: tuple[int, tuple[int, ...]]

    @property
    def size(self) -> int:
        """The length of a value in bytes, with padding."""
        return (self.length + 3) & ~3


Concatenation = tuple[DataType, ...]

# Kinds of expression in ``typeof``, and headers in payload expressions.
_PAYLOAD, _META, _CONCAT, _NUMGEN = 7, 9, 13, 23
_TRANSPORT, _IP, _IP6 = 11, 12, 13

PROTOCOL = DataType(12, 1, (_META, (16,)))
PORT = DataType(13, 2, (_PAYLOAD, (_TRANSPORT, 2)))
WORD = DataType(19, 4, (_META, (3,)))
"""A number in host byte order. Its type is that of packet marks: nft prints it in hexadecimal."""
_INTEGER = 4
ADDRESS = {
    IPFamily.IPV4: DataType(7, 4, (_PAYLOAD, (_IP, 12))),
    IPFamily.IPV6: DataType(8, 16, (_PAYLOAD, (_IP6, 9))),
}


def numgen_index(count: int) -> DataType:
    """Return the type of the numbers that ``numgen`` makes, below ``count``; in host byte order."""
    return DataType(_INTEGER, 4, (_NUMGEN, (1, count, 0)))


_PROTOCOL_KEYS = {
    Protocol.TCP: b"\x06\0\0\0",
    Protocol.UDP: b"\x11\0\0\0",
    Protocol.SCTP: b"\x84\0\0\0",
}
PROTOCOL_NAMES = {key[0]: protocol.keyword for protocol, key in _PROTOCOL_KEYS.items()}


def size(fields: Concatenation) -> int:
    """Return the length of a key or value in bytes."""
    return sum(field.size for field in fields)


def type_number(fields: Concatenation) -> int:
    """Return nft's number of a type, or of a concatenation of types."""
    number = 0
    for field in fields:
        number = number << _CONCAT_BITS | field.number
    return number


def set_userdata(key: Concatenation, data: Concatenation | None, comment: str) -> bytes:
    """Return the user data of a set: byte orders, ``typeof`` if necessary, and the comment."""
    user_data = _tlv(_KEY_ORDER, _HOST_U32.pack(_order(key)))
    if data is not None:
        user_data += _tlv(_DATA_ORDER, _HOST_U32.pack(_order(data)))
    if any(field.number == _INTEGER for field in key):
        user_data += _tlv(_KEY_TYPEOF, _typeof(key))
        if data is not None:
            user_data += _tlv(_DATA_TYPEOF, _typeof(data))
    return user_data + (_tlv(_COMMENT, comment.encode() + b"\0") if comment else b"")


def _order(fields: Concatenation) -> int:
    if len(fields) > 1:
        return 0
    return _NETWORK_ORDER


def _tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind, len(value))) + value


def _typeof(fields: Concatenation) -> bytes:
    if len(fields) == 1:
        return _typeof_field(fields[0])
    parts = b"".join(_tlv(i, _typeof_field(field)) for i, field in enumerate(fields))
    return _tlv(0, _HOST_U32.pack(_CONCAT)) + _tlv(1, parts)


def _typeof_field(field: DataType) -> bytes:
    kind, numbers = field.typeof
    described = b"".join(_tlv(i, _HOST_U32.pack(n)) for i, n in enumerate(numbers))
    return _tlv(0, _HOST_U32.pack(kind)) + _tlv(1, described)


COMMENT_LENGTH = 250
"""Longer comments are cut: the kernel limits user data to 256 bytes. The longest Service port name
has 143."""


def encode_comment(comment: str) -> bytes:
    """Return the user data of an element, rule, chain or table that has a comment."""
    return _tlv(0, comment.encode(errors="replace")[:COMMENT_LENGTH] + b"\0")


def decode_comment(user_data: bytes) -> str:
    """Return the comment in the user data of an element or rule; empty if there is none."""
    if len(user_data) > 2 and user_data[0] == 0:
        return user_data[2 : 2 + user_data[1]].rstrip(b"\0").decode(errors="replace")
    return ""


def address_key(address: str) -> bytes:
    """Encode an address. ``ipaddress`` takes twenty times as long."""
    return inet_pton(AF_INET6 if ":" in address else AF_INET, address)


@lru_cache(maxsize=4096)
def port_key(port: int) -> bytes:
    """Encode a port, padded to a word."""
    return U16.pack(port) + b"\0\0"


def protocol_key(protocol: Protocol) -> bytes:
    """Encode a transport protocol, padded to a word."""
    return _PROTOCOL_KEYS[protocol]


@lru_cache(maxsize=4096)
def index_key(index: int) -> bytes:
    """Encode the number of an endpoint in its list."""
    return _HOST_U32.pack(index)


def format_value(fields: Concatenation, value: bytes) -> str:
    """Format a key or value as nft prints it, for error messages."""
    parts = []
    at = 0
    for field in fields:
        raw = value[at : at + field.length]
        parts.append(_format(field, raw))
        at += field.size
    return " . ".join(parts)


def _format(field: DataType, raw: bytes) -> str:
    if field in ADDRESS.values():
        return str(ip_address(raw))
    if field == PROTOCOL:
        return PROTOCOL_NAMES.get(raw[0], str(raw[0]))
    if field == PORT:
        return str(int.from_bytes(raw, "big"))
    return str(_HOST_U32.unpack(raw)[0])
