"""Finding the one rule for an address and port in O(log n) rules.

kube-proxy puts one rule per Service port into KUBE-SERVICES, and every new connection walks
them until one matches. Here they form a tree of chains by address prefix, and within one
address by protocol and port range. The shape is a function of the set of keys alone, so a
process that computes it from scratch finds the chains that its predecessor arrived at step by
step; one changed key touches the chains on its path only.

A key is an integer: address, then 2 bits of protocol, then 16 bits of port. The tree of node
ports has no address part.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from svcproxy.backends.iptables.core.naming import CLUSTER_PREFIX
from svcproxy.backends.xtables.core.hashing import hash16
from svcproxy.backends.xtables.core.rule_text import Rules, address_bytes, address_text, rule
from svcproxy.model.names import Protocol

LEAF = 16
"""A chain of up to so many rules is not divided further."""
_INLINE = 4
"""A branch with up to so many rules stands in its parent: a chain costs more than a rule."""

_PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
_SORTING = 50
"""With more than one change for so many keys, sorting takes less time than moving keys."""
_PORT_BITS = 18


def frontend_key(address: str, protocol: Protocol, port: int) -> int:
    """The key of a frontend; ``address`` is empty for node ports.

    Raises:
        ValueError: the address or the port is none, so that the key would be another's.
    """
    if not 0 < port < 1 << 16:
        raise ValueError(f"{port} is no port")
    number = int.from_bytes(address_bytes(address)) if address else 0
    return number << _PORT_BITS | _PROTOCOLS.index(protocol) << 16 | port


class _Range(msgspec.Struct, frozen=True, gc=False):
    """All keys that share the first ``bits`` bits of ``low``."""

    low: int
    bits: int


class _Shape:
    """What stays the same while keys come and go: names, widths, and where ranges are cut."""

    def __init__(self, root: str, address_bits: int, around: tuple[Rules, Rules]) -> None:
        self.root = root
        self.around = around
        self.address_bits = address_bits
        self.width = address_bits + _PORT_BITS
        # Cuts fall on nibbles within addresses and ports, so that adding a key rarely moves one.
        self.cuts = (
            *range(0, address_bits, 4),
            address_bits,
            *range(address_bits + 2, self.width + 1, 4),
        )

    def holds(self, span: _Range, number: int) -> bool:
        shift = self.width - span.bits
        return number >> shift == span.low >> shift

    def name(self, span: _Range) -> str:
        if self.address_bits == 32 and span.bits <= 32:
            return f"{CLUSTER_PREFIX}IP-{span.low >> _PORT_BITS:08X}-{span.bits}"
        return f"{CLUSTER_PREFIX}{hash16(f'{self.root} {span.low:x}/{span.bits}')}"

    def match(self, span: _Range) -> str:
        destination = _destination(span.low, self.address_bits, min(span.bits, self.address_bits))
        if span.bits < self.address_bits + 2:
            return destination
        keyword = _PROTOCOLS[span.low >> 16 & 3].keyword
        ports = ""
        if span.bits > self.address_bits + 2:
            low = span.low & 0xFFFF
            ports = f"-m {keyword} --dport {low}:{low + (1 << (self.width - span.bits)) - 1}"
        return rule(destination, f"-p {keyword}", ports)


class _Child(msgspec.Struct, frozen=True, gc=False):
    """A chain below another: ``slot`` is its parent's share for it, ``span`` what it matches."""

    slot: _Range
    span: _Range
    name: str


class _View:
    """The chains that a set of keys makes; nothing is stored but the sorted keys."""

    def __init__(self, shape: _Shape, keys: list[int], text: Callable[[int], str]) -> None:
        self.shape = shape
        self.keys = keys
        self.text = text

    def subtree(self, span: _Range, name: str) -> Iterator[tuple[str, _Range, Rules]]:
        rules, children = self._node(span, name)
        yield name, span, rules
        for child in children:
            yield from self.subtree(child.span, child.name)

    def around(self, numbers: Iterable[int], limit: int) -> Iterator[tuple[str, _Range, Rules]]:
        """The chains on the paths of ``numbers``; from ``limit`` keys down, whole subtrees.

        Each chain is given once, however many paths lead through it.
        """
        given: dict[str, list[_Child]] = {}
        whole: set[str] = set()
        for number in numbers:
            slot = span = _Range(0, 0)
            name: str | None = self.shape.root
            while name is not None and name not in whole:
                if name not in given:
                    if self._count(slot) <= limit:
                        whole.add(name)
                        yield from self.subtree(span, name)
                        break
                    rules, given[name] = self._node(span, name)
                    yield name, span, rules
                children = given[name]
                name = None
                for child in children:
                    if self.shape.holds(child.slot, number):
                        slot, span, name = child.slot, child.span, child.name
                        break

    def find(self, wanted: str, span: _Range) -> Rules | None:
        """The rules of the chain named ``wanted`` if it exists; it would cover ``span``."""
        for name, _, rules in self.around((span.low,), -1):
            if name == wanted:
                return rules
        return None

    def _node(self, span: _Range, name: str) -> tuple[Rules, list[_Child]]:
        """The rules of one chain and the chains it jumps to."""
        rules: list[str] = []
        children: list[_Child] = []
        first, last = self._bounds(span)
        if last - first <= LEAF:
            rules.extend(self.text(k) for k in self.keys[first:last])
        else:
            for slot in self._split(span):
                low, high = self._bounds(slot)
                if high - low <= _INLINE:
                    rules.extend(self.text(k) for k in self.keys[low:high])
                else:
                    below = self._compress(slot) if high - low > LEAF else slot
                    child = _Child(slot, below, self.shape.name(below))
                    rules.append(rule(self.shape.match(below), f"-j {child.name}"))
                    children.append(child)
        if name == self.shape.root:
            before, after = self.shape.around
            return (*before, *rules, *after), children
        return tuple(rules), children

    def _split(self, span: _Range) -> Iterator[_Range]:
        """Divide a range at the next cut below the keys' common prefix.

        The root is not compressed: its name does not tell its range, so its children would
        come and go with keys far from them.
        """
        span = self._compress(span) if span.bits else span
        cut = next(c for c in self.shape.cuts if c > span.bits)
        step = 1 << (self.shape.width - cut)
        position, last = self._bounds(span)
        while position < last:
            low = self.keys[position] // step * step
            yield _Range(low, cut)
            position = bisect_left(self.keys, low + step, position, last)

    def _compress(self, span: _Range) -> _Range:
        """The smallest range at a cut that holds the same keys: levels without choice vanish."""
        first, last = self._bounds(span)
        width = self.shape.width
        common = width - (self.keys[first] ^ self.keys[last - 1]).bit_length()
        bits = max(c for c in self.shape.cuts if c <= common)
        return _Range(self.keys[first] >> (width - bits) << (width - bits), bits)

    def _bounds(self, span: _Range) -> tuple[int, int]:
        first = bisect_left(self.keys, span.low)
        return first, bisect_left(
            self.keys, span.low + (1 << (self.shape.width - span.bits)), first
        )

    def _count(self, span: _Range) -> int:
        first, last = self._bounds(span)
        return last - first


class TreeChange(msgspec.Struct, frozen=True):
    """The chains that changed, ``None`` for gone ones, and by how many rules the tree grew."""

    chains: dict[str, Rules | None]
    growth: int


class DispatchTree:
    """The tree of one table and family.

    ``root`` names the chain it starts from; ``before`` and ``after`` are further rules at the
    beginning and end of that chain.
    """

    def __init__(
        self, root: str, address_bits: int, *, before: Rules = (), after: Rules = ()
    ) -> None:
        self._shape = _Shape(root, address_bits, (before, after))
        self._keys: list[int] = []
        self._texts: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, number: int) -> str | None:
        """The rule of a key."""
        return self._texts.get(number)

    def chains(self) -> dict[str, Rules]:
        """All chains of the tree, by name."""
        view = _View(self._shape, self._keys, self._texts.__getitem__)
        return {name: rules for name, _, rules in view.subtree(_Range(0, 0), self._shape.root)}

    def load(self, texts: Mapping[int, str]) -> None:
        """Replace all keys and their rules at once."""
        self._texts = dict(texts)
        self._keys = sorted(texts)

    def change(self, changes: Mapping[int, str | None]) -> TreeChange:
        """Set or (``None``) remove keys; tell which chains that changes.

        Only chains whose range holds a changed key can differ. They are looked at before and
        after: along each path, and, where a chain may turn from leaf to branch or back, in the
        whole (small) subtree.
        """
        changes = {k: text for k, text in changes.items() if self._texts.get(k) != text}
        if not changes:
            return TreeChange({}, 0)
        replaced = {k: self._texts[k] for k in changes if k in self._texts}
        old = _View(
            self._shape, self._keys, lambda k: replaced[k] if k in replaced else self._texts[k]
        )
        limit = LEAF + len(changes)
        before = {name: (span, rules) for name, span, rules in old.around(changes, limit)}
        self._set(changes)
        new = _View(self._shape, self._keys, self._texts.__getitem__)
        after = {name: (span, rules) for name, span, rules in new.around(changes, limit)}
        changed: dict[str, Rules | None] = {}
        growth = 0
        for name in before.keys() | after.keys():
            span = (after.get(name) or before[name])[0]
            was = before[name][1] if name in before else old.find(name, span)
            now = after[name][1] if name in after else new.find(name, span)
            if was != now:
                changed[name] = now
                growth += len(now or ()) - len(was or ())
        return TreeChange(changed, growth)

    def _set(self, changes: Mapping[int, str | None]) -> None:
        keys = self._keys.copy()
        many = len(changes) * _SORTING > len(keys)
        for number, text in changes.items():
            if text is None:
                del self._texts[number]
                if not many:
                    del keys[bisect_left(keys, number)]
                continue
            if number not in self._texts and not many:
                insort(keys, number)
            self._texts[number] = text
        self._keys = sorted(self._texts) if many else keys


def _destination(number: int, address_bits: int, bits: int) -> str:
    if not address_bits or not bits:
        return ""
    address = (number >> _PORT_BITS).to_bytes(address_bits // 8, "big")
    return f"-d {address_text(address)}/{bits}"
