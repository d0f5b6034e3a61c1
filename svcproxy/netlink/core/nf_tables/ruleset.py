"""The parts of a table as values: sets and maps, elements, chains and rules."""

from functools import lru_cache

import msgspec

from svcproxy.netlink.core.attributes import HEADER, attribute, nest, text, u32
from svcproxy.netlink.core.nf_tables.datatypes import (
    Concatenation,
    encode_comment,
    set_userdata,
    size,
    type_number,
)
from svcproxy.netlink.core.nf_tables.expressions import Expression

TABLE = "svcproxy"

_MAP, _TIMEOUT, _DYNAMIC = 0x8, 0x10, 0x20

EncodedElements = dict[bytes, bytes]
"""The elements of a set: by key, the encoded rest (a map's value, then the comment)."""
ElementsBySet = dict[str, EncodedElements]
"""The elements of all sets, by the sets' names."""


class SetSpec(msgspec.Struct, frozen=True):
    """A set, or a map if it has ``data``.

    Attributes:
        name: its name.
        key: what its keys consist of.
        data: what its values consist of; ``None`` for a set.
        limit: for sets that packets change: how many elements they may make; 0 for others.
        comment: what it is for, shown to those who list it.
    """

    name: str
    key: Concatenation
    data: Concatenation | None = None
    limit: int = 0
    comment: str = ""

    def attributes(self) -> bytes:
        """Everything that describes the set, as the kernel takes it and dumps it."""
        flags = (_MAP if self.data else 0) | (_TIMEOUT | _DYNAMIC if self.limit else 0)
        parts = [
            text(2, self.name),
            u32(3, flags) if flags else b"",
            u32(4, type_number(self.key)),
            u32(5, size(self.key)),
        ]
        if self.data is not None:
            parts += [u32(6, type_number(self.data)), u32(7, size(self.data))]
        if self.limit:
            parts.append(nest(9, u32(1, self.limit)))
        parts.append(attribute(13, set_userdata(self.key, self.data, self.comment)))
        return b"".join(parts)


class Rule(msgspec.Struct, frozen=True):
    """One rule; the comment tells what it is for."""

    expressions: tuple[Expression, ...]
    comment: str = ""

    def attributes(self) -> bytes:
        """What describes the rule, besides its place."""
        notes = attribute(7, encode_comment(self.comment)) if self.comment else b""
        return nest(4, *self.expressions) + notes


class Hook(msgspec.Struct, frozen=True):
    """Where a base chain is called: ``kind`` is ``nat`` or ``filter``."""

    kind: str
    number: int
    priority: int


class ChainSpec(msgspec.Struct, frozen=True):
    """A chain with its rules; a base chain has a hook and lets through what it does not end."""

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None

    def attributes(self) -> bytes:
        """Everything that describes the chain, its rules aside."""
        hook = self.hook
        if hook is None:
            return text(3, self.name)
        place = nest(4, u32(1, hook.number), u32(2, hook.priority & 0xFFFFFFFF))
        return text(3, self.name) + place + u32(5, 1) + text(7, hook.kind)


# --- ElementsBySet ----------------------------------------------------------------------------------

_KEY, _DATA, _NOTES, _VALUE = 1, 2, 6, 1


def key_prefix(length: int) -> bytes:
    """What precedes a key of ``length`` bytes in an element."""
    return HEADER.pack(8 + length, _KEY) + HEADER.pack(4 + length, _VALUE)


def element_data(value: bytes) -> bytes:
    """A map's value as part of an element; its length is a multiple of four.

    The kernel dumps elements without the flag for nested attributes; written alike, they can be
    compared byte by byte.
    """
    return _data_prefix(len(value)) + value


@lru_cache(maxsize=64)
def _data_prefix(length: int) -> bytes:
    return HEADER.pack(8 + length, _DATA) + HEADER.pack(4 + length, _VALUE)


def element_comment(comment: str) -> bytes:
    """A comment as part of an element."""
    return attribute(_NOTES, encode_comment(comment))


def element(prefix: bytes, key: bytes, tail: bytes) -> bytes:
    """One element in a list of elements."""
    return HEADER.pack(4 + len(prefix) + len(key) + len(tail), 1) + prefix + key + tail
