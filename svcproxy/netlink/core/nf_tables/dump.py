"""Parses the kernel's dumps of a table."""

from collections.abc import Iterable

import msgspec

from svcproxy.netlink.core.attributes import U32, collect, string, walk
from svcproxy.netlink.core.nf_tables.ruleset import EncodedElements, key_prefix
from svcproxy.netlink.errors import MalformedError

_ELEMENT_COUNTER = 7


class TableDump(msgspec.Struct):
    """One table as the kernel dumped it; empty if it does not exist.

    Attributes:
        generation: the nf_tables generation at which the table was read.
        handle: the handle of the table, 0 if it does not exist; a new table gets a new handle.
        flags: the flags of the table; svcproxy sets none (``dormant`` is one, for example).
        sets: the attributes of each set, by name.
        chains: the attributes of each chain, by name.
        rules: the attributes of each rule, by chain and in order.
        elements: the elements of each set that was dumped.
    """

    generation: int = 0
    handle: int = 0
    flags: int = 0
    sets: dict[str, bytes] = {}
    chains: dict[str, bytes] = {}
    rules: dict[str, list[bytes]] = {}
    elements: dict[str, EncodedElements] = {}


def add_chain(observed: TableDump, body: bytes, table: str) -> None:
    """Add one message of a dump of chains, unless it is about another table."""
    found = collect(body)
    if string(found.get(1, b"")) == table:
        observed.chains[string(found.get(3, b""))] = body


def add_rule(observed: TableDump, body: bytes, table: str) -> None:
    """Add one message of a dump of rules, unless it is about another table."""
    found = collect(body)
    if string(found.get(1, b"")) == table:
        observed.rules.setdefault(string(found.get(2, b"")), []).append(body)


def add_set(observed: TableDump, body: bytes, table: str) -> None:
    """Add one message of a dump of sets, unless it is about another table."""
    found = collect(body)
    if string(found.get(1, b"")) == table:
        observed.sets[string(found.get(2, b""))] = body


def elements(bodies: Iterable[bytes], key_length: int) -> EncodedElements:
    """Return the elements in the messages of a dump of one set.

    Elements are usually not decoded: the kernel dumps them as they were sent, so the bytes that
    follow the key can be compared directly. An element that is encoded differently is decoded.

    Args:
        bodies: the messages.
        key_length: the length of the set's keys, in bytes.
    """
    found: EncodedElements = {}
    prefix = key_prefix(key_length)
    skip = len(prefix)
    end = skip + key_length
    for body in bodies:
        for member in _members(body):
            if member.startswith(prefix):
                found[member[skip:end]] = member[end:]
            else:
                parts = collect(member)
                found[collect(parts.get(1, b"")).get(1, b"")] = member
    return found


def _members(body: bytes) -> Iterable[bytes]:
    listed = collect(body).get(3, b"")
    return (value for _, value, _ in walk(listed))


def key_length(description: bytes) -> int:
    """Return the length of a set's keys in bytes, from its description."""
    return int.from_bytes(collect(description).get(5, b""), "big")


def element_count(description: bytes) -> int | None:
    """Return the number of elements of a set; ``None`` if the kernel does not report it."""
    number = collect(description).get(20)
    return int.from_bytes(number, "big") if number is not None else None


def packets(encoded: bytes) -> int:
    """Return how many packets an element has counted; 0 if it has no counter.

    Args:
        encoded: the part of the element that follows its key.

    Raises:
        MalformedError: a length does not fit.
    """
    counter = collect(collect(encoded).get(_ELEMENT_COUNTER, b"")).get(2, b"")
    return int.from_bytes(collect(counter).get(2, b""), "big")


def same_content(found: bytes, wanted: bytes) -> bool:
    """Whether two encoded elements mean the same, even if they are encoded differently."""
    if found == wanted:
        return True
    try:
        one, other = collect(found), collect(wanted)
        return all(
            _plain(one.get(kind, b""), kind) == _plain(other.get(kind, b""), kind)
            for kind in (2, 6)
        )
    except MalformedError:
        return False


def _plain(value: bytes, kind: int) -> object:
    """Return a value or verdict without its attribute headers; user data unchanged."""
    if kind == 6 or not value:
        return value
    parts = collect(value)
    if 2 in parts:
        verdict = collect(parts[2])
        return verdict.get(1), string(verdict.get(2, b""))
    return parts.get(1)


def generation(body: bytes) -> int:
    """Return the generation in the kernel's answer to ``GET_GENERATION``.

    Raises:
        MalformedError: the answer has none.
    """
    value = collect(body).get(1, b"")
    if len(value) != U32.size:
        raise MalformedError("no generation")
    number: int = U32.unpack(value)[0]
    return number


def table_handle(body: bytes) -> int:
    """Return the handle of a table."""
    return int.from_bytes(collect(body).get(4, b""), "big")


OWNED = 0x2
"""Table flag: only the process that made the table may change it; the table ends with it."""


def table_owner(body: bytes) -> int:
    """Return the netlink port ID of a table's owner, 0 if it has none."""
    return int.from_bytes(collect(body).get(7, b""), "big")


def table_flags(body: bytes) -> int:
    """Return the flags of a table."""
    return int.from_bytes(collect(body).get(2, b""), "big")
