"""What the kernel tells of nf_tables transactions: who changed which tables. No sockets here.

Every transaction sends one event for each thing that it changed, and at the end one with the new
generation and the process (``nf_tables_gen_notify``, Linux 4.16). Sets that packets change send
none. All carry the netlink address of the socket that the transaction came from.
"""

from collections.abc import Collection, Iterator
from struct import Struct, error
from typing import NamedTuple, Protocol

from svcproxy.netlink.core.attributes import U32, MalformedError, collect, string
from svcproxy.netlink.core.nf_tables.protocol import (
    DELETE_CHAIN,
    DELETE_RULE,
    DELETE_TABLE,
    GENERATION_ID,
    GENERATION_NAME,
    GENERATION_PROCESS,
    HEADERS,
    MESSAGE_HEADER,
    NEW_CHAIN,
    NEW_GENERATION,
    NEW_RULE,
    SUBSYSTEM,
    TABLE_OF,
)

_PORT_OFFSET = 12
_HOST_U32 = Struct("=I")
_INSTRUCTION = Struct("=HBBI")
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_EVERYTHING = 0xFFFFFFFF
_LONGEST_NAME = 15  # TASK_COMM_LEN without the final zero byte


# Where the name of the chain is in a message about a chain or rule.
_CHAIN_IN = {NEW_CHAIN: 3, DELETE_CHAIN: 3, NEW_RULE: 2, DELETE_RULE: 2}
_DELETIONS = frozenset({DELETE_TABLE, DELETE_CHAIN, DELETE_RULE})


class Relevance(Protocol):
    """Judges one change of a table, chain or rule."""

    def __call__(self, table: str, chain: str, *, deletion: bool) -> bool | None:
        """Whether it concerns us: ``True`` for sure, ``False`` for perhaps, ``None`` for no.

        ``chain`` is empty for what is no chain and no rule.
        """


def all_in_tables(tables: Collection[str]) -> Relevance:
    """The relevance of tables that are ours as a whole."""

    def relevance(table: str, chain: str, *, deletion: bool) -> bool | None:  # noqa: ARG001
        return True if table in tables else None

    return relevance


class TransactionEvent(NamedTuple):
    """One transaction that changed something of interest.

    ``process`` and ``pid`` are those of the initial pid namespace; empty and 0 when unknown.
    ``sure`` is the gravest of the judgements, ``families`` the numbers of the tables' families.
    """

    process: str
    pid: int
    generation: int = 0
    certain: bool = True
    families: frozenset[int] = frozenset()


class EventParser:
    """Follows events and says whose transactions touched what is of interest.

    ``families`` are the numbers of the tables' families.
    """

    def __init__(self, relevance: Relevance, families: Collection[int]) -> None:
        self._judge = relevance
        self._families = frozenset(families)
        self._touched: set[int] = set()
        self._certain = False

    def take(self, data: bytes, own: Collection[int] = ()) -> Iterator[TransactionEvent]:
        """Take in one datagram; give the transactions of interest that end in it.

        A datagram has the events of one transaction only. Those that came from the netlink
        addresses ``own`` are passed over.
        """
        if own and len(data) >= HEADERS and MESSAGE_HEADER.unpack_from(data)[4] in own:
            return
        start = 0
        while start + HEADERS <= len(data):
            try:
                size, kind, *_ = MESSAGE_HEADER.unpack_from(data, start)
            except error:  # cannot happen: the length was checked
                return
            body = data[start + HEADERS : start + size]
            if kind == SUBSYSTEM << 8 | NEW_GENERATION:
                if self._touched:
                    found = _change(body)
                    yield found._replace(certain=self._certain, families=frozenset(self._touched))
                self.forget()
            elif kind >> 8 == SUBSYSTEM and data[start + MESSAGE_HEADER.size] in self._families:
                self._note(data[start + MESSAGE_HEADER.size], kind & 0xFF, body)
            start += (max(size, HEADERS) + 3) & ~3

    def _note(self, family: int, kind: int, body: bytes) -> None:
        if self._certain and family in self._touched:
            return  # it cannot become worse: a large change of others need not be taken apart
        try:
            found = collect(body)
        except MalformedError:
            return
        chain = string(found.get(_CHAIN_IN.get(kind, 0), b""))
        sure = self._judge(string(found.get(TABLE_OF, b"")), chain, deletion=kind in _DELETIONS)
        if sure is not None:
            self._touched.add(family)
            self._certain = self._certain or sure

    def forget(self) -> None:
        """Begin anew after events were lost."""
        self._touched.clear()
        self._certain = False


def _change(body: bytes) -> TransactionEvent:
    try:
        found = collect(body)
        generation, pid = (U32.unpack(found[k])[0] for k in (GENERATION_ID, GENERATION_PROCESS))
        return TransactionEvent(_process(found.get(GENERATION_NAME, b"")), pid, generation)
    except (MalformedError, KeyError, error):
        return TransactionEvent("", 0)


def _process(name: bytes) -> str:
    """A process's name for logs and metrics: any process may give itself any 15 bytes."""
    shown = string(name)[:_LONGEST_NAME]
    return "".join(c if c.isprintable() else "?" for c in shown)


def originator_filter(ports: Collection[int]) -> bytes:
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
