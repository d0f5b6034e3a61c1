"""Where addresses and ports stand in packets, and how they are loaded into registers."""

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
"""The register of conditions; whole IPv6 addresses fit from here on."""


class PacketFields:
    """The packets of one family.

    ``address`` is the length of an address in words, ``frontend`` that of address, protocol and
    port together.
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
        """Load the protocol above IP, whatever IPv6 puts between."""
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
        """Cut an address in a register to a prefix."""
        if bits == self.family.bits:
            return ()
        number = (1 << self.family.bits) - (1 << (self.family.bits - bits))
        return (expressions.bitwise(word, number.to_bytes(self._length, "big")),)

    def source_in(self, cidr: str, *, inside: bool = True) -> Expressions:
        """Go on if the source is in a range (or, not ``inside``, if it is not)."""
        return self._within(self._source, cidr, inside=inside)

    def destination_in(self, cidr: str, *, inside: bool = True) -> Expressions:
        """Go on if the destination is in a range (or, not ``inside``, if it is not)."""
        return self._within(self._destination, cidr, inside=inside)

    def _within(self, offset: int, cidr: str, *, inside: bool) -> Expressions:
        network = ip_network(cidr, strict=False)
        packed, bits = network.network_address.packed, network.prefixlen
        if not bits and inside:
            return ()
        # Only whole bytes are loaded where that will do: nft prints both as a prefix.
        length = bits // 8 if bits and bits % 8 == 0 else self._length
        load = expressions.payload(Header.NETWORK, offset, length, _SCRATCH)
        cut = self.mask(bits, _SCRATCH) if length * 8 != bits else ()
        return (load, *cut, expressions.compare(_SCRATCH, packed[:length], equal=inside))

    def from_pods(self, local: LocalTraffic, *, inside: bool = True) -> Expressions:
        """Go on if the packet comes from a pod, as far as the settings let us know."""
        if local.source:
            return self.source_in(local.source, inside=inside)
        name = local.interface
        value = name[:-1].encode() if name.endswith("+") else name.encode().ljust(16, b"\0")
        return (
            expressions.meta(Meta.IIFNAME, _SCRATCH),
            expressions.compare(_SCRATCH, value, equal=inside),
        )


def not_from_loopback() -> Expressions:
    """Go on unless the packet comes from the node's own loopback interface."""
    value = b"lo".ljust(16, b"\0")
    return (
        expressions.meta(Meta.IIFNAME, _SCRATCH),
        expressions.compare(_SCRATCH, value, equal=False),
    )


def is_local(which: int) -> Expressions:
    """Go on if the packet's source (or destination) is an address of this node."""
    return (
        expressions.address_type(which, _SCRATCH),
        expressions.compare(_SCRATCH, expressions.RTN_LOCAL),
    )


def in_state(states: int, *, any_of: bool = True) -> Expressions:
    """Go on if the flow is in one of these states (or, not ``any_of``, in none of them)."""
    return _bits(expressions.conntrack(Conntrack.STATE, _SCRATCH), states, some=any_of)


def is_dnat(*, yes: bool = True) -> Expressions:
    """Go on if the flow's destination is (or, not ``yes``, is not) translated."""
    return _bits(
        expressions.conntrack(Conntrack.STATUS, _SCRATCH), expressions.STATUS_DNAT, some=yes
    )


def has_mark(bit: int) -> Expressions:
    """Go on if the packet carries a bit of the mark."""
    return _bits(expressions.meta(Meta.MARK, _SCRATCH), 1 << bit, some=True)


def _bits(load: Expression, bits: int, *, some: bool) -> Expressions:
    mask = HOST_U32.pack(bits)
    return (
        load,
        expressions.bitwise(_SCRATCH, mask),
        expressions.compare(_SCRATCH, bytes(4), equal=not some),
    )


def set_mark_bit(bit: int, *, to: bool) -> Expressions:
    """Set or clear one bit of the packet's mark and leave the others alone."""
    mask = HOST_U32.pack(0xFFFFFFFF ^ 1 << bit)
    xor = HOST_U32.pack(1 << bit if to else 0)
    return (
        expressions.meta(Meta.MARK, _SCRATCH),
        expressions.bitwise(_SCRATCH, mask, xor),
        expressions.set_mark(_SCRATCH),
    )
