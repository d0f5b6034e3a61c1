"""A strict fake of nf_tables: it takes transactions as bytes and dumps tables as messages.

Like the kernel, it checks existence, references, key lengths and exclusive creation, and applies a
transaction as a whole or not at all.
"""

import copy
from dataclasses import dataclass, field

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import attribute, collect, string, text, u32, walk
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.messages import FLAG_EXCLUSIVE
from svcproxy.netlink.core.messages import HEADER as MESSAGE_HEADER
from svcproxy.netlink.core.nf_tables import dump
from svcproxy.netlink.core.nf_tables import protocol as nft
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.protocol import HEADERS
from svcproxy.netlink.core.nf_tables.ruleset import TABLE
from svcproxy.netlink.core.nf_tables.transaction import Plan, batch, messages, stages


class RefusedByFakeError(Exception):
    """The transaction is invalid; nothing of it was applied."""


@dataclass
class FakeSet:
    """A set: its attributes, and its elements by key."""

    body: bytes
    elements: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def key_length(self) -> int:
        return dump.key_length(self.body)

    @property
    def data_length(self) -> int:
        return int.from_bytes(collect(self.body).get(7, b""), "big")


@dataclass
class FakeTable:
    """One table: its sets and chains by name, and its rules by chain."""

    handle: int
    sets: dict[str, FakeSet] = field(default_factory=dict)
    chains: dict[str, bytes] = field(default_factory=dict)
    rules: dict[str, list[bytes]] = field(default_factory=dict)


@dataclass
class References:
    """The sets and chains that a rule refers to."""

    sets: set[str] = field(default_factory=set)
    chains: set[str] = field(default_factory=set)


def expressions(rule: bytes) -> list[tuple[str, dict[int, bytes]]]:
    """Return the expressions of a rule: names and attributes."""
    found = []
    for _, member, _ in walk(collect(rule).get(4, b"")):
        parts = collect(member)
        found.append((string(parts[1]), collect(parts.get(2, b""))))
    return found


def verdict_of(attributes: dict[int, bytes]) -> tuple[int, str] | None:
    """Return the code and chain of an immediate expression; ``None`` if it is no verdict."""
    data = collect(attributes[2])
    if 2 not in data:
        return None
    verdict = collect(data[2])
    return int.from_bytes(verdict[1], "big", signed=True), string(verdict.get(2, b""))


def references(rule: bytes) -> References:
    found = References()
    for name, attributes in expressions(rule):
        if name in {"lookup", "dynset"}:
            found.sets.add(string(attributes[1]))
        elif name == "immediate" and (verdict := verdict_of(attributes)) and verdict[1]:
            found.chains.add(verdict[1])
    return found


def check(condition: object, what: str) -> None:
    if not condition:
        raise RefusedByFakeError(what)


class FakeKernel:
    """The nf_tables of one IP family."""

    def __init__(self, family: IPFamily = IPFamily.IPV4) -> None:
        self.family = family
        self.tables: dict[str, FakeTable] = {}
        self.generation = 1
        self.states: list[FakeTable] | None = None
        """If a test sets this to a list, the table is appended after each transaction."""
        self._handles = 0

    @property
    def table(self) -> FakeTable:
        return self.tables[TABLE]

    def apply(self, plan: Plan) -> None:
        """Apply a plan, stage by stage, like ``KernelTable.commit``."""
        if not plan:
            return
        for number, stage in enumerate(stages(plan)):
            generation = self.generation if number else stage.generation
            self.transact(batch(messages(stage, TABLE), self.family, generation))
            if self.states is not None:
                self.states.append(copy.deepcopy(self.table))

    def transact(self, data: bytes) -> None:
        """Apply one transaction."""
        before = copy.deepcopy(self.tables)
        try:
            self._transact(data)
            self._check_references()
        except RefusedByFakeError:
            self.tables = before
            raise
        self.generation += 1

    def _transact(self, data: bytes) -> None:
        start, ended = 0, False
        while start < len(data):
            size, kind, flags, _, _ = MESSAGE_HEADER.unpack_from(data, start)
            body = data[start + HEADERS : start + size]
            if kind == nft.BATCH_BEGIN:
                wanted = collect(body).get(1)
                stale = wanted and int.from_bytes(wanted, "big") != self.generation
                check(not stale, "stale generation")
            elif kind == nft.BATCH_END:
                ended = True
            else:
                check(data[start + 16] == FAMILY_NUMBERS[self.family], "family")
                check(kind >> 8 == nft.SUBSYSTEM, "subsystem")
                self._message(kind & 0xFF, flags, body)
            start += (size + 3) & ~3
        check(ended, "no end")

    def _message(self, kind: int, flags: int, body: bytes) -> None:
        parts = collect(body)
        name = string(parts[1])
        exclusive = bool(flags & FLAG_EXCLUSIVE)
        if kind == nft.NEW_TABLE:
            check(name not in self.tables, f"table {name} exists")
            self._handles += 1
            self.tables[name] = FakeTable(self._handles)
            return
        check(name in self.tables, f"no table {name}")
        table = self.tables[name]
        if kind == nft.DELETE_TABLE:
            del self.tables[name]
        elif kind in {nft.NEW_SET, nft.DELETE_SET}:
            self._set(table, string(parts[2]), body, new=kind == nft.NEW_SET)
        elif kind in {nft.NEW_CHAIN, nft.DELETE_CHAIN}:
            self._chain(table, string(parts[3]), body, new=kind == nft.NEW_CHAIN)
        elif kind in {nft.NEW_RULE, nft.DELETE_RULE}:
            chain = string(parts[2])
            check(chain in table.chains, f"no chain {chain}")
            if kind == nft.DELETE_RULE:
                table.rules[chain] = []
                return
            rules = table.rules[chain]
            rules.insert(len(rules) if flags & nft.FLAG_APPEND else 0, body)
        else:
            self._elements(table, kind, parts, exclusive=exclusive)

    def _set(self, table: FakeTable, name: str, body: bytes, *, new: bool) -> None:
        if new:
            check(name not in table.sets, f"set {name} exists")
            check(10 in collect(body), "no set id")
            check(len(collect(body)[13]) <= 256, "user data too long")
            table.sets[name] = FakeSet(body)
        else:
            check(name in table.sets, f"no set {name}")
            del table.sets[name]

    def _chain(self, table: FakeTable, name: str, body: bytes, *, new: bool) -> None:
        if new:
            check(name not in table.chains, f"chain {name} exists")
            table.chains[name] = body
            table.rules[name] = []
        else:
            check(name in table.chains, f"no chain {name}")
            del table.chains[name], table.rules[name]

    def _elements(
        self, table: FakeTable, kind: int, parts: dict[int, bytes], *, exclusive: bool
    ) -> None:
        name = string(parts[2])
        check(name in table.sets, f"no set {name}")
        held = table.sets[name]
        check(len(parts[3]) < 65532, "the list is too long")
        for _, member, _ in walk(parts[3]):
            ((key, tail),) = dump.elements([listed(member)], held.key_length).items()
            check(len(key) == held.key_length, f"key of {name}")
            if kind == nft.DELETE_ELEMENT:
                check(held.elements.pop(key, None) is not None, f"no {key!r} in {name}")
                continue
            check(kind == nft.NEW_ELEMENT, "unknown message")
            data = collect(tail).get(2, b"")
            length = len(collect(data).get(1, b"")) if data else 0
            check(length == held.data_length, f"data of {name}")
            known = held.elements.get(key)
            check(known is None or (not exclusive and known == tail), f"{key!r} exists in {name}")
            held.elements[key] = tail

    def _check_references(self) -> None:
        for table in self.tables.values():
            for rules in table.rules.values():
                for rule in rules:
                    found = references(rule)
                    check(found.sets <= table.sets.keys(), f"no set {found.sets}")
                    check(found.chains <= table.chains.keys(), f"no chain {found.chains}")

    def observed(self) -> TableDump:
        """Return svcproxy's table, parsed from the messages of a dump."""
        table = self.tables.get(TABLE)
        if table is None:
            return TableDump(generation=self.generation)
        found = TableDump(generation=self.generation, handle=table.handle)
        for body in table.chains.values():
            dump.add_chain(found, body, TABLE)
        for rules in table.rules.values():
            for body in rules:
                dump.add_rule(found, body, TABLE)
        for name, held in table.sets.items():
            dump.add_set(found, held.body, TABLE)
            found.elements[name] = dict(held.elements)
        return found


def listed(member: bytes) -> bytes:
    """Return a message body with one element."""
    return text(1, TABLE) + attribute(3, attribute(1, member)) + u32(9, 0)
