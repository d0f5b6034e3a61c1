"""Parses the kernel's events about nf_tables transactions: which process changed which tables.

Each transaction sends one event for each object that it changed, and a last one with the new
generation and the process (``nf_tables_gen_notify``, Linux 4.16). Changes that packets make to sets
send none. All events carry the port ID of the netlink socket that sent the transaction.
"""

from collections.abc import Collection, Iterator
from struct import Struct, error
from typing import NamedTuple, Protocol

from svcproxy.netlink.core.attributes import U32, collect, string
from svcproxy.netlink.core.messages import HEADER as MESSAGE_HEADER
from svcproxy.netlink.core.nf_tables.protocol import (
    DELETE_CHAIN,
    DELETE_ELEMENT,
    DELETE_RULE,
    DELETE_TABLE,
    GENERATION_ID,
    GENERATION_NAME,
    GENERATION_PROCESS,
    HEADERS,
    NAME_OF,
    NEW_CHAIN,
    NEW_ELEMENT,
    NEW_GENERATION,
    NEW_RULE,
    SUBSYSTEM,
    TABLE_OF,
)
from svcproxy.netlink.errors import MalformedError

_PORT_OFFSET = 12
_HOST_U32 = Struct("=I")
_INSTRUCTION = Struct("=HBBI")
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_EVERYTHING = 0xFFFFFFFF
_LONGEST_NAME = 15  # TASK_COMM_LEN without the final zero byte


# The attribute with the chain's name, in messages about chains and rules.
_CHAIN_ATTRIBUTE = {NEW_CHAIN: 3, DELETE_CHAIN: 3, NEW_RULE: 2, DELETE_RULE: 2}
_ELEMENTS = frozenset({NEW_ELEMENT, DELETE_ELEMENT})
_DELETIONS = frozenset({DELETE_TABLE, DELETE_CHAIN, DELETE_RULE})


class Relevance(Protocol):
    """Decides whether the change of a table, chain or rule is relevant to svcproxy."""

    def __call__(self, table: str, chain: str, *, deletion: bool) -> bool | None:
        """Return ``True`` if the change is certainly relevant, ``False`` if it may be.

        ``None`` means that it is not.

        Args:
            table: the name of the table.
            chain: the name of the chain; empty if the object is neither a chain nor a rule.
            deletion: whether the object was deleted.
        """


def all_in_tables(tables: Collection[str]) -> Relevance:
    """Return a decision by which all changes in some tables are relevant, and no others."""

    def relevance(table: str, chain: str, *, deletion: bool) -> bool | None:  # noqa: ARG001
        return True if table in tables else None

    return relevance


class TransactionEvent(NamedTuple):
    """One transaction with relevant changes.

    Attributes:
        process: the name of the process that sent it; empty if unknown.
        pid: its process ID in the initial PID namespace; 0 if unknown.
        generation: the nf_tables generation that it made.
        certain: whether one of its changes is certainly relevant.
        families: the protocol numbers of the tables that have relevant changes.
    """

    process: str
    pid: int
    generation: int = 0
    certain: bool = True
    families: frozenset[int] = frozenset()


class EventParser:
    """Parses a stream of events into transactions with relevant changes.

    Args:
        relevance: decides which changes are relevant.
        families: the protocol numbers of the table families to examine.
        ignored_sets: the names of sets whose elements are not svcproxy's, such as clients that
            packets add; changes of these elements are not relevant.
    """

    def __init__(
        self,
        relevance: Relevance,
        families: Collection[int],
        ignored_sets: Collection[str] = (),
    ) -> None:
        self._relevance = relevance
        self._families = frozenset(families)
        self._ignored_sets = frozenset(ignored_sets)
        self._touched: set[int] = set()
        self._certain = False

    def take(self, data: bytes, own: Collection[int] = ()) -> Iterator[TransactionEvent]:
        """Parse one datagram; yield the relevant transactions that end in it.

        Args:
            data: the datagram. It has the events of one transaction only.
            own: the netlink port IDs whose transactions are ignored.
        """
        if own and len(data) >= HEADERS and MESSAGE_HEADER.unpack_from(data)[4] in own:
            return
        start = 0
        while start + HEADERS <= len(data):
            try:
                size, kind, *_ = MESSAGE_HEADER.unpack_from(data, start)
            except error:  # cannot happen: the loop checks the length
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
            return  # Already certain: parsing the rest of a large transaction gains nothing.
        try:
            found = collect(body)
        except MalformedError:
            return
        if kind in _ELEMENTS and string(found.get(NAME_OF, b"")) in self._ignored_sets:
            return
        chain = string(found.get(_CHAIN_ATTRIBUTE.get(kind, 0), b""))
        certain = self._relevance(
            string(found.get(TABLE_OF, b"")), chain, deletion=kind in _DELETIONS
        )
        if certain is not None:
            self._touched.add(family)
            self._certain = self._certain or certain

    def forget(self) -> None:
        """Discard the events of an unfinished transaction, after events were lost."""
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
    """Return a printable process name: any process may give itself a name of any 15 bytes."""
    shown = string(name)[:_LONGEST_NAME]
    return "".join(c if c.isprintable() else "?" for c in shown)


def originator_filter(ports: Collection[int]) -> bytes:
    """Return a socket filter (classic BPF) that drops events of transactions from some port IDs.

    A datagram has the events of one transaction only, so the filter examines the first one.

    Args:
        ports: the netlink port IDs.
    """
    lines = [_INSTRUCTION.pack(_LOAD, 0, 0, _PORT_OFFSET)]
    for left, port in zip(range(len(ports) - 1, -1, -1), ports, strict=True):
        # BPF loads numbers in network order; the header is in host order.
        swapped = U32.unpack(_HOST_U32.pack(port))[0]
        lines.append(_INSTRUCTION.pack(_JUMP_IF_EQUAL, left + 1, 0, swapped))
    lines.append(_INSTRUCTION.pack(_RETURN, 0, 0, _EVERYTHING))
    lines.append(_INSTRUCTION.pack(_RETURN, 0, 0, 0))
    return b"".join(lines)
