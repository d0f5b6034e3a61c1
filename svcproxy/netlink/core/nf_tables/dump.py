"""What the kernel holds, read from its dumps."""

from collections.abc import Iterable

import msgspec

from svcproxy.netlink.core.attributes import U32, MalformedError, collect, string, walk
from svcproxy.netlink.core.nf_tables.ruleset import EncodedElements, key_prefix


class TableDump(msgspec.Struct):
    """One table as the kernel holds it; empty if there is none.

    Attributes:
        generation: the state of the kernel at which it was read.
        handle: the table's number, 0 if there is no table; a new table gets another one.
        flags: the table's flags; ours has none (others make it dormant, for example).
        sets: what describes each set.
        chains: what describes each chain.
        rules: what describes each rule, by chain and in order.
        elements: the elements of each set that was read.
    """

    generation: int = 0
    handle: int = 0
    flags: int = 0
    sets: dict[str, bytes] = {}
    chains: dict[str, bytes] = {}
    rules: dict[str, list[bytes]] = {}
    elements: dict[str, EncodedElements] = {}


def add_chain(observed: TableDump, body: bytes, table: str) -> None:
    """Take in one message of a dump of chains; those of other tables are passed over."""
    found = collect(body)
    if string(found.get(1, b"")) == table:
        observed.chains[string(found.get(3, b""))] = body


def add_rule(observed: TableDump, body: bytes, table: str) -> None:
    """Take in one message of a dump of rules."""
    found = collect(body)
    if string(found.get(1, b"")) == table:
        observed.rules.setdefault(string(found.get(2, b"")), []).append(body)


def add_set(observed: TableDump, body: bytes, table: str) -> None:
    """Take in one message of a dump of sets."""
    found = collect(body)
    if string(found.get(1, b"")) == table:
        observed.sets[string(found.get(2, b""))] = body


def elements(bodies: Iterable[bytes], key_length: int) -> EncodedElements:
    """The elements in the messages of a dump of one set.

    ElementsBySet are not decoded: the kernel writes them as they were sent, so the bytes after the
    key can be compared as they are. One that is written otherwise is taken apart.
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
    """The length of a set's keys, from its dump."""
    return int.from_bytes(collect(description).get(5, b""), "big")


def element_count(description: bytes) -> int | None:
    """How many elements a set has, from its dump; ``None`` if the kernel does not tell."""
    number = collect(description).get(20)
    return int.from_bytes(number, "big") if number is not None else None


def same_content(found: bytes, wanted: bytes) -> bool:
    """Whether what follows an element's key means the same, however it is written."""
    if found == wanted:
        return True
    try:
        theirs, ours = collect(found), collect(wanted)
        return all(
            _plain(theirs.get(kind, b""), kind) == _plain(ours.get(kind, b""), kind)
            for kind in (2, 6)
        )
    except MalformedError:
        return False


def _plain(value: bytes, kind: int) -> object:
    """A value or verdict without the flags of its attributes; user data as it is."""
    if kind == 6 or not value:
        return value
    parts = collect(value)
    if 2 in parts:
        verdict = collect(parts[2])
        return verdict.get(1), string(verdict.get(2, b""))
    return parts.get(1)


def generation(body: bytes) -> int:
    """The generation in the answer to a question for it.

    Raises:
        MalformedError: it is not there.
    """
    value = collect(body).get(1, b"")
    if len(value) != U32.size:
        raise MalformedError("no generation")
    number: int = U32.unpack(value)[0]
    return number


def table_handle(body: bytes) -> int:
    """The number of a table."""
    return int.from_bytes(collect(body).get(4, b""), "big")


OWNED = 0x2
"""Of a table's flags: only the process that made it may change it, and it goes with that one."""


def table_owner(body: bytes) -> int:
    """The netlink address of a table's owner, 0 if it has none."""
    return int.from_bytes(collect(body).get(7, b""), "big")


def table_flags(body: bytes) -> int:
    """The flags of a table."""
    return int.from_bytes(collect(body).get(2, b""), "big")
