"""Netlink messages: the header that all of them share (``linux/netlink.h``), in host byte order."""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from svcproxy.netlink.core.attributes import MalformedError

HEADER = Struct("=IHHII")
"""Length, type, flags, sequence number, port id (``struct nlmsghdr``)."""
CODE = Struct("=i")

ERROR, DONE = 2, 3
FLAG_REQUEST, FLAG_ACK, FLAG_INTERRUPTED = 0x1, 0x4, 0x10
FLAG_DUMP = 0x300
FLAG_EXCLUSIVE, FLAG_CREATE = 0x200, 0x400


class Request(NamedTuple):
    """A message to send: its type, its flags besides ``FLAG_REQUEST``, and what follows."""

    kind: int
    flags: int
    body: bytes


class Message(NamedTuple):
    """One message of an answer: its header's fields and everything after the header."""

    kind: int
    flags: int
    sequence: int
    body: bytes

    @property
    def error(self) -> int:
        """The errno of an ``ERROR`` or ``DONE`` message; 0 for success."""
        return -CODE.unpack_from(self.body)[0] if len(self.body) >= CODE.size else 0


def encode(request: Request, sequence: int, flags: int = 0) -> bytes:
    """Encode a message; ``flags`` come on top of its own."""
    kind, own, body = request
    size = HEADER.size + len(body)
    padding = bytes(-size & 3)
    return HEADER.pack(size, kind, own | flags | FLAG_REQUEST, sequence, 0) + body + padding


def messages(data: bytes) -> Iterator[Message]:
    """Take apart what one read from a netlink socket returned.

    Raises:
        MalformedError: a length does not fit.
    """
    start, end = 0, len(data)
    while start < end:
        if start + HEADER.size > end:
            raise MalformedError(f"half a message at byte {start}")
        size, kind, flags, sequence, _ = HEADER.unpack_from(data, start)
        if size < HEADER.size or start + size > end:
            raise MalformedError(f"message of {size} bytes at byte {start} of {end}")
        yield Message(kind, flags, sequence, data[start + HEADER.size : start + size])
        start += (size + 3) & ~3
