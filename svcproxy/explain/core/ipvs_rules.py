"""IPVS virtual servers with the rules around them as a value, and their evaluation for a packet.

IPVS takes a packet for the node's own addresses after the filter table's INPUT chain, and a packet
that the node sends after the nat table's OUTPUT chain. What it sends to a real server passes
OUTPUT's filter rules and POSTROUTING.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from svcproxy.explain.core.iptables_rules import IptablesRuleset, Sets, Tables
from svcproxy.explain.core.packet import Flow, Host, State, Update, parse_target, target_text
from svcproxy.explain.core.trace import Action, Log, Step, merge

PERSISTENCE = "persistence"
"""The name under which updates hold templates of persistent connections."""
_LISTING = "ipvs"


class RealServer(NamedTuple):
    """A real server; one of weight 0 takes no new connections."""

    target: str
    weight: int = 1


class VirtualServer(msgspec.Struct, frozen=True):
    """A virtual server.

    Attributes:
        scheduler: the scheduler's name.
        real: its real servers.
        flags: the scheduler's flags by name, for example ``mh-port``.
        timeout: the persistence time-out in seconds; 0 without persistence.
    """

    scheduler: str
    real: tuple[RealServer, ...]
    flags: tuple[str, ...] = ()
    timeout: int = 0


Service = tuple[str, str]
"""The protocol's keyword and ``address:port`` of a virtual server."""


class IpvsRuleset:
    """What IPVS mode programs for one family.

    Args:
        tables: iptables rules by table and chain.
        sets: the entries of ipsets.
        servers: the virtual servers.
        bound: the addresses on the interface ``kube-ipvs0``.
        persistent: the real server of each client with persistence.
    """

    def __init__(
        self,
        tables: Tables,
        sets: Sets,
        servers: Mapping[Service, VirtualServer],
        bound: frozenset[bytes],
        persistent: Mapping[bytes, str] | None = None,
    ) -> None:
        self.rules = IptablesRuleset(tables, sets)
        self.servers = servers
        self.bound = bound
        self._persistent = dict(persistent or {})

    def is_local(self, host: Host, address: bytes) -> bool:
        """Whether the node takes an address for its own; those of virtual servers are."""
        return address in self.bound or host.is_local(address)

    def walk(self, log: Log, hook: str, flow: Flow, weight: float) -> dict[Flow, float]:
        """Run the chains of a hook, and the virtual servers where IPVS has its hooks."""
        if hook == "OUTPUT":
            return self._output(log, flow, weight)
        flows = self.rules.walk(log, hook, flow, weight)
        return self._schedule(log, flows) if hook == "INPUT" else flows

    def _output(self, log: Log, flow: Flow, weight: float) -> dict[Flow, float]:
        """Nat, then IPVS, then the filter, which sees what IPVS has made of the packet."""
        flows = self.rules.walk_table(log, "nat", "OUTPUT", {flow: weight})
        if not flow.virtual:
            flows = self._schedule(log, flows)
        return self.rules.walk_table(log, "filter", "OUTPUT", flows)

    def _schedule(self, log: Log, flows: Mapping[Flow, float]) -> dict[Flow, float]:
        """Give new connections for virtual servers to real servers."""
        passed: dict[Flow, float] = {}
        for flow, weight in flows.items():
            target = target_text(flow.destination, flow.port)
            server = self.servers.get((flow.protocol, target))
            if server is None or flow.state is not State.NEW:
                merge(passed, {flow: weight})
                continue
            log.steps.append(Step(_LISTING, f"{flow.protocol} {target}", 0, weight))
            real = self._candidates(server, flow, target)
            if not real:
                # IPVS answers "port unreachable" if no real server takes new connections.
                log.end(Action.REJECT, flow, weight)
            total = sum(each.weight for each in real)
            if log.choose is not None:
                real, total = (_chosen(real, log.choose),), 0
            for each in real:
                share = weight * each.weight / total if total else weight
                merge(passed, {_sent_to(flow, each.target, server, target): share})
        return passed

    def _candidates(self, server: VirtualServer, flow: Flow, target: str) -> tuple[RealServer, ...]:
        """The real servers that may get a connection; one if the client has persistence."""
        real = tuple(each for each in server.real if each.weight)
        if server.timeout:
            kept = self._persistent.get(_template(flow, target))
            real = tuple(each for each in real if each.target == kept) or real
        return real

    def after(self, updates: Iterable[Update]) -> "IpvsRuleset":
        """The rules with the templates that packets have left."""
        persistent = dict(self._persistent)
        for update in updates:
            if update.where == PERSISTENCE and update.value is not None:
                persistent[update.key] = update.value.decode()
        return IpvsRuleset(self.rules.tables, self.rules.sets, self.servers, self.bound, persistent)

    def text(self, step: Step) -> str:
        """The rule or the virtual server of a step."""
        if step.table != _LISTING:
            return self.rules.text(step)
        protocol, target = step.chain.split()
        return f"{protocol.upper()}  {target} {self.servers[protocol, target].scheduler}"


def _chosen(real: tuple[RealServer, ...], choose: float) -> RealServer:
    return real[int(choose * len(real))]


def _sent_to(flow: Flow, real: str, server: VirtualServer, target: str) -> Flow:
    address, port = parse_target(real)
    updates = flow.updates
    if server.timeout:
        key = _template(flow, target)
        updates = (*updates, Update(PERSISTENCE, key, real.encode(), server.timeout))
    return flow._replace(
        destination=address,
        port=port,
        virtual=(flow.destination, flow.port),
        updates=updates,
    )


def _template(flow: Flow, target: str) -> bytes:
    return f"{flow.protocol} {target} ".encode() + flow.source
