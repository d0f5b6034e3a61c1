"""Packets through the rules of a fake kernel, with what they leave in dynamic maps."""

from dataclasses import dataclass, field

from svcproxy.explain.core.nft_rules import NftRuleset
from svcproxy.explain.core.nft_table import NftTable
from svcproxy.explain.core.packet import Host, State, Update, parse_target
from svcproxy.explain.core.packet import Packet as TracedPacket
from svcproxy.explain.core.trace import trace
from svcproxy.netlink.core.attributes import attribute
from tests.unit.nftables.fake_kernel import FakeKernel, FakeTable

_AFFINITY = "affinity"


@dataclass
class Packet:
    """The first packet of a connection.

    ``chosen`` is the random number of ``numgen``, as a fraction of its range.
    """

    source: str
    destination: str
    port: int
    protocol: str = "tcp"
    interface: str = "eth0"
    mark: int = 0
    chosen: float = 0.0
    translated: tuple[str, int] | None = None
    masqueraded: bool = False


@dataclass
class Memory:
    """The elements that packets add to dynamic maps: data and time-out (ms) by key."""

    held: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    limit: int = 1 << 18

    def take(self, updates: tuple[Update, ...]) -> None:
        for _, key, value, seconds in updates:
            if value is None:
                self.held.pop(key, None)
            else:
                self.held[key] = (value, seconds * 1000)


class Node:
    """A node with the rules of a fake kernel; ``own`` are its addresses."""

    def __init__(self, kernel: FakeKernel, own: tuple[str, ...]) -> None:
        self.kernel = kernel
        self.own = {*own, "127.0.0.1", "::1"}
        self.memory = Memory()
        self._host = Host.of(*own)

    def send(self, packet: Packet) -> str:
        """Pass a packet through; ``accept``, ``reject`` or ``drop``."""
        memory = self.memory
        clients = {
            key: attribute(2, attribute(1, value)) for key, (value, _) in memory.held.items()
        }
        full = frozenset((_AFFINITY,)) if len(clients) >= memory.limit else frozenset[str]()
        rules = NftRuleset(table_of(self.kernel.table, clients), full)
        own = packet.source in self.own
        interface = "" if own else packet.interface
        sent = TracedPacket(
            packet.source,
            packet.destination,
            packet.port,
            packet.protocol,
            interface,
            packet.mark,
            State.NEW,
        )
        (verdict,) = trace(sent, rules, self._host, packet.chosen).verdicts
        memory.take(verdict.updates)
        packet.mark, packet.masqueraded = verdict.mark, verdict.masqueraded
        if verdict.endpoint:
            packet.destination, packet.port = _address_and_port(verdict.endpoint)
            packet.translated = packet.destination, packet.port
        return verdict.action.value


def table_of(table: FakeTable, clients: dict[bytes, bytes] | None = None) -> NftTable:
    """A fake kernel's table as the tracer takes it."""
    elements = {name: held.elements for name, held in table.sets.items()}
    return NftTable(
        family="ip",
        name="svcproxy",
        sets={name: held.body for name, held in table.sets.items()},
        chains=table.chains,
        rules=table.rules,
        elements={**elements, _AFFINITY: clients} if clients else elements,
    )


def _address_and_port(endpoint: str) -> tuple[str, int]:
    address, _, _ = endpoint.rpartition(":")
    return address.strip("[]"), parse_target(endpoint)[1]
