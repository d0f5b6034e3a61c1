"""Encodes a plan as netlink transactions, and describes the object that an error is about."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import (
    HEADER,
    NESTED,
    attribute,
    collect,
    string,
    text,
    u32,
    walk,
)
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.messages import FLAG_CREATE, FLAG_EXCLUSIVE, FLAG_REQUEST
from svcproxy.netlink.core.messages import HEADER as MESSAGE_HEADER
from svcproxy.netlink.core.nf_tables.datatypes import decode_comment, encode_comment, format_value
from svcproxy.netlink.core.nf_tables.protocol import (
    BATCH_BEGIN,
    BATCH_END,
    DELETE_CHAIN,
    DELETE_ELEMENT,
    DELETE_RULE,
    DELETE_SET,
    DELETE_TABLE,
    FAMILY_HEADER,
    FLAG_APPEND,
    HEADERS,
    LIST_ELEMENT,
    NEW_CHAIN,
    NEW_ELEMENT,
    NEW_RULE,
    NEW_SET,
    NEW_TABLE,
    SUBSYSTEM,
    TABLE_OF,
    message_type,
)
from svcproxy.netlink.core.nf_tables.ruleset import (
    ChainSpec,
    EncodedElements,
    SetSpec,
    encode_element,
    key_prefix,
)
from svcproxy.netlink.errors import MalformedError

_LIST_LIMIT = 60_000
"""The maximum length of a list of elements; an attribute has at most 65,535 bytes."""
_ELEMENTS, _CHAIN_OF, _SET_ID, _RULES = 3, 2, 10, 4
_NEW = FLAG_CREATE | FLAG_EXCLUSIVE
_DELETIONS = frozenset((DELETE_TABLE, DELETE_CHAIN, DELETE_RULE, DELETE_SET, DELETE_ELEMENT))


class Plan(msgspec.Struct):
    """The changes to one table, in the order in which they are sent.

    Attributes:
        delete_table: delete the table.
        make_table: add the table.
        sets: sets to add.
        chains: chains to add, with their rules.
        head_rules: rules that existing chains get at their heads, to refer to sets and chains that
            the plan adds. They are in force before other changes depend on them (``stages``), and
            are replaced with the rules of their chains in ``rewrite``.
        rewrite: existing chains whose rules are replaced.
        delete_chains: names of chains to delete, with their rules.
        delete_sets: names of sets to delete, with their elements.
        remove: keys of elements to delete, by set.
        add: elements to add, by set.
        generation: for a full comparison, the nf_tables generation at which the table was read; 0
            to commit at any generation. Unused in an incremental plan.
        compared: the plan results from a full comparison with a table that was read. Otherwise it
            is incremental: it starts from the table as svcproxy left it.
        sizes: the numbers of elements, rules and chains in the table afterwards.
    """

    delete_table: bool = False
    make_table: bool = False
    sets: list[SetSpec] = []
    chains: list[ChainSpec] = []
    head_rules: list[ChainSpec] = []
    rewrite: list[ChainSpec] = []
    delete_chains: list[str] = []
    delete_sets: list[str] = []
    remove: dict[str, list[bytes]] = {}
    add: dict[str, EncodedElements] = {}
    generation: int = 0
    compared: bool = False
    sizes: Mapping[str, int] = {}

    def __bool__(self) -> bool:
        return bool(
            self.delete_table
            or self.make_table
            or self.sets
            or self.chains
            or self.rewrite
            or self.delete_chains
            or self.delete_sets
            or self.remove
            or self.add
        )

    @property
    def written(self) -> dict[str, int]:
        """The numbers of elements, rules and chains that the plan adds."""
        made = [*self.chains, *self.head_rules, *self.rewrite]
        counts = {
            "elements": sum(map(len, self.add.values())),
            "rules": sum(len(chain.rules) for chain in made),
            "chains": len(self.chains),
        }
        return {kind: count for kind, count in counts.items() if count}

    @property
    def operations(self) -> dict[str, int]:
        """The numbers of operations, by kind."""
        written = self.written
        counts = {
            "table_deleted": int(self.delete_table),
            "table_added": int(self.make_table),
            "set_added": len(self.sets),
            "set_deleted": len(self.delete_sets),
            "chain_added": len(self.chains),
            "chain_flushed": len(self.rewrite),
            "chain_deleted": len(self.delete_chains),
            "rule_added": written.get("rules", 0),
            "element_added": written.get("elements", 0),
            "element_deleted": sum(map(len, self.remove.values())),
        }
        return {kind: count for kind, count in counts.items() if count}


def stages(plan: Plan) -> Iterator[Plan]:
    """Split a plan into transactions: two if it adds sets that rules must refer to, else one.

    A packet traverses the rules that were in force when it entered the base chain, but it looks up
    the current elements (``nft_do_chain`` and ``nft_genmask_cur``). If one transaction added a map,
    its rule, and its elements, then packets in flight would miss elements that moved to the
    new map. So the first transaction adds the empty map and its rule.
    """
    if not plan.head_rules:
        yield plan
        return
    yield Plan(
        sets=plan.sets,
        chains=plan.chains,
        head_rules=plan.head_rules,
        generation=plan.generation,
        compared=plan.compared,
    )
    yield msgspec.structs.replace(plan, sets=[], chains=[], head_rules=[])


class Message(NamedTuple):
    """One message of a transaction; ``description`` names its object in errors."""

    kind: int
    flags: int
    body: bytes
    description: str


def messages(plan: Plan, table: str) -> Iterator[Message]:
    """Yield the messages of a plan; each object follows those that it refers to.

    Args:
        plan: one of its ``stages``.
        table: the name of the table.
    """
    table_name = text(TABLE_OF, table)
    if plan.delete_table:
        yield Message(DELETE_TABLE, 0, table_name, f"table {table}")
    if plan.make_table:
        yield _make_table(table_name)
    for number, spec in enumerate(plan.sets):
        # The kernel requires an ID for each set of a transaction; no message refers to it.
        body = table_name + spec.attributes() + u32(_SET_ID, number + 1)
        yield Message(NEW_SET, _NEW, body, f"set {spec.name}")
    yield from _chains(plan, table_name)
    for name in plan.delete_sets:
        yield Message(DELETE_SET, 0, table_name + text(2, name), f"set {name}")
    for name, keys in plan.remove.items():
        for block in _blocks((key, b"") for key in keys):
            yield _elements(DELETE_ELEMENT, 0, table_name, name, block)
    # A dump may omit elements while the kernel resizes the set's hash table (rhashtable), so a
    # comparison may add elements that exist.
    flags = FLAG_CREATE if plan.compared else _NEW
    for name, elements in plan.add.items():
        for block in _blocks(elements.items()):
            yield _elements(NEW_ELEMENT, flags, table_name, name, block)


def _make_table(table_name: bytes) -> Message:
    comment = attribute(6, encode_comment("Kubernetes Services; do not edit, changes are undone"))
    return Message(NEW_TABLE, _NEW, table_name + u32(2, 0) + comment, "the table")


def _chains(plan: Plan, table_name: bytes) -> Iterator[Message]:
    """Yield the messages about chains and rules.

    They precede those about elements: for a rule that refers to a map, the kernel checks all of the
    map's elements.
    """
    for chain in plan.chains:
        yield Message(NEW_CHAIN, _NEW, table_name + chain.attributes(), f"chain {chain.name}")
    for chain in plan.rewrite:
        flush = table_name + text(_CHAIN_OF, chain.name)
        yield Message(DELETE_RULE, 0, flush, f"the rules of chain {chain.name}")
    for chain in plan.head_rules:
        for rule in chain.rules:
            body = table_name + text(_CHAIN_OF, chain.name) + rule.attributes()
            yield Message(NEW_RULE, FLAG_CREATE, body, f"a rule at the head of chain {chain.name}")
    for chain in (*plan.chains, *plan.rewrite):
        for number, rule in enumerate(chain.rules):
            body = table_name + text(_CHAIN_OF, chain.name) + rule.attributes()
            description = f"rule {number + 1} of chain {chain.name}"
            yield Message(NEW_RULE, FLAG_CREATE | FLAG_APPEND, body, description)
    for name in plan.delete_chains:
        yield Message(DELETE_CHAIN, 0, table_name + text(3, name), f"chain {name}")


def _blocks(elements: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    prefixes: dict[int, bytes] = {}
    parts: list[bytes] = []
    length = 0
    for key, encoded in elements:
        size = len(key)
        if size not in prefixes:
            prefixes[size] = key_prefix(size)
        part = encode_element(prefixes[size], key, encoded)
        length += len(part)
        if length > _LIST_LIMIT:
            yield b"".join(parts)
            parts, length = [], len(part)
        parts.append(part)
    if parts:
        yield b"".join(parts)


def _elements(kind: int, flags: int, table_name: bytes, name: str, block: bytes) -> Message:
    listed = attribute(_ELEMENTS | NESTED, block)
    return Message(kind, flags, table_name + text(2, name) + listed, f"an element of {name}")


def batch(
    found: Iterable[Message], family: IPFamily, generation: int = 0, *, end: bool = True
) -> bytes:
    """Encode a transaction; the messages' sequence numbers count from 1.

    Args:
        found: its messages.
        family: the family of the table.
        generation: the nf_tables generation that the transaction is based on. If it is not the
            current one, the kernel refuses with ERESTART (since 4.16). 0 disables the check.
        end: whether to commit. Without its end, the kernel only validates the transaction, as
            for ``nft --check``.
    """
    condition = u32(1, generation) if generation else b""
    parts = [_envelope(BATCH_BEGIN, 0, condition)]
    number = FAMILY_NUMBERS[family]
    sequence = 0
    pack, pack_family = MESSAGE_HEADER.pack, FAMILY_HEADER.pack(number, 0, 0)
    for kind, flags, body, _ in found:
        sequence += 1
        size = HEADERS + len(body)
        parts += (
            pack(size, message_type(kind), FLAG_REQUEST | flags, sequence, 0),
            pack_family,
            body,
        )
    if end:
        parts.append(_envelope(BATCH_END, sequence + 1))
    return b"".join(parts)


def _envelope(kind: int, sequence: int, attributes: bytes = b"") -> bytes:
    size = HEADERS + len(attributes)
    header = MESSAGE_HEADER.pack(size, kind, FLAG_REQUEST, sequence, 0)
    return header + FAMILY_HEADER.pack(0, 0, SUBSYSTEM) + attributes


def split(message: Message) -> Iterator[Message]:
    """Split a message into messages with one element each; other messages stay as they are.

    The kernel stops at the first element of a message that it refuses, and older kernels do not
    report which element it was.
    """
    if message.kind not in {NEW_ELEMENT, DELETE_ELEMENT}:
        yield message
        return
    for found, value, start in walk(message.body):
        if found == _ELEMENTS:
            for _, member, _ in walk(value):
                listed = attribute(_ELEMENTS | NESTED, attribute(LIST_ELEMENT, member))
                yield message._replace(body=message.body[:start] + listed)


def element_keys(body: bytes) -> Iterator[bytes]:
    """Yield the keys of the elements in the body of a message.

    Raises:
        MalformedError: a length does not fit.
    """
    for _, member, _ in walk(collect(body).get(_ELEMENTS, b"")):
        yield collect(collect(member).get(1, b"")).get(1, b"")


def explain(message: Message, offset: int, sets: Mapping[str, SetSpec]) -> str:
    """Describe the object that an error is about.

    Args:
        message: the message that the kernel refused.
        offset: the position of the offending attribute in the message, from the extended
            acknowledgement; 0 if unknown.
        sets: the sets of the table; their datatypes are used to format keys.
    """
    verb = "delete" if message.kind in _DELETIONS else "add"
    inner = ""
    try:
        if message.kind in {NEW_ELEMENT, DELETE_ELEMENT}:
            inner = _element_at(message.body, offset - HEADERS, sets)
        elif message.kind == NEW_RULE:
            inner = _expression_at(message.body, offset - HEADERS)
    except MalformedError:
        inner = ""
    return f"cannot {verb} {message.description}{inner}"


def _at(body: bytes, offset: int, kind: int) -> bytes | None:
    """Return the member of the list ``kind`` that covers a position."""
    for found, value, start in walk(body):
        if found == kind:
            for _, member, where in walk(value):
                begin = start + HEADER.size + where
                if begin <= offset < begin + HEADER.size + len(member):
                    return member
    return None


def _element_at(body: bytes, offset: int, sets: Mapping[str, SetSpec]) -> str:
    member = _at(body, offset, _ELEMENTS)
    if member is None:
        return ""
    parts = collect(member)
    key = collect(parts.get(1, b"")).get(1, b"")
    spec = sets.get(string(collect(body).get(2, b"")))
    shown = format_value(spec.key, key) if spec is not None else key.hex()
    comment = decode_comment(parts.get(6, b""))
    return f": {shown} ({comment})" if comment else f": {shown}"


def _expression_at(body: bytes, offset: int) -> str:
    member = _at(body, offset, _RULES)
    return f", expression {string(collect(member).get(1, b''))}" if member is not None else ""
