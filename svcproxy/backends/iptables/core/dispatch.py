"""Dispatch trees: find the rule for a destination address and port in O(log n) rules.

kube-proxy puts one rule per Service port into KUBE-SERVICES, and every new connection traverses
them until one matches. Here the rules form a tree of chains by address prefix and, below a single
address, by protocol and port range. The shape depends only on the set of keys, not on their
history: a new process that computes the tree from scratch gets the same chains that its predecessor
reached in many steps. A changed key affects only the chains on its path.

A key is an integer: the address, then 2 bits of protocol, then 16 bits of port. Keys of node ports
have no address part.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from svcproxy.backends.iptables.core.naming import CLUSTER_PREFIX
from svcproxy.backends.xtables.core.hashing import hash16
from svcproxy.backends.xtables.core.rule_text import Rules, address_bytes, address_text, rule
from svcproxy.model.names import Protocol

LEAF = 16
"""A chain with up to this many rules is not divided further."""
_INLINE = 4
"""A branch with up to this many rules is put into its parent: a chain costs more than a rule."""

_PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
_SORT_THRESHOLD = 50
"""With more than one change per this many keys, sorting is faster than inserting one by one."""
_PORT_BITS = 18


def frontend_key(address: str, protocol: Protocol, port: int) -> int:
    """Return the key of a frontend; ``address`` is empty for a node port.

    Raises:
        ValueError: the address or the port is invalid; the key could belong to another frontend.
    """
    if not 0 < port < 1 << 16:
        raise ValueError(f"{port} is not a port")
    number = int.from_bytes(address_bytes(address)) if address else 0
    return number << _PORT_BITS | _PROTOCOLS.index(protocol) << 16 | port


class _Range(msgspec.Struct, frozen=True, gc=False):
    """All keys that share the first ``bits`` bits of ``low``."""

    low: int
    bits: int


class _Shape:
    """The fixed properties of a tree: chain names, widths, and where ranges are divided."""

    def __init__(self, root: str, address_bits: int, around: tuple[Rules, Rules]) -> None:
        self.root = root
        self.around = around
        self.address_bits = address_bits
        self.width = address_bits + _PORT_BITS
        # Ranges are divided at nibbles of addresses and ports, so that adding a key rarely moves
        # the boundary of a chain.
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
    """A chain that another chain jumps to.

    Attributes:
        slot: the part of the parent's range that is assigned to this chain.
        span: the smallest range at a cut that holds the keys of ``slot``; the jump matches it.
        name: the chain's name.
    """

    slot: _Range
    span: _Range
    name: str


class _View:
    """Computes the chains for a set of keys; it stores only the sorted keys."""

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
        """Yield the chains on the paths of some keys, each chain once.

        Args:
            numbers: the keys.
            limit: below a slot with up to this many keys, the whole subtree is returned.
        """
        visited: dict[str, list[_Child]] = {}
        whole: set[str] = set()
        for number in numbers:
            slot = span = _Range(0, 0)
            name: str | None = self.shape.root
            while name is not None and name not in whole:
                if name not in visited:
                    if self._count(slot) <= limit:
                        whole.add(name)
                        yield from self.subtree(span, name)
                        break
                    rules, visited[name] = self._node(span, name)
                    yield name, span, rules
                children = visited[name]
                name = None
                for child in children:
                    if self.shape.holds(child.slot, number):
                        slot, span, name = child.slot, child.span, child.name
                        break

    def find(self, wanted: str, span: _Range) -> Rules | None:
        """Return the rules of the chain ``wanted``, which would cover ``span``, if it exists."""
        for name, _, rules in self.around((span.low,), -1):
            if name == wanted:
                return rules
        return None

    def _node(self, span: _Range, name: str) -> tuple[Rules, list[_Child]]:
        """Return the rules of one chain and the chains that it jumps to."""
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

        The root is not compressed. Its name is independent of its range, so compressing it would
        replace its children whenever a key far away from them is added or removed.
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
        """Return the smallest range at a cut that holds the same keys, to skip useless levels."""
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
    """The effect of a change of keys.

    Attributes:
        chains: the rules of each changed chain; ``None`` for a chain that no longer exists.
        growth: by how many rules the tree grew.
    """

    chains: dict[str, Rules | None]
    growth: int


class DispatchTree:
    """A dispatch tree.

    Args:
        root: the name of the root chain.
        address_bits: the length of an address; 0 for the tree of node ports.
        before: further rules at the beginning of the root chain.
        after: further rules at the end of the root chain.
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
        """Return the rule of a key; ``None`` if the tree does not have the key."""
        return self._texts.get(number)

    def chains(self) -> dict[str, Rules]:
        """Return all chains of the tree, by name."""
        view = _View(self._shape, self._keys, self._texts.__getitem__)
        return {name: rules for name, _, rules in view.subtree(_Range(0, 0), self._shape.root)}

    def load(self, texts: Mapping[int, str]) -> None:
        """Replace all keys and their rules."""
        self._texts = dict(texts)
        self._keys = sorted(texts)

    def change(self, changes: Mapping[int, str | None]) -> TreeChange:
        """Set keys, or remove those whose value is ``None``; return the changed chains.

        Only chains whose range holds a changed key can change. These are computed before and after
        the change: the chains on the path of each changed key and, where a leaf may become a branch
        or a branch a leaf, the whole subtree, which is small there.
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
        many = len(changes) * _SORT_THRESHOLD > len(keys)
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
