"""Netlink attributes: the type-length-value format that kernel interfaces have in common.

An attribute has a header of two 16-bit numbers in host byte order (its length, header included,
and its type) and is padded to four bytes (``linux/netlink.h``). Numbers within the attributes of
netfilter are big-endian (``u32``, ``u64``); those of others are in host byte order.
"""

from collections.abc import Iterator
from struct import Struct, error

from svcproxy.limits import NETLINK_DEPTH

HEADER = Struct("=HH")
U16 = Struct("!H")
U32 = Struct("!I")
U64 = Struct("!Q")

NESTED = 0x8000
_KIND = 0x3FFF
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class MalformedError(ValueError):
    """The bytes are no attributes."""


def pad(value: bytes) -> bytes:
    """Fill up to a multiple of four bytes."""
    return value + _PADDING[len(value) & 3]


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute."""
    return HEADER.pack(4 + len(value), kind) + value + _PADDING[len(value) & 3]


def nest(kind: int, *attributes: bytes) -> bytes:
    """Encode an attribute that consists of ``attributes``, and say so in its type."""
    return attribute(kind | NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """Encode a string; a zero byte ends it."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """Encode a 32-bit number."""
    return attribute(kind, U32.pack(value))


def u64(kind: int, value: int) -> bytes:
    """Encode a 64-bit number."""
    return attribute(kind, U64.pack(value))


def walk(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """Take attributes apart: type, value and the position of the header.

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
    """Take attributes apart whose types differ, by type.

    Raises:
        MalformedError: a length does not fit.
    """
    return {kind: value for kind, value, _ in walk(data, start)}


def string(value: bytes) -> str:
    """Decode a string without its final zero byte."""
    return value.rstrip(b"\0").decode(errors="replace")


def holds(dumped: bytes, sent: bytes, depth: int = NETLINK_DEPTH) -> bool:
    """Whether attributes that the kernel dumps say all that was once sent.

    The kernel adds attributes (defaults, handles, statistics), which differ between versions and
    are passed over; of what was sent nothing may be missing or different.

    Args:
        dumped: what the kernel dumps.
        sent: what was sent.
        depth: how many levels of nested attributes are compared; what is nested deeper counts as
            different.
    """
    if not depth:
        return False
    try:
        theirs = collect(dumped)
        for kind, value, position in walk(sent):
            found = theirs.get(kind)
            if found is None:
                return False
            nested = HEADER.unpack_from(sent, position)[1] & NESTED
            if not (holds(found, value, depth - 1) if nested else found == value):
                return False
    except MalformedError:
        return False
    return True


def holds_each(dumped: bytes, sent: bytes) -> bool:
    """The same for two lists: as many members, and each holds what was sent."""
    try:
        theirs = [value for _, value, _ in walk(dumped)]
        ours = [value for _, value, _ in walk(sent)]
    except MalformedError:
        return False
    return len(theirs) == len(ours) and all(map(holds, theirs, ours))
