"""Expressions that load fields of packets into registers, and that match on them.

Registers are counted in words of four bytes, see ``expressions``.
"""

from ipaddress import ip_network
from struct import Struct

from svcproxy.backends.settings import LocalTraffic
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables import expressions
from svcproxy.netlink.core.nf_tables.expressions import Conntrack, Expression, Header, Meta

Expressions = tuple[Expression, ...]

HOST_U32 = Struct("=I")
_PORT_OFFSET = 2
_SCRATCH = 12
"""The register for conditions; a whole IPv6 address fits behind it."""


class PacketFields:
    """The fields of packets of one IP family.

    Attributes:
        family: the IP family.
        address_words: the length of an address, in words.
        frontend_words: the length of address, protocol and port together, in words.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        self.address_words = family.bits // 32
        self.frontend_words = self.address_words + 2
        self._length = family.bits // 8
        self._source, self._destination = (12, 16) if family is IPFamily.IPV4 else (8, 24)

    def load_source(self, to: int) -> Expressions:
        """Load the source address."""
        return (expressions.payload(Header.NETWORK, self._source, self._length, to),)

    def load_node_port(self, to: int) -> Expressions:
        """Load protocol and destination port."""
        return (*self.load_protocol(to), *self.load_port(to + 1))

    def load_protocol(self, to: int) -> Expressions:
        """Load the transport protocol; IPv6 extension headers are skipped."""
        return (expressions.meta(Meta.L4PROTO, to),)

    def load_port(self, to: int) -> Expressions:
        """Load the destination port."""
        return (expressions.payload(Header.TRANSPORT, _PORT_OFFSET, 2, to),)

    def load_frontend(self, to: int) -> Expressions:
        """Load destination address, protocol and destination port."""
        return (
            expressions.payload(Header.NETWORK, self._destination, self._length, to),
            *self.load_node_port(to + self.address_words),
        )

    def load_destination(self, to: int) -> Expressions:
        """Load the destination address."""
        return (expressions.payload(Header.NETWORK, self._destination, self._length, to),)

    def mask(self, bits: int, word: int) -> Expressions:
        """Mask an address in a register to a prefix of ``bits`` bits."""
        if bits == self.family.bits:
            return ()
        number = (1 << self.family.bits) - (1 << (self.family.bits - bits))
        return (expressions.bitwise(word, number.to_bytes(self._length, "big")),)

    def source_in(self, cidr: str, *, inside: bool = True) -> Expressions:
        """Match if the source is in a range, or outside of it if not ``inside``."""
        return self._within(self._source, cidr, inside=inside)

    def destination_in(self, cidr: str, *, inside: bool = True) -> Expressions:
        """Match if the destination is in a range, or outside of it if not ``inside``."""
        return self._within(self._destination, cidr, inside=inside)

    def _within(self, offset: int, cidr: str, *, inside: bool) -> Expressions:
        network = ip_network(cidr, strict=False)
        packed, bits = network.network_address.packed, network.prefixlen
        if not bits and inside:
            return ()
        # For prefixes of whole bytes, only these are loaded. nft prints both forms alike.
        length = bits // 8 if bits and bits % 8 == 0 else self._length
        load = expressions.payload(Header.NETWORK, offset, length, _SCRATCH)
        cut = self.mask(bits, _SCRATCH) if length * 8 != bits else ()
        return (load, *cut, expressions.compare(_SCRATCH, packed[:length], equal=inside))

    def from_pods(self, local: LocalTraffic, *, inside: bool = True) -> Expressions:
        """Match packets of local pods, or all others if not ``inside``.

        Args:
            local: how local pods are recognised.
            inside: whether to match packets of pods, or all others.
        """
        if local.source:
            return self.source_in(local.source, inside=inside)
        name = local.interface
        value = name[:-1].encode() if name.endswith("+") else name.encode().ljust(16, b"\0")
        return (
            expressions.meta(Meta.IIFNAME, _SCRATCH),
            expressions.compare(_SCRATCH, value, equal=inside),
        )


def not_from_loopback() -> Expressions:
    """Match unless the packet arrived on the loopback interface."""
    value = b"lo".ljust(16, b"\0")
    return (
        expressions.meta(Meta.IIFNAME, _SCRATCH),
        expressions.compare(_SCRATCH, value, equal=False),
    )


def is_local(which: int) -> Expressions:
    """Match if an address is this node's.

    Args:
        which: ``expressions.SOURCE`` or ``expressions.DESTINATION``.
    """
    return (
        expressions.address_type(which, _SCRATCH),
        expressions.compare(_SCRATCH, expressions.RTN_LOCAL),
    )


def in_state(states: int, *, any_of: bool = True) -> Expressions:
    """Match if the connection is in one of these states, or in none of them if not ``any_of``."""
    return _bits(expressions.conntrack(Conntrack.STATE, _SCRATCH), states, some=any_of)


def is_dnat(*, yes: bool = True) -> Expressions:
    """Match if the connection's destination is translated, or is not if not ``yes``."""
    return _bits(
        expressions.conntrack(Conntrack.STATUS, _SCRATCH), expressions.STATUS_DNAT, some=yes
    )


def has_mark(bit: int) -> Expressions:
    """Match if a bit of the packet mark is set."""
    return _bits(expressions.meta(Meta.MARK, _SCRATCH), 1 << bit, some=True)


def _bits(load: Expression, bits: int, *, some: bool) -> Expressions:
    mask = HOST_U32.pack(bits)
    return (
        load,
        expressions.bitwise(_SCRATCH, mask),
        expressions.compare(_SCRATCH, bytes(4), equal=not some),
    )


def set_mark_bit(bit: int, *, to: bool) -> Expressions:
    """Set or clear one bit of the packet mark; the other bits keep their values."""
    mask = HOST_U32.pack(0xFFFFFFFF ^ 1 << bit)
    xor = HOST_U32.pack(1 << bit if to else 0)
    return (
        expressions.meta(Meta.MARK, _SCRATCH),
        expressions.bitwise(_SCRATCH, mask, xor),
        expressions.set_mark(_SCRATCH),
    )
