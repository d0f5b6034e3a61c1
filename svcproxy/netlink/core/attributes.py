"""Netlink attributes: the type-length-value format that all netlink protocols share.

An attribute starts with two 16-bit numbers in host byte order, its length including this header
and its type, and is padded to a multiple of four bytes (``linux/netlink.h``). Numbers in netfilter
attributes are big-endian (``u32``, ``u64``); other protocols use host byte order.
"""

from collections.abc import Iterator
from struct import Struct, error

from svcproxy.limits import NETLINK_DEPTH
from svcproxy.netlink.errors import MalformedError

HEADER = Struct("=HH")
U16 = Struct("!H")
U32 = Struct("!I")
U64 = Struct("!Q")

NESTED = 0x8000
_KIND = 0x3FFF
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute."""
    return HEADER.pack(4 + len(value), kind) + value + _PADDING[len(value) & 3]


def nest(kind: int, *attributes: bytes) -> bytes:
    """Encode an attribute that contains ``attributes``, with ``NLA_F_NESTED`` in its type."""
    return attribute(kind | NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """Encode a string with a terminating zero byte."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """Encode a big-endian 32-bit number."""
    return attribute(kind, U32.pack(value))


def u64(kind: int, value: int) -> bytes:
    """Encode a big-endian 64-bit number."""
    return attribute(kind, U64.pack(value))


def walk(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """Yield the type, the value and the header's position of each attribute.

    Raises:
        MalformedError: a length does not fit.
    """
    end = len(data)
    while start < end:
        try:
            size, kind = HEADER.unpack_from(data, start)
        except error as short:
            raise MalformedError(f"half an attribute at byte {start}") from short
        if size < HEADER.size or start + size > end:
            raise MalformedError(f"attribute of {size} bytes at byte {start} of {end}")
        yield kind & _KIND, data[start + HEADER.size : start + size], start
        start += (size + 3) & ~3


def collect(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Return the values of attributes by type; of several with one type, the last.

    Raises:
        MalformedError: a length does not fit.
    """
    return {kind: value for kind, value, _ in walk(data, start)}


def string(value: bytes) -> str:
    """Decode a string without its terminating zero byte."""
    return value.rstrip(b"\0").decode(errors="replace")


def holds(dumped: bytes, sent: bytes, depth: int = NETLINK_DEPTH) -> bool:
    """Return whether dumped attributes include everything that was sent.

    The kernel adds attributes (defaults, handles, statistics) that differ between versions; these
    are ignored. An attribute that was sent must be present and equal.

    Args:
        dumped: attributes from a dump of the kernel.
        sent: the attributes with which svcproxy created the object.
        depth: how many levels of nested attributes are compared; deeper nesting counts as different.
    """
    if not depth:
        return False
    try:
        present = collect(dumped)
        for kind, value, position in walk(sent):
            found = present.get(kind)
            if found is None:
                return False
            nested = HEADER.unpack_from(sent, position)[1] & NESTED
            if not (holds(found, value, depth - 1) if nested else found == value):
                return False
    except MalformedError:
        return False
    return True


def holds_each(dumped: bytes, sent: bytes) -> bool:
    """Return whether two lists have the same length and each member ``holds`` what was sent."""
    try:
        found = [value for _, value, _ in walk(dumped)]
        wanted = [value for _, value, _ in walk(sent)]
    except MalformedError:
        return False
    return len(found) == len(wanted) and all(map(holds, found, wanted))
