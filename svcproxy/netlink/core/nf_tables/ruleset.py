"""The objects of a table as values: sets and maps, chains, rules and elements."""

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
"""The table of nftables mode."""
ACCOUNTING_TABLE = "svcproxy-accounting"
"""The table that counts connections, in every mode."""

_MAP, _TIMEOUT, _DYNAMIC = 0x8, 0x10, 0x20

EncodedElements = dict[bytes, bytes]
"""The elements of one set: by key, the encoded rest (a map's value, then the comment)."""
ElementsBySet = dict[str, EncodedElements]
"""The elements of several sets, by the name of the set."""


class SetSpec(msgspec.Struct, frozen=True):
    """A set, or a map if it has ``data``.

    Attributes:
        name: its name.
        key: the datatypes of its keys.
        data: the datatypes of its values; ``None`` for a set.
        limit: the maximum number of elements, for sets that packets change; 0 for other sets.
        comment: its purpose, shown when the set is listed.
        counter: whether each element counts the packets that match it.
    """

    name: str
    key: Concatenation
    data: Concatenation | None = None
    limit: int = 0
    comment: str = ""
    counter: bool = False

    def attributes(self) -> bytes:
        """Return the attributes of the set, encoded as in the kernel's dumps."""
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
        if self.counter:
            parts.append(nest(17, text(1, "counter")))
        return b"".join(parts)


class Rule(msgspec.Struct, frozen=True):
    """A rule: its expressions, and a comment that is shown when the rule is listed."""

    expressions: tuple[Expression, ...]
    comment: str = ""

    def attributes(self) -> bytes:
        """Return the attributes of the rule, except for its chain and position."""
        user_data = attribute(7, encode_comment(self.comment)) if self.comment else b""
        return nest(4, *self.expressions) + user_data


class Hook(msgspec.Struct, frozen=True):
    """The hook of a base chain: its type (``nat`` or ``filter``), number and priority."""

    kind: str
    number: int
    priority: int


class ChainSpec(msgspec.Struct, frozen=True):
    """A chain with its rules. A base chain has a hook, and policy accept."""

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None

    def attributes(self) -> bytes:
        """Return the attributes of the chain, without its rules."""
        hook = self.hook
        if hook is None:
            return text(3, self.name)
        place = nest(4, u32(1, hook.number), u32(2, hook.priority & 0xFFFFFFFF))
        return text(3, self.name) + place + u32(5, 1) + text(7, hook.kind)


# --- Elements ----------------------------------------------------------------------------------

_KEY, _DATA, _USER_DATA, _VALUE = 1, 2, 6, 1


def key_prefix(length: int) -> bytes:
    """Return the attribute headers that precede a key of ``length`` bytes in an element."""
    return HEADER.pack(8 + length, _KEY) + HEADER.pack(4 + length, _VALUE)


def element_data(value: bytes) -> bytes:
    """Encode a map's value as part of an element; its length must be a multiple of four.

    The flag for nested attributes is left out, as in the kernel's dumps, so that elements can be
    compared byte by byte.
    """
    return _data_prefix(len(value)) + value


@lru_cache(maxsize=64)
def _data_prefix(length: int) -> bytes:
    return HEADER.pack(8 + length, _DATA) + HEADER.pack(4 + length, _VALUE)


def element_comment(comment: str) -> bytes:
    """Encode a comment as part of an element."""
    return attribute(_USER_DATA, encode_comment(comment))


def encode_element(prefix: bytes, key: bytes, encoded: bytes) -> bytes:
    """Encode one member of a list of elements.

    Args:
        prefix: the headers before the key, from ``key_prefix``.
        key: the key.
        encoded: the encoded rest of the element.
    """
    return HEADER.pack(4 + len(prefix) + len(key) + len(encoded), 1) + prefix + key + encoded
