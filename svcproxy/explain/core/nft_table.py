"""An nftables table as a value, rendered by svcproxy or dumped by the kernel.

Sets, chains and rules are netlink attributes. The kernel dumps them with the attributes that were
sent and some more, so the same value describes a rendered table and one that was read.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from svcproxy.explain.core.packet import UnknownRuleError, Update
from svcproxy.netlink.core.attributes import attribute, collect, string, walk
from svcproxy.netlink.errors import MalformedError

HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
"""The hooks, indexed by netfilter's numbers."""
_ACCEPT_POLICY = 1


class NftTable(msgspec.Struct, frozen=True):
    """One table of family ``ip`` or ``ip6``.

    Attributes:
        family: ``ip`` or ``ip6``.
        name: the table's name.
        sets: the netlink attributes of each set or map, by name.
        chains: the netlink attributes of each chain, by name.
        rules: the netlink attributes of each rule, by chain and in order.
        elements: the elements of each set: by key, the encoded attributes after the key.
        comment: the table's comment.
    """

    family: str
    name: str
    sets: Mapping[str, bytes] = {}
    chains: Mapping[str, bytes] = {}
    rules: Mapping[str, Sequence[bytes]] = {}
    elements: Mapping[str, Mapping[bytes, bytes]] = {}
    comment: str = ""

    def value(self, name: str, key: bytes) -> bytes | None:
        """Return the value of a map's element, empty for a set's, ``None`` if it does not exist."""
        tail = self.elements.get(name, {}).get(key)
        return None if tail is None else element_value(tail)

    def after(self, updates: Iterable[Update]) -> "NftTable":
        """Return a copy with the elements that packets have added and deleted."""
        elements = {name: dict(tails) for name, tails in self.elements.items()}
        for name, key, value, _ in updates:
            held = elements.setdefault(name, {})
            if value is None:
                held.pop(key, None)
            else:
                held.setdefault(key, attribute(2, attribute(1, value)))
        return msgspec.structs.replace(self, elements=elements)


class Expression(NamedTuple):
    """One expression of a rule: its name, and its attributes by number."""

    name: str
    attributes: Mapping[int, bytes]

    def number(self, kind: int) -> int:
        """Return a numeric attribute, 0 if it is missing."""
        return int.from_bytes(self.attributes.get(kind, b""), "big")

    def register(self, kind: int) -> int:
        """Return the 4-byte word at which a register begins."""
        number = self.number(kind)
        return (number - 1) * 4 if number < 8 else number - 8

    def text(self, kind: int) -> str:
        """Return a string attribute."""
        return string(self.attributes.get(kind, b""))

    def value(self, kind: int) -> bytes:
        """Return the bytes of a nested value attribute."""
        return collect(self.attributes.get(kind, b"")).get(1, b"")


class Rule(NamedTuple):
    """A decoded rule."""

    expressions: tuple[Expression, ...]
    comment: str = ""


class SetInfo(NamedTuple):
    """The properties of a set; lengths are in bytes."""

    key_length: int
    data_length: int
    flags: int
    key_type: int
    data_type: int
    size: int
    notes: Mapping[int, bytes]


class ChainInfo(NamedTuple):
    """The properties of a chain; ``hook`` is -1 for chains that are not base chains."""

    hook: int = -1
    priority: int = 0
    kind: str = ""
    accepts: bool = True


@lru_cache(maxsize=4096)
def decode_rule(body: bytes) -> Rule:
    """Decode a rule.

    Raises:
        UnknownRuleError: the attributes are malformed.
    """
    try:
        parts = collect(body)
        expressions = tuple(
            Expression(string(member[1]), collect(member.get(2, b"")))
            for member in (collect(value) for _, value, _ in walk(parts.get(4, b"")))
        )
        return Rule(expressions, comment_of(parts.get(7, b""), 0))
    except (MalformedError, KeyError) as error:
        raise UnknownRuleError(f"malformed rule {body.hex():.80}") from error


@lru_cache(maxsize=1024)
def describe_set(body: bytes) -> SetInfo:
    """Decode the properties of a set."""
    parts = collect(body)
    number = {kind: int.from_bytes(parts.get(kind, b""), "big") for kind in (3, 4, 5, 6, 7)}
    size = int.from_bytes(collect(parts.get(9, b"")).get(1, b""), "big")
    return SetInfo(
        number[5], number[7], number[3], number[4], number[6], size, notes_in(parts.get(13, b""))
    )


@lru_cache(maxsize=1024)
def describe_chain(body: bytes) -> ChainInfo:
    """Decode the properties of a chain."""
    parts = collect(body)
    if 4 not in parts:
        return ChainInfo()
    hook = collect(parts[4])
    priority = int.from_bytes(hook[2], "big", signed=True)
    policy = int.from_bytes(parts.get(5, b"\1"), "big")
    return ChainInfo(
        int.from_bytes(hook[1], "big"),
        priority,
        string(parts.get(7, b"")),
        policy == _ACCEPT_POLICY,
    )


def element_value(tail: bytes) -> bytes:
    """Return the value of a map's element from the attributes after its key, empty for a set's."""
    data = collect(tail).get(2, b"")
    return collect(data).get(1, b"") if data else b""


def verdict_of(expression: Expression) -> tuple[int, str] | None:
    """Return code and chain of a verdict, ``None`` if the expression loads a value."""
    data = collect(expression.attributes.get(2, b""))
    if 2 not in data:
        return None
    verdict = collect(data[2])
    return int.from_bytes(verdict[1], "big", signed=True), string(verdict.get(2, b""))


def notes_in(data: bytes) -> dict[int, bytes]:
    """Parse nft's user data: a type byte, a length byte and a value each."""
    notes: dict[int, bytes] = {}
    at = 0
    while at + 2 <= len(data):
        kind, length = data[at], data[at + 1]
        notes[kind] = data[at + 2 : at + 2 + length]
        at += 2 + length
    return notes


def comment_of(notes: bytes, kind: int) -> str:
    """Return the comment in user data; ``kind`` is its type, which depends on the object."""
    return notes_in(notes).get(kind, b"").rstrip(b"\0").decode(errors="replace")
