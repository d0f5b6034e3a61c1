"""Traces a packet through rules: which rules match, and the final verdict.

Where a rule matches at random (``statistic``, ``numgen``, an IPVS scheduler), every branch is
followed with its probability, so that one trace shows all endpoints that a packet may reach.

    packet = Packet("10.244.1.9", "10.96.0.10", 80, interface="cni0")
    found = trace(packet, ruleset, Host.of("192.168.50.1"))
    for line in explain(found, ruleset):
        print(line)
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from fractions import Fraction
from typing import NamedTuple, Protocol

import msgspec

from svcproxy.explain.core.packet import Flow, Host, Packet, Update, first_flow, target_text

NEGLIGIBLE = 1e-9
"""Branches that are less likely than this are dropped: they are rounding errors."""


class Action(StrEnum):
    """The final action on a packet."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"


class Step(NamedTuple):
    """A rule that matched.

    Attributes:
        table: the table; for IPVS ``ipvs``.
        chain: the chain in it; for IPVS the virtual server.
        position: the rule's place in the chain, from 0.
        probability: how likely the packet reaches the rule and the rule matches.
    """

    table: str
    chain: str
    position: int
    probability: float


class Verdict(msgspec.Struct, frozen=True):
    """One possible outcome of a trace.

    Attributes:
        probability: how likely it is.
        action: whether the packet passes.
        endpoint: the new destination of a translated packet, as ``address:port``; empty if
            neither a rule nor a virtual server translated it.
        masqueraded: whether the endpoint sees an address of the node as the source.
        mark: the firewall mark with which the packet leaves the rules.
        updates: entries that the packet adds to sets and maps, or deletes.
    """

    probability: float
    action: Action
    endpoint: str = ""
    masqueraded: bool = False
    mark: int = 0
    updates: tuple[Update, ...] = ()

    def __str__(self) -> str:
        return f"{fraction(self.probability)}{self.outcome}"

    @property
    def outcome(self) -> str:
        """The verdict in words, without its probability."""
        if self.action is not Action.ACCEPT:
            return self.action.value
        text = self.endpoint or "no match"
        return f"{text} masqueraded" if self.masqueraded else text


class Trace(msgspec.Struct, frozen=True):
    """The result of tracing one packet.

    Attributes:
        steps: the rules that matched, in the order in which they were reached.
        verdicts: every possible outcome, sorted by endpoint; their probabilities add up to 1.
        evaluated: the expected number of rules that were evaluated, by base chain, for example
            ``nat PREROUTING``.
    """

    steps: tuple[Step, ...]
    verdicts: tuple[Verdict, ...]
    evaluated: dict[str, float]

    def __str__(self) -> str:
        return ", ".join(map(str, self.verdicts))

    @property
    def translated(self) -> float:
        """The probability that the packet is translated to an endpoint."""
        return sum(verdict.probability for verdict in self.verdicts if verdict.endpoint)


def fraction(probability: float) -> str:
    """Return a probability as a fraction and a space, empty for certainty."""
    found = Fraction(probability).limit_denominator(1000)
    return "" if found == 1 else f"{found} "


class Ruleset(Protocol):
    """The rules of one mode and IP family.

    Implemented by ``IptablesRuleset``, ``NftRuleset`` and ``IpvsRuleset``.
    """

    def run_hook(
        self, recorder: "Recorder", hook: str, flow: Flow, weight: float
    ) -> dict[Flow, float]:
        """Run the rules of a hook on a flow.

        Returns:
            The flows that pass, with their weights.

        Raises:
            UnknownRuleError: a rule is not supported.
        """

    def is_local(self, host: Host, address: bytes) -> bool:
        """Return whether an address is local to the node."""

    def after(self, updates: Iterable[Update]) -> "Ruleset":
        """Return a copy with the changes that packets have made to sets and maps."""

    def text(self, step: Step) -> str:
        """Return the rule of a step in the syntax of its tool."""


class Recorder:
    """Collects the steps, counts and endings of one trace.

    Args:
        host: the node's addresses.
        choose: a number in [0, 1) that replaces all random numbers, so that only one branch is
            followed; ``None`` follows all branches.
        ruleset: the rules, which may make further addresses local.
    """

    def __init__(self, host: Host, choose: float | None, ruleset: Ruleset) -> None:
        self.choose = choose
        self.steps: list[Step] = []
        self.endings: dict[tuple[Action, Flow], float] = {}
        self.evaluated: dict[str, float] = {}
        self.base = ""
        self._host = host
        self._ruleset = ruleset

    def is_local(self, address: bytes) -> bool:
        """Return whether an address is local to the node."""
        return self._ruleset.is_local(self._host, address)

    def enter(self, base: str) -> None:
        """Set the base chain for which rules are counted."""
        self.base = base

    def count(self, weight: float) -> None:
        """Count a rule for the share of the packets that reach it."""
        self.evaluated[self.base] = self.evaluated.get(self.base, 0.0) + weight

    def end(self, action: Action, flow: Flow, weight: float) -> None:
        """Record the final action on a share of the packets."""
        key = (action, flow)
        self.endings[key] = self.endings.get(key, 0.0) + weight


def trace(
    packet: Packet, ruleset: Ruleset, host: Host | None = None, choose: float | None = None
) -> Trace:
    """Trace a packet through the rules of one mode.

    Args:
        packet: the packet.
        ruleset: the rules; of the packet's family.
        host: the node's addresses; by default only loopback is local.
        choose: a number in [0, 1) that replaces all random numbers, so that only one branch is
            followed. By default, all branches are.

    Returns:
        The rules that matched and every possible verdict.

    Raises:
        UnknownRuleError: a rule that the packet reaches is not supported.
        ValueError: an address of the packet is malformed.
    """
    recorder = Recorder(host or Host(), choose, ruleset)
    first = first_flow(packet)
    path = _Path(recorder, ruleset)
    if packet.interface:
        path.arrive({first: 1.0})
    else:
        path.leave({first: 1.0})
    return Trace(tuple(recorder.steps), _verdicts(recorder.endings), recorder.evaluated)


def explain(found: Trace, ruleset: Ruleset) -> Iterator[str]:
    """Yield the steps and verdicts of a trace as text.

    Args:
        found: the trace.
        ruleset: the rules that were traced.
    """
    for step in found.steps:
        yield f"{fraction(step.probability)}{step.table} {step.chain}: {ruleset.text(step)}"
    yield from map(str, found.verdicts)


class _Path:
    """Passes flows through netfilter's hooks in order."""

    def __init__(self, recorder: Recorder, ruleset: Ruleset) -> None:
        self._recorder = recorder
        self._ruleset = ruleset

    def _hook(self, name: str, flows: dict[Flow, float]) -> dict[Flow, float]:
        passed: dict[Flow, float] = {}
        for flow, weight in flows.items():
            if weight > NEGLIGIBLE:
                merge(passed, self._ruleset.run_hook(self._recorder, name, flow, weight))
        return passed

    def arrive(self, flows: dict[Flow, float]) -> None:
        """Pass packets that arrive on an interface, local or forwarded."""
        flows = self._hook("PREROUTING", flows)
        local, others = self._split(flows)
        self._receive(local)
        others = self._hook("FORWARD", others)
        self._accept(self._hook("POSTROUTING", others))

    def leave(self, flows: dict[Flow, float]) -> None:
        """Pass packets that the node sends, to itself or to other machines."""
        flows = self._hook("POSTROUTING", self._hook("OUTPUT", flows))
        local, others = self._split(flows)
        looped = {flow._replace(interface="lo"): weight for flow, weight in local.items()}
        self._receive(self._hook("LOOPED", looped))
        self._accept(others)

    def _receive(self, flows: dict[Flow, float]) -> None:
        """Pass packets for the node itself; IPVS may forward them."""
        flows = self._hook("INPUT", flows)
        served = {f._replace(interface=""): w for f, w in flows.items() if f.virtual}
        remote = {f: w for f, w in served.items() if not self._recorder.is_local(f.destination)}
        # Packets to a real server on this node pass no further hook.
        self._accept({f: w for f, w in served.items() if f not in remote})
        self._accept({f: w for f, w in flows.items() if not f.virtual})
        self._accept(self._hook("POSTROUTING", self._hook("OUTPUT", remote)))

    def _split(self, flows: dict[Flow, float]) -> tuple[dict[Flow, float], dict[Flow, float]]:
        local: dict[Flow, float] = {}
        others: dict[Flow, float] = {}
        for flow, weight in flows.items():
            own = not flow.virtual and self._recorder.is_local(flow.destination)
            (local if own else others)[flow] = weight
        return local, others

    def _accept(self, flows: dict[Flow, float]) -> None:
        for flow, weight in flows.items():
            self._recorder.end(Action.ACCEPT, flow, weight)


def merge(into: dict[Flow, float], more: dict[Flow, float]) -> None:
    """Add the weights of equal flows."""
    for flow, weight in more.items():
        into[flow] = into.get(flow, 0.0) + weight


def _verdicts(endings: dict[tuple[Action, Flow], float]) -> tuple[Verdict, ...]:
    found: dict[Verdict, float] = {}
    for (action, flow), weight in endings.items():
        if weight <= NEGLIGIBLE:
            continue
        endpoint = ""
        if action is Action.ACCEPT and (flow.translated or flow.virtual):
            endpoint = target_text(flow.destination, flow.port)
        masqueraded = flow.masqueraded and action is Action.ACCEPT
        verdict = Verdict(0.0, action, endpoint, masqueraded, flow.mark, flow.updates)
        found[verdict] = found.get(verdict, 0.0) + weight
    verdicts = (msgspec.structs.replace(v, probability=w) for v, w in found.items())
    return tuple(sorted(verdicts, key=lambda v: (v.action.value, v.endpoint, v.masqueraded)))
