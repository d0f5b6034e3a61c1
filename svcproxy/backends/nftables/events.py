"""What the kernel tells of nf_tables transactions: who changed which tables. No sockets here.

Every transaction sends one event for each thing that it changed, and at the end one with the new
generation and the process (``nf_tables_gen_notify``, Linux 4.16). Sets that packets change send
none. All carry the netlink address of the socket that the transaction came from.
"""

from collections.abc import Collection, Iterator
from struct import Struct, error
from typing import NamedTuple

from svcproxy.backends.nftables.protocol import (
    GENERATION_ID,
    GENERATION_NAME,
    GENERATION_PROCESS,
    HEADERS,
    MESSAGE_HEADER,
    NEW_GENERATION,
    SUBSYSTEM,
    TABLE_OF,
)
from svcproxy.netlink.attributes import U32, MalformedError, collect, string

_PORT_OFFSET = 12
_HOST_U32 = Struct("=I")
_INSTRUCTION = Struct("=HBBI")
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_EVERYTHING = 0xFFFFFFFF


class Change(NamedTuple):
    """One transaction that changed a table of interest.

    ``process`` and ``pid`` are those of the initial pid namespace; empty and 0 when unknown.
    """

    process: str
    pid: int
    generation: int = 0


class Changes:
    """Follows events and says whose transactions touched the tables of interest.

    ``families`` are the numbers of the tables' families.
    """

    def __init__(self, tables: Collection[str], families: Collection[int]) -> None:
        self._tables = frozenset(tables)
        self._families = frozenset(families)
        self._touched = False

    def take(self, data: bytes) -> Iterator[Change]:
        """Take in one datagram; give the transactions of interest that end in it."""
        start = 0
        while start + HEADERS <= len(data):
            try:
                size, kind, *_ = MESSAGE_HEADER.unpack_from(data, start)
            except error:  # cannot happen: the length was checked
                return
            body = data[start + HEADERS : start + size]
            if kind == SUBSYSTEM << 8 | NEW_GENERATION:
                if self._touched:
                    yield _change(body)
                self._touched = False
            elif kind >> 8 == SUBSYSTEM and data[start + MESSAGE_HEADER.size] in self._families:
                self._touched = self._touched or _table(body) in self._tables
            start += (max(size, HEADERS) + 3) & ~3

    def forget(self) -> None:
        """Begin anew after events were lost."""
        self._touched = False


def _table(body: bytes) -> str:
    try:
        return string(collect(body).get(TABLE_OF, b""))
    except MalformedError:
        return ""


def _change(body: bytes) -> Change:
    try:
        found = collect(body)
        generation, pid = (U32.unpack(found[k])[0] for k in (GENERATION_ID, GENERATION_PROCESS))
        return Change(string(found.get(GENERATION_NAME, b"")), pid, generation)
    except (MalformedError, KeyError, error):
        return Change("", 0)


def without(ports: Collection[int]) -> bytes:
    """The socket filter (classic BPF) that drops events caused from these netlink addresses.

    A datagram has the events of one transaction only, so looking at the first will do.
    """
    lines = [_INSTRUCTION.pack(_LOAD, 0, 0, _PORT_OFFSET)]
    for left, port in zip(range(len(ports) - 1, -1, -1), ports, strict=True):
        # The filter loads numbers as if they were big-endian; the header is in host order.
        swapped = U32.unpack(_HOST_U32.pack(port))[0]
        lines.append(_INSTRUCTION.pack(_JUMP_IF_EQUAL, left + 1, 0, swapped))
    lines.append(_INSTRUCTION.pack(_RETURN, 0, 0, _EVERYTHING))
    lines.append(_INSTRUCTION.pack(_RETURN, 0, 0, 0))
    return b"".join(lines)
