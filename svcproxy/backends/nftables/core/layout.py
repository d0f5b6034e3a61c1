"""Where addresses and ports stand in packets, and how they are loaded into registers."""

from ipaddress import ip_network
from struct import Struct

from svcproxy.backends.settings import LocalTraffic
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables import expressions as ex
from svcproxy.netlink.core.nf_tables.expressions import Conntrack, Expression, Header, Meta

Expressions = tuple[Expression, ...]

HOST_U32 = Struct("=I")
_PORT_OFFSET = 2
_SCRATCH = 12
"""The register of conditions; whole IPv6 addresses fit from here on."""


class Layout:
    """The packets of one family.

    ``address`` is the length of an address in words, ``frontend`` that of address, protocol and
    port together.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        self.address = family.bits // 32
        self.frontend = self.address + 2
        self._length = family.bits // 8
        self._source, self._destination = (12, 16) if family is IPFamily.IPV4 else (8, 24)

    def load_source(self, to: int) -> Expressions:
        """Load the source address."""
        return (ex.payload(Header.NETWORK, self._source, self._length, to),)

    def load_node_port(self, to: int) -> Expressions:
        """Load protocol and destination port."""
        return (*self.load_protocol(to), *self.load_port(to + 1))

    def load_protocol(self, to: int) -> Expressions:
        """Load the protocol above IP, whatever IPv6 puts between."""
        return (ex.meta(Meta.L4PROTO, to),)

    def load_port(self, to: int) -> Expressions:
        """Load the destination port."""
        return (ex.payload(Header.TRANSPORT, _PORT_OFFSET, 2, to),)

    def load_frontend(self, to: int) -> Expressions:
        """Load destination address, protocol and destination port."""
        return (
            ex.payload(Header.NETWORK, self._destination, self._length, to),
            *self.load_node_port(to + self.address),
        )

    def load_destination(self, to: int) -> Expressions:
        """Load the destination address."""
        return (ex.payload(Header.NETWORK, self._destination, self._length, to),)

    def mask(self, bits: int, word: int) -> Expressions:
        """Cut an address in a register to a prefix."""
        if bits == self.family.bits:
            return ()
        number = (1 << self.family.bits) - (1 << (self.family.bits - bits))
        return (ex.bitwise(word, number.to_bytes(self._length, "big")),)

    def from_range(self, cidr: str, *, inside: bool = True) -> Expressions:
        """Go on if the source is in a range (or, not ``inside``, if it is not)."""
        return self._within(self._source, cidr, inside=inside)

    def to_range(self, cidr: str, *, inside: bool = True) -> Expressions:
        """Go on if the destination is in a range (or, not ``inside``, if it is not)."""
        return self._within(self._destination, cidr, inside=inside)

    def _within(self, offset: int, cidr: str, *, inside: bool) -> Expressions:
        network = ip_network(cidr, strict=False)
        packed, bits = network.network_address.packed, network.prefixlen
        if not bits and inside:
            return ()
        # Only whole bytes are loaded where that will do: nft prints both as a prefix.
        length = bits // 8 if bits and bits % 8 == 0 else self._length
        load = ex.payload(Header.NETWORK, offset, length, _SCRATCH)
        cut = self.mask(bits, _SCRATCH) if length * 8 != bits else ()
        return (load, *cut, ex.compare(_SCRATCH, packed[:length], equal=inside))

    def from_pods(self, local: LocalTraffic, *, inside: bool = True) -> Expressions:
        """Go on if the packet comes from a pod, as far as the settings let us know."""
        if local.source:
            return self.from_range(local.source, inside=inside)
        name = local.interface
        value = name[:-1].encode() if name.endswith("+") else name.encode().ljust(16, b"\0")
        return (ex.meta(Meta.IIFNAME, _SCRATCH), ex.compare(_SCRATCH, value, equal=inside))


def from_network() -> Expressions:
    """Go on unless the packet comes from the node's own loopback interface."""
    value = b"lo".ljust(16, b"\0")
    return (ex.meta(Meta.IIFNAME, _SCRATCH), ex.compare(_SCRATCH, value, equal=False))


def is_local(which: int) -> Expressions:
    """Go on if the packet's source (or destination) is an address of this node."""
    return (ex.address_type(which, _SCRATCH), ex.compare(_SCRATCH, ex.RTN_LOCAL))


def in_state(states: int, *, any_of: bool = True) -> Expressions:
    """Go on if the flow is in one of these states (or, not ``any_of``, in none of them)."""
    return _bits(ex.conntrack(Conntrack.STATE, _SCRATCH), states, some=any_of)


def translated(*, yes: bool = True) -> Expressions:
    """Go on if the flow's destination is (or, not ``yes``, is not) translated."""
    return _bits(ex.conntrack(Conntrack.STATUS, _SCRATCH), ex.STATUS_DNAT, some=yes)


def marked(bit: int) -> Expressions:
    """Go on if the packet carries a bit of the mark."""
    return _bits(ex.meta(Meta.MARK, _SCRATCH), 1 << bit, some=True)


def _bits(load: Expression, bits: int, *, some: bool) -> Expressions:
    mask = HOST_U32.pack(bits)
    return (load, ex.bitwise(_SCRATCH, mask), ex.compare(_SCRATCH, bytes(4), equal=not some))


def change_mark(bit: int, *, to: bool) -> Expressions:
    """Set or clear one bit of the packet's mark and leave the others alone."""
    mask = HOST_U32.pack(0xFFFFFFFF ^ 1 << bit)
    xor = HOST_U32.pack(1 << bit if to else 0)
    return (ex.meta(Meta.MARK, _SCRATCH), ex.bitwise(_SCRATCH, mask, xor), ex.set_mark(_SCRATCH))
