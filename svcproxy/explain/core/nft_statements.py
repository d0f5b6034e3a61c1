"""Converts a rule's expressions to nft statements.

Expressions load registers and use them. The conversion tracks the text of each register's value.
"""

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from svcproxy.explain.core.nft_table import Expression, NftTable, describe_set, verdict_of
from svcproxy.explain.core.nft_types import PROTOCOL_NAMES, duration, types_of

_PAYLOADS = {
    ("ip", 1, 12): "ip saddr",
    ("ip", 1, 16): "ip daddr",
    ("ip6", 1, 8): "ip6 saddr",
    ("ip6", 1, 24): "ip6 daddr",
    ("ip", 2, 2): "th dport",
    ("ip6", 2, 2): "th dport",
}
_META = {3: "meta mark", 6: "iifname", 16: "meta l4proto"}
_STATES = {1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"}
_STATUS = {0x10: "snat", 0x20: "dnat"}
_VERDICTS = {0: "drop", 1: "accept", -1: "continue", -3: "jump", -4: "goto", -5: "return"}
_UPDATES = {0: "add", 1: "update", 2: "delete"}
_PORT_UNREACHABLE = {"ip": 3, "ip6": 4}
_FULLY_RANDOM = 0x10


class Piece(NamedTuple):
    """The contents of a register.

    Attributes:
        text: the expression that was loaded, in nft's syntax.
        words: how many words it fills.
        length: its length in bytes.
        mask: the bits that are left of it, if some were cleared.
        xor: the bits that were flipped after that.
        source: the number of the look-up whose value it is a part of, or ``None``.
    """

    text: str
    words: int
    length: int
    mask: bytes | None = None
    xor: bytes = b""
    source: int | None = None


class Statements:
    """The statements of one rule.

    Args:
        table: the table, for the lengths of sets' keys.
    """

    def __init__(self, table: NftTable) -> None:
        self._table = table
        self._family = table.family
        self._pieces: dict[int, Piece] = {}
        self._texts: list[str] = []
        self._lookups: list[tuple[int, str]] = []

    @property
    def texts(self) -> list[str]:
        """The statements so far; a look-up whose value is used in parts has a name."""
        return [text for text in self._texts if text]

    def add(self, expression: Expression) -> None:
        """Add the next expression."""
        make: Callable[[Expression], str] = getattr(self, f"_on_{expression.name}", _unknown)
        text = make(expression)
        self._texts.append(text)

    def _load(self, word: int, piece: Piece) -> str:
        for each in range(word, word + piece.words):
            self._pieces.pop(each, None)
        self._pieces[word] = piece
        return ""

    def _piece(self, word: int) -> Piece:
        return self._pieces.get(word) or Piece(f"[register {word}]", 1, 4)

    def _key(self, word: int, length: int) -> str:
        """Return the concatenated values of registers, starting at a word."""
        parts: list[str] = []
        end = word + (length + 3) // 4
        while word < end:
            piece = self._piece(word)
            parts.append(_masked(piece))
            word += piece.words
        return " . ".join(parts)

    def _set_key(self, name: str, word: int) -> str:
        if name not in self._table.sets:
            return f"[register {word}]"
        return self._key(word, describe_set(self._table.sets[name]).key_length)

    def _on_payload(self, expression: Expression) -> str:
        header, offset, length = (expression.number(kind) for kind in (2, 3, 4))
        text = _PAYLOADS.get((self._family, header, offset), f"@{header},{offset * 8},{length * 8}")
        return self._load(expression.register(1), Piece(text, (length + 3) // 4, length))

    def _on_meta(self, expression: Expression) -> str:
        key = expression.number(2)
        text = _META.get(key, f"meta [{key}]")
        if 3 in expression.attributes:
            return f"{text} set {_masked(self._piece(expression.register(3)))}"
        length = {6: 16, 16: 1}.get(key, 4)
        return self._load(expression.register(1), Piece(text, (length + 3) // 4, length))

    def _on_ct(self, expression: Expression) -> str:
        key = expression.number(2)
        text = {0: "ct state", 2: "ct status"}.get(key, f"ct [{key}]")
        return self._load(expression.register(1), Piece(text, 1, 4))

    def _on_fib(self, expression: Expression) -> str:
        which = {1: "saddr", 2: "daddr"}.get(expression.number(3), f"[{expression.number(3)}]")
        result = {3: "type"}.get(expression.number(2), f"[{expression.number(2)}]")
        return self._load(expression.register(1), Piece(f"fib {which} {result}", 1, 4))

    def _on_bitwise(self, expression: Expression) -> str:
        piece = self._piece(expression.register(1))
        changed = piece._replace(mask=expression.value(4), xor=expression.value(5))
        return self._load(expression.register(2), changed)

    def _on_numgen(self, expression: Expression) -> str:
        how = {0: "inc", 1: "random"}.get(expression.number(3), "?")
        text = f"numgen {how} mod {expression.number(2)}"
        if expression.number(4):
            text += f" offset {expression.number(4)}"
        return self._load(expression.register(1), Piece(text, 1, 4))

    def _on_immediate(self, expression: Expression) -> str:
        verdict = verdict_of(expression)
        if verdict is None:
            value = expression.value(2)
            text = f"0x{int.from_bytes(value, 'little'):08x}"
            return self._load(expression.register(1), Piece(text, 1, len(value)))
        code, chain = verdict
        text = _VERDICTS.get(code, f"[verdict {code}]")
        return f"{text} {chain}" if chain else text

    def _on_cmp(self, expression: Expression) -> str:
        piece, value = self._piece(expression.register(1)), expression.value(3)
        operator = expression.number(2)
        if operator > 1:
            return f"{_masked(piece)} [operator {operator}] 0x{value.hex()}"
        equal = operator == 0
        sign = " " if equal else " != "
        if piece.text in {"ct state", "ct status"} and piece.mask is not None and not any(value):
            names = _STATES if piece.text == "ct state" else _STATUS
            return f"{piece.text}{' ! ' if equal else ' '}{_bits(piece.mask, names)}"
        if piece.text.endswith("addr") and len(piece.text) < 10:
            return f"{piece.text}{sign}{_network(piece, value)}"
        if piece.text == "iifname":
            name = value.rstrip(b"\0").decode(errors="replace")
            return f'iifname{sign}"{name}{"*" if len(value) < 16 else ""}"'
        return _constant(piece, value, sign)

    def _on_lookup(self, expression: Expression) -> str:
        name = expression.text(1)
        key = self._set_key(name, expression.register(2))
        if 3 not in expression.attributes:
            return f"{key} {'!= ' if expression.number(5) else ''}@{name}"
        text = f"{key} map @{name}"
        number = len(self._lookups) + 1
        self._lookups.append((len(self._texts), text))
        word = expression.register(3)
        info = describe_set(self._table.sets[name]) if name in self._table.sets else None
        parts = types_of(info.data_type, info.data_length) if info else ()
        for position, part in enumerate(parts, 1):
            piece = Piece(f"${number}.{position}", part.words, part.length, source=number)
            self._load(word, piece)
            word += part.words
        return f"{text} as ${number}"

    def _on_nat(self, expression: Expression) -> str:
        kind = {0: "snat", 1: "dnat"}.get(expression.number(1), "[nat]")
        address, port = (self._piece(expression.register(kind)) for kind in (3, 5))
        source = address.source
        if source is not None and (address.text, port.text) == (f"${source}.1", f"${source}.2"):
            # The whole value of a map: nft prints the look-up inline.
            place, text = self._lookups[source - 1]
            self._texts[place] = ""
            return f"{kind} {self._family} to {text}"
        return f"{kind} to {_masked(address)}:{_masked(port)}"

    def _on_masq(self, expression: Expression) -> str:
        flags = expression.number(1)
        if flags & ~_FULLY_RANDOM:
            return f"masquerade [flags {flags:#x}]"
        return "masquerade fully-random" if flags else "masquerade"

    def _on_reject(self, expression: Expression) -> str:
        kind, code = expression.number(1), expression.number(2)
        if kind == 0 and code == _PORT_UNREACHABLE.get(self._family):
            return "reject"
        return f"reject with [type {kind} code {code}]"

    def _on_dynset(self, expression: Expression) -> str:
        name = expression.text(1)
        how = _UPDATES.get(expression.number(3), f"[operation {expression.number(3)}]")
        text = self._set_key(name, expression.register(4))
        if 6 in expression.attributes and expression.number(6):
            text += f" timeout {duration(expression.number(6))}"
        if 5 in expression.attributes and name in self._table.sets:
            length = describe_set(self._table.sets[name]).data_length
            text += f" : {self._key(expression.register(5), length)}"
        return f"{how} @{name} {{ {text} }}"

    def _on_counter(self, _expression: Expression) -> str:
        return "counter"


def _masked(piece: Piece) -> str:
    """Return a register's value with its masking."""
    if piece.mask is None:
        return piece.text
    if piece.text.endswith("addr"):
        return f"{piece.text} & {ip_address(piece.mask)}"
    mask, xor = (int.from_bytes(part, "little") for part in (piece.mask, piece.xor))
    every = (1 << 8 * len(piece.mask)) - 1
    if xor and mask == every ^ xor:
        return f"{piece.text} | 0x{xor:08x}"
    text = f"{piece.text} & 0x{mask:08x}"
    return f"{text} ^ 0x{xor:08x}" if xor else text


def _constant(piece: Piece, value: bytes, sign: str) -> str:
    """Return a comparison with a constant whose form depends on what it is compared with."""
    if piece.mask is None and piece.text == "meta l4proto":
        return f"{piece.text}{sign}{PROTOCOL_NAMES.get(value[0], value[0])}"
    if piece.mask is None and piece.text.endswith("port"):
        return f"{piece.text}{sign}{int.from_bytes(value, 'big')}"
    number = int.from_bytes(value, "little")
    if piece.text.startswith("fib "):
        return f"{piece.text}{sign}{ {1: 'unicast', 2: 'local'}.get(number, number) }"
    return _number(piece, number, sign)


def _number(piece: Piece, number: int, sign: str) -> str:
    """Return a comparison of a number; nft prints a mask of the highest bits as a prefix length."""
    if piece.mask is None:
        return f"{piece.text}{sign}0x{number:08x}"
    bits = _prefix(piece.mask)
    if bits:
        return f"{piece.text}{sign}0x{number:08x}/{bits}"
    return f"{_masked(piece)}{' == ' if sign == ' ' else sign}0x{number:08x}"


def _prefix(mask: bytes) -> int:
    """Return the prefix length of a mask that keeps the highest bits only, 0 for other masks."""
    number, every = int.from_bytes(mask, "little"), len(mask) * 8
    bits = number.bit_count()
    return bits if number == ((1 << bits) - 1) << (every - bits) else 0


def _network(piece: Piece, value: bytes) -> str:
    """Return the address or network that an address is compared with."""
    size = 4 if piece.text.startswith("ip ") else 16
    bits = len(value) * 8
    if piece.mask is not None:
        bits = int.from_bytes(piece.mask, "big").bit_count()
    network = ip_network((value.ljust(size, b"\0"), bits))
    return str(network.network_address) if bits == size * 8 else str(network)


def _bits(mask: bytes, names: Mapping[int, str]) -> str:
    number = int.from_bytes(mask, "little")
    shown = [name for bit, name in names.items() if number & bit]
    unknown = number & ~sum(bit for bit in names)
    return ",".join([*shown, *([f"0x{unknown:x}"] if unknown else [])])


def _unknown(expression: Expression) -> str:
    """Return an unknown expression as its name and attributes."""
    shown = (f"{kind}=0x{value.hex()}" for kind, value in sorted(expression.attributes.items()))
    return f"[{' '.join((expression.name, *shown))}]"
