"""IPVS virtual servers and iptables rules as a value, and their evaluation for a packet.

IPVS takes a packet for the node's own addresses after the filter table's INPUT chain, and a packet
that the node sends after the nat table's OUTPUT chain. What it sends to a real server passes
OUTPUT's filter rules and POSTROUTING.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from svcproxy.explain.core.iptables_rules import IptablesRuleset, Sets, Tables
from svcproxy.explain.core.packet import Flow, Host, State, Update, parse_target, target_text
from svcproxy.explain.core.trace import Action, Recorder, Step, merge

PERSISTENCE = "persistence"
"""``Update.where`` of the templates of persistent connections."""
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
    """Everything that IPVS mode programs for one IP family.

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
        """Return whether an address is local; addresses on ``kube-ipvs0`` are."""
        return address in self.bound or host.is_local(address)

    def run_hook(
        self, recorder: Recorder, hook: str, flow: Flow, weight: float
    ) -> dict[Flow, float]:
        """Run a hook: its iptables chains, and IPVS where IPVS is called."""
        if hook == "OUTPUT":
            return self._output(recorder, flow, weight)
        flows = self.rules.run_hook(recorder, hook, flow, weight)
        return self._schedule(recorder, flows) if hook == "INPUT" else flows

    def _output(self, recorder: Recorder, flow: Flow, weight: float) -> dict[Flow, float]:
        """Run nat, then IPVS, then filter, which sees the packet as IPVS has changed it."""
        flows = self.rules.run_chain(recorder, "nat", "OUTPUT", {flow: weight})
        if not flow.virtual:
            flows = self._schedule(recorder, flows)
        return self.rules.run_chain(recorder, "filter", "OUTPUT", flows)

    def _schedule(self, recorder: Recorder, flows: Mapping[Flow, float]) -> dict[Flow, float]:
        """Schedule new connections to real servers."""
        passed: dict[Flow, float] = {}
        for flow, weight in flows.items():
            target = target_text(flow.destination, flow.port)
            server = self.servers.get((flow.protocol, target))
            if server is None or flow.state is not State.NEW:
                merge(passed, {flow: weight})
                continue
            recorder.steps.append(Step(_LISTING, f"{flow.protocol} {target}", 0, weight))
            real = self._candidates(server, flow, target)
            if not real:
                # IPVS answers "port unreachable" if no real server takes new connections.
                recorder.end(Action.REJECT, flow, weight)
            total = sum(each.weight for each in real)
            if recorder.choose is not None:
                real, total = (_chosen(real, recorder.choose),), 0
            for each in real:
                share = weight * each.weight / total if total else weight
                merge(passed, {_sent_to(flow, each.target, server, target): share})
        return passed

    def _candidates(self, server: VirtualServer, flow: Flow, target: str) -> tuple[RealServer, ...]:
        """Return the real servers that may get the connection: one if the client is persistent."""
        real = tuple(each for each in server.real if each.weight)
        if server.timeout:
            kept = self._persistent.get(_template(flow, target))
            real = tuple(each for each in real if each.target == kept) or real
        return real

    def after(self, updates: Iterable[Update]) -> "IpvsRuleset":
        """Return a copy with the persistence templates that packets have created."""
        persistent = dict(self._persistent)
        for update in updates:
            if update.where == PERSISTENCE and update.value is not None:
                persistent[update.key] = update.value.decode()
        return self.with_persistent(persistent)

    def with_persistent(self, persistent: Mapping[bytes, str]) -> "IpvsRuleset":
        """Return a copy with other persistent clients."""
        return IpvsRuleset(self.rules.tables, self.rules.sets, self.servers, self.bound, persistent)

    def text(self, step: Step) -> str:
        """Return the rule or the virtual server of a step."""
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
    return template_key(flow.protocol, target, flow.source)


def template_key(protocol: str, target: str, client: bytes) -> bytes:
    """Return the key of a template of a persistent client in ``Update`` and in rulesets.

    Args:
        protocol: the protocol's keyword.
        target: ``address:port`` of the virtual server.
        client: the client's address, packed.
    """
    return f"{protocol} {target} ".encode() + client
