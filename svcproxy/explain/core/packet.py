"""The input of a trace, and the state of a packet between rules."""

from enum import Enum
from ipaddress import ip_address
from typing import NamedTuple

import msgspec

NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
"""Protocol numbers by keyword."""


class UnknownRuleError(Exception):
    """The tracer does not support a rule; the message quotes it."""


class State(Enum):
    """The conntrack state of a packet's connection."""

    NEW = "NEW"
    ESTABLISHED = "ESTABLISHED"
    RELATED = "RELATED"
    INVALID = "INVALID"


class Packet(msgspec.Struct, frozen=True):
    """A packet as it enters the node, or as the node sends it.

    Attributes:
        source: the source address.
        destination: the destination address, of the same family.
        port: the destination port.
        protocol: ``tcp``, ``udp`` or ``sctp``.
        interface: the interface on which it arrives; empty if the node itself sends it.
        mark: its firewall mark.
        state: the conntrack state of its connection.
        translated_to: the ``address:port`` to which conntrack already translates the connection;
            empty if it does not. Only packets that are not ``NEW`` have one.
    """

    source: str
    destination: str
    port: int
    protocol: str = "tcp"
    interface: str = "eth0"
    mark: int = 0
    state: State = State.NEW
    translated_to: str = ""


class Host(msgspec.Struct, frozen=True):
    """The node's addresses, for rules that consult the routing table.

    ``addresses`` are the node's own addresses on all interfaces. Loopback addresses are always
    local and need not be listed.
    """

    addresses: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, *addresses: str) -> "Host":
        """Return a node with these addresses."""
        return cls(frozenset(ip_address(a).packed for a in addresses))

    def is_local(self, address: bytes) -> bool:
        """Return whether an address is local to the node."""
        if len(address) == 4 and address[0] == 127:
            return True
        return address in self.addresses or address == _LOOPBACK


_LOOPBACK = ip_address("::1").packed


class Update(NamedTuple):
    """One entry that a packet adds to a set or map, or deletes, for session affinity.

    Attributes:
        where: the set or map; ``persistence`` for a template of IPVS.
        key: the entry's key in the form of that set.
        value: the entry's value; ``None`` for a deleted entry.
        seconds: how long the entry lasts; 0 for as long as the set says.
    """

    where: str
    key: bytes
    value: bytes | None
    seconds: int = 0


class Flow(NamedTuple):
    """The state of a packet between rules: everything that rules read or change.

    Flows are hashable, so that branches with equal flows can be merged.

    Attributes:
        source: the source address, packed.
        destination: the destination address, packed; translations change it.
        port: the destination port; translations change it.
        protocol: the protocol's keyword.
        interface: the incoming interface, empty on the way out.
        mark: the firewall mark.
        state: the conntrack state.
        original: the destination address of the connection's first packet.
        translated: whether a rule has translated the destination.
        virtual: address and port of the IPVS virtual server that serves the packet, if one does.
        masqueraded: whether the source is masqueraded.
        updates: entries that the packet adds to sets and maps, or deletes.
    """

    source: bytes
    destination: bytes
    port: int
    protocol: str
    interface: str
    mark: int
    state: State
    original: bytes
    translated: bool = False
    virtual: tuple[bytes, int] | None = None
    masqueraded: bool = False
    updates: tuple[Update, ...] = ()


def first_flow(packet: Packet) -> Flow:
    """Return the flow of a packet before the first rule.

    Raises:
        ValueError: an address is malformed.
    """
    original = ip_address(packet.destination).packed
    destination, port = original, packet.port
    if packet.translated_to:
        destination, port = parse_target(packet.translated_to)
    return Flow(
        source=ip_address(packet.source).packed,
        destination=destination,
        port=port,
        protocol=packet.protocol,
        interface=packet.interface,
        mark=packet.mark,
        state=packet.state,
        original=original,
        translated=bool(packet.translated_to),
    )


def parse_target(text: str) -> tuple[bytes, int]:
    """Parse ``address:port`` or ``[address]:port``.

    Raises:
        ValueError: the text has another form.
    """
    address, _, port = text.rpartition(":")
    return ip_address(address.strip("[]")).packed, int(port)


def target_text(address: bytes, port: int) -> str:
    """``address:port``, or ``[address]:port`` for IPv6."""
    shown = str(ip_address(address))
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"
