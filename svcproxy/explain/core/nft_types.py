"""Types of set keys and map values, and how nft prints their values.

The numbers are those of nft (``src/datatype.c``); ``typeof`` notes are those of nft 1.0.6.
"""

from ipaddress import ip_address
from typing import NamedTuple

from svcproxy.explain.core.nft_table import SetInfo, notes_in
from svcproxy.explain.core.packet import NUMBERS

_BITS = 6
_KEY_TYPEOF, _DATA_TYPEOF = 3, 4
_CONCAT, _PAYLOAD, _META, _NUMGEN = 13, 7, 9, 23
PROTOCOL_NAMES = {number: keyword for keyword, number in NUMBERS.items()}
"""Keywords by protocol number."""


class Type(NamedTuple):
    """A data type: its name and its length in bytes."""

    name: str
    length: int

    @property
    def words(self) -> int:
        """The number of 4-byte words that a value fills."""
        return (self.length + 3) // 4


_TYPES = {
    4: Type("integer", 4),
    7: Type("ipv4_addr", 4),
    8: Type("ipv6_addr", 16),
    12: Type("inet_proto", 1),
    13: Type("inet_service", 2),
    19: Type("mark", 4),
}
_EXPRESSIONS = {
    (_PAYLOAD, 11, 2): "th dport",
    (_PAYLOAD, 12, 11): "ip saddr",
    (_PAYLOAD, 12, 12): "ip daddr",
    (_PAYLOAD, 13, 8): "ip6 saddr",
    (_PAYLOAD, 13, 9): "ip6 daddr",
    (_META, 16): "meta l4proto",
    (_META, 3): "meta mark",
}


def types_of(number: int, length: int) -> tuple[Type, ...]:
    """Decode a type number, which holds six bits for each part of a concatenation.

    Unknown numbers give one type of the whole ``length``, named by its number.
    """
    parts: list[Type] = []
    rest = number
    while rest:
        found = _TYPES.get(rest & ((1 << _BITS) - 1))
        if found is None:
            return (Type(f"type-{number}", length),)
        parts.insert(0, found)
        rest >>= _BITS
    return tuple(parts)


def declaration(info: SetInfo) -> str:
    """Return the type declaration of a set: ``type ipv4_addr . inet_service``."""
    key = _typeof(info.notes.get(_KEY_TYPEOF, b""))
    if key:
        data = _typeof(info.notes.get(_DATA_TYPEOF, b""))
        return f"typeof {key} : {data}" if info.data_length else f"typeof {key}"
    text = f"type {_names(info.key_type, info.key_length)}"
    if info.data_length:
        text += f" : {_names(info.data_type, info.data_length)}"
    return text


def _names(number: int, length: int) -> str:
    return " . ".join(each.name for each in types_of(number, length))


def _typeof(note: bytes) -> str:
    """Return the expressions of a ``typeof`` note, empty without a note."""
    if not note:
        return ""
    kind, described = _described(note)
    if kind != _CONCAT:
        return _expression(kind, described)
    parts = (_described(part) for _, part in sorted(notes_in(described).items()))
    return " . ".join(_expression(*part) for part in parts)


def _described(note: bytes) -> tuple[int, bytes]:
    parts = notes_in(note)
    return int.from_bytes(parts.get(0, b""), "little"), parts.get(1, b"")


def _expression(kind: int, described: bytes) -> str:
    numbers = [int.from_bytes(n, "little") for _, n in sorted(notes_in(described).items())]
    if kind == _NUMGEN:
        return f"numgen random mod {numbers[1]}"
    return _EXPRESSIONS.get((kind, *numbers)) or f"[expression {kind} {described.hex()}]"


def show(number: int, value: bytes) -> str:
    """Return a key or value as nft prints it."""
    shown: list[str] = []
    at = 0
    for each in types_of(number, len(value)):
        shown.append(_show(each, value[at : at + each.length]))
        at += each.words * 4
    return " . ".join(shown)


def _show(kind: Type, raw: bytes) -> str:
    match kind.name:
        case "ipv4_addr" | "ipv6_addr":
            return str(ip_address(raw))
        case "inet_proto":
            return PROTOCOL_NAMES.get(raw[0], str(raw[0]))
        case "inet_service":
            return str(int.from_bytes(raw, "big"))
        case "integer":
            return str(int.from_bytes(raw, "little"))
        case "mark":
            return f"0x{int.from_bytes(raw, 'little'):08x}"
    return f"0x{raw.hex()}"


def duration(milliseconds: int) -> str:
    """Return a time as nft prints it: ``1d2h3m4s5ms``."""
    seconds, rest = divmod(milliseconds, 1000)
    text = ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, seconds = divmod(seconds, length)
        text += f"{number}{unit}" if number else ""
    return text + (f"{rest}ms" if rest else "") or "0s"
