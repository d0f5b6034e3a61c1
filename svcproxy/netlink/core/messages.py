"""Netlink messages: the header that all of them share (``linux/netlink.h``), in host byte order."""

import sys
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from svcproxy.netlink.core.attributes import collect, string
from svcproxy.netlink.errors import MalformedError

HEADER = Struct("=IHHII")
"""Length, type, flags, sequence number, port id (``struct nlmsghdr``)."""
CODE = Struct("=i")
"""The negative error number at the start of an ``ERROR`` or ``DONE`` message's body."""

ERROR, DONE = 2, 3
FLAG_REQUEST, FLAG_ACK, FLAG_INTERRUPTED = 0x1, 0x4, 0x10
FLAG_DUMP = 0x300
FLAG_EXCLUSIVE, FLAG_CREATE = 0x200, 0x400
_FLAG_ACK_TLVS = 0x200
_ACK_TEXT, _ACK_OFFSET = 1, 2


class NetlinkRequest(NamedTuple):
    """A message to send: its type, its flags besides ``FLAG_REQUEST``, and its body."""

    kind: int
    flags: int
    body: bytes


class NetlinkMessage(NamedTuple):
    """A received message: its header's fields and its body, which is all that follows the header."""

    kind: int
    flags: int
    sequence: int
    body: bytes

    @property
    def error(self) -> int:
        """The error number of an ``ERROR`` or ``DONE`` message; 0 for success."""
        return -CODE.unpack_from(self.body)[0] if len(self.body) >= CODE.size else 0


def encode(request: NetlinkRequest, sequence: int, flags: int = 0) -> bytes:
    """Encode a request; ``flags`` are added to the request's own."""
    kind, own, body = request
    size = HEADER.size + len(body)
    padding = bytes(-size & 3)
    return HEADER.pack(size, kind, own | flags | FLAG_REQUEST, sequence, 0) + body + padding


def split(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Split a datagram into messages without copying their bodies.

    Yields:
        Type, flags, sequence number, and where the body begins and ends.

    Raises:
        MalformedError: a length does not fit.
    """
    start, end, size_of_header = 0, len(data), HEADER.size
    unpack = HEADER.unpack_from
    while start < end:
        body = start + size_of_header
        if body > end:
            raise MalformedError(f"half a message at byte {start}")
        size, kind, flags, sequence, _ = unpack(data, start)
        if size < size_of_header or start + size > end:
            raise MalformedError(f"message of {size} bytes at byte {start} of {end}")
        yield kind, flags, sequence, body, start + size
        start += (size + 3) & ~3


def messages(data: bytes) -> Iterator[NetlinkMessage]:
    """Split a datagram into messages.

    Raises:
        MalformedError: a length does not fit.
    """
    for kind, flags, sequence, start, end in split(data):
        yield NetlinkMessage(kind, flags, sequence, data[start:end])


def error_number(data: bytes, start: int, end: int) -> int:
    """Return the error number of the ``ERROR`` or ``DONE`` message with this body; 0 for success.

    Raises:
        MalformedError: the body is too short for a number.
    """
    if end - start < CODE.size:
        raise MalformedError(f"acknowledgement of {end - start} bytes")
    return -int(CODE.unpack_from(data, start)[0])


def extended_error(body: bytes, flags: int) -> tuple[str, int]:
    """Return the kernel's error text and the offset of the offending attribute.

    Args:
        body: the body of an ``ERROR`` message from a socket with ``NETLINK_EXT_ACK``.
        flags: the message's flags.

    Returns:
        The text, empty if there is none; the offset in the refused message, 0 if unknown.
    """
    if not flags & _FLAG_ACK_TLVS:
        return "", 0
    try:
        # The header of the refused message lies between the error number and the attributes.
        found = collect(body, CODE.size + HEADER.size)
    except MalformedError:
        return "", 0
    offset = int.from_bytes(found.get(_ACK_OFFSET, b"")[:4], sys.byteorder)
    return string(found.get(_ACK_TEXT, b"")), offset
