"""iptables rules as a value, and their evaluation for a packet."""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network

from svcproxy.explain.core.iptables_syntax import Facts, Rule, parse_rule
from svcproxy.explain.core.packet import (
    Flow,
    Host,
    State,
    UnknownRuleError,
    Update,
)
from svcproxy.explain.core.trace import NEGLIGIBLE, Action, Recorder, Step, merge

Tables = Mapping[str, Mapping[str, Sequence[str]]]
"""Rules by table and chain, in order, without the leading ``-A CHAIN``."""
Sets = Mapping[str, frozenset[str]]
"""Entries of ipsets by name, as ``ipset list`` prints them: ``10.96.0.1,tcp:80``."""

_CHAINS = {
    "PREROUTING": (("nat", "PREROUTING"),),
    "LOOPED": (),
    "INPUT": (("filter", "INPUT"),),
    "FORWARD": (("filter", "FORWARD"),),
    "OUTPUT": (("nat", "OUTPUT"), ("filter", "OUTPUT")),
    "POSTROUTING": (("nat", "POSTROUTING"),),
}


class IptablesRuleset:
    """The nat and filter tables of one IP family, with the ipsets that their rules match.

    Rules are parsed when the first packet reaches their chain.

    Args:
        tables: rules by table and chain.
        sets: the entries of ipsets. A set that is missing is empty.
    """

    def __init__(self, tables: Tables, sets: Sets | None = None) -> None:
        self.tables = tables
        self.sets: Sets = sets or {}
        self._parsed: dict[tuple[str, str], tuple[Rule, ...]] = {}
        self._members = {name: _Members(entries) for name, entries in self.sets.items()}

    @classmethod
    def parse(cls, text: str, sets: Sets | None = None) -> "IptablesRuleset":
        """Read the output of iptables-save, or a restore input for empty tables."""
        return cls(parse_tables(text), sets)

    def rules(self, table: str, chain: str) -> tuple[Rule, ...]:
        """Return the parsed rules of a chain, empty if the chain does not exist.

        Raises:
            UnknownRuleError: a rule is not supported.
        """
        found = self._parsed.get((table, chain))
        if found is None:
            chains = self.tables.get(table, {})
            found = tuple(parse_rule(text, chains) for text in chains.get(chain, ()))
            self._parsed[table, chain] = found
        return found

    def has(self, table: str, chain: str) -> bool:
        """Return whether a table has a chain."""
        return chain in self.tables.get(table, ())

    def member(self, name: str, fields: tuple[str, ...], flow: Flow) -> bool:
        """Return whether an ipset matches a packet."""
        members = self._members.get(name)
        return members is not None and members.hold(fields, flow)

    def is_local(self, host: Host, address: bytes) -> bool:
        """Whether the node takes an address for its own."""
        return host.is_local(address)

    def run_hook(
        self, recorder: Recorder, hook: str, flow: Flow, weight: float
    ) -> dict[Flow, float]:
        """Run the chains of a hook on a flow; see ``trace.Ruleset``."""
        flows = {flow: weight}
        for table, chain in _CHAINS[hook]:
            flows = self.run_chain(recorder, table, chain, flows)
        return flows

    def run_chain(
        self, recorder: Recorder, table: str, chain: str, flows: dict[Flow, float]
    ) -> dict[Flow, float]:
        """Run one built-in chain; conntrack asks the nat table for new connections only.

        Returns:
            The flows that pass, with their weights.

        Raises:
            UnknownRuleError: a rule is not supported.
        """
        recorder.enter(f"{table} {chain}")
        passed: dict[Flow, float] = {}
        for flow, weight in flows.items():
            if table == "nat" and not _consults_nat(flow, chain):
                merge(passed, {flow: weight})
            else:
                merge(passed, _Evaluation(self, recorder, table).base(chain, flow, weight))
        return passed

    def after(self, updates: Iterable[Update]) -> "IptablesRuleset":
        """Return a copy in which packets have added their clients to ipsets."""
        return IptablesRuleset(self.tables, sets_after(self.sets, updates))

    def text(self, step: Step) -> str:
        """Return the rule of a step as iptables-save prints it."""
        return f"-A {step.chain} {self.tables[step.table][step.chain][step.position]}"


def parse_tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Parse iptables-save output, or a restore input for empty tables, into rules by table and chain.

    Raises:
        UnknownRuleError: a line has another form.
    """
    tables: dict[str, dict[str, list[str]]] = {}
    chains: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            chains = tables.setdefault(line[1:].strip(), {})
        elif line.startswith(":"):
            chains.setdefault(line[1:].split()[0], [])
        elif line.startswith(("-A ", "-I ")):
            action, chain, rule = line.split(" ", 2)
            rules = chains.setdefault(chain, [])
            rules.insert(0 if action == "-I" else len(rules), rule.rstrip())
        elif line and line != "COMMIT" and not line.startswith("#"):
            raise UnknownRuleError(f"line {line!r}")
    return tables


def sets_after(sets: Sets, updates: Iterable[Update]) -> Sets:
    """Return ipsets to which packets have added their clients."""
    changed = dict(sets)
    for update in updates:
        client = str(ip_address(update.key))
        changed[update.where] = changed.get(update.where, frozenset()) | {client}
    return changed


def _consults_nat(flow: Flow, chain: str) -> bool:
    if flow.state is not State.NEW:
        return False
    return chain == "POSTROUTING" or not (flow.translated or flow.virtual)


class _Evaluation:
    """Evaluates one table for one flow."""

    def __init__(self, ruleset: IptablesRuleset, recorder: Recorder, table: str) -> None:
        self._ruleset = ruleset
        self._recorder = recorder
        self._table = table
        self._facts = Facts(recorder.is_local, ruleset.member)
        self._accepted: dict[Flow, float] = {}

    def base(self, chain: str, flow: Flow, weight: float) -> dict[Flow, float]:
        """Run a built-in chain; the policy is ACCEPT."""
        merge(self._accepted, self._run(chain, {flow: weight}))
        return self._accepted

    def _run(self, chain: str, flows: dict[Flow, float]) -> dict[Flow, float]:
        """Run a chain; return the flows that return to its caller."""
        returned: dict[Flow, float] = {}
        for position, rule in enumerate(self._ruleset.rules(self._table, chain)):
            if not flows:
                break
            following: dict[Flow, float] = {}
            for flow, weight in flows.items():
                self._recorder.count(weight)
                taken = self._taken(rule, flow, weight)
                if weight - taken > NEGLIGIBLE:
                    merge(following, {flow: weight - taken})
                if taken > NEGLIGIBLE:
                    self._recorder.steps.append(Step(self._table, chain, position, taken))
                    merge(following, self._apply(rule, flow, taken, returned))
            flows = following
        merge(returned, flows)
        return returned

    def _taken(self, rule: Rule, flow: Flow, weight: float) -> float:
        """Return the share of the weight for which the rule applies."""
        if not rule.holds(flow, self._facts):
            return 0.0
        if rule.probability == 1.0 or self._recorder.choose is None:
            return weight * rule.probability
        if self._recorder.choose < rule.probability:
            self._recorder.choose /= rule.probability
            return weight
        self._recorder.choose = (self._recorder.choose - rule.probability) / (
            1.0 - rule.probability
        )
        return 0.0

    def _apply(
        self, rule: Rule, flow: Flow, weight: float, returned: dict[Flow, float]
    ) -> dict[Flow, float]:
        """Execute a rule's target; return the flows that continue with the next rule."""
        if rule.remember[0]:
            name, seconds = rule.remember
            flow = flow._replace(updates=(*flow.updates, Update(name, flow.source, b"", seconds)))
        match rule.target:
            case "" | "SET":
                return {flow: weight}
            case "MARK":
                value, mask = rule.mark
                return {flow._replace(mark=(flow.mark & ~mask) ^ value): weight}
            case "RETURN":
                merge(returned, {flow: weight})
            case "ACCEPT":
                merge(self._accepted, {flow: weight})
            case "MASQUERADE":
                merge(self._accepted, {flow._replace(masqueraded=True): weight})
            case "DNAT":
                address, port = rule.endpoint
                moved = flow._replace(destination=address, port=port, translated=True)
                merge(self._accepted, {moved: weight})
            case "DROP" | "REJECT":
                self._recorder.end(Action[rule.target], flow, weight)
            case chain:
                return self._run(chain, {flow: weight})
        return {}


class _Members:
    """The entries of one ipset, indexed for look-ups."""

    def __init__(self, entries: frozenset[str]) -> None:
        self._exact: set[tuple[bytes | tuple[str, int] | int, ...]] = set()
        self._networks: list[tuple[bytes, tuple[str, int], int, int]] = []
        for entry in entries:
            parts = entry.split(",")
            if len(parts) == 3 and "/" in parts[2]:
                network = ip_network(parts[2])
                shift = network.max_prefixlen - network.prefixlen
                wanted = int(network.network_address) >> shift
                self._networks.append((_address(parts[0]), _port(parts[1]), shift, wanted))
            else:
                self._exact.add(tuple(map(_part, parts)))

    def hold(self, fields: tuple[str, ...], flow: Flow) -> bool:
        """Return whether the set has the packet's addresses and port in the given fields."""
        ends = [flow.source if field == "src" else flow.destination for field in fields]
        service = (flow.protocol, flow.port)
        if len(ends) == 1:
            return (ends[0],) in self._exact or (flow.port,) in self._exact
        if len(ends) == 2:
            return (ends[0], service) in self._exact
        if (ends[0], service, ends[2]) in self._exact:
            return True
        number = int.from_bytes(ends[2], "big")
        return any(
            address == ends[0] and port == service and number >> shift == wanted
            for address, port, shift, wanted in self._networks
        )


def _part(text: str) -> bytes | tuple[str, int] | int:
    if text.isdecimal():
        return int(text)
    if text.partition(":")[0] in {"tcp", "udp", "sctp"}:
        return _port(text)
    return _address(text)


def _address(text: str) -> bytes:
    return ip_address(text).packed


def _port(text: str) -> tuple[str, int]:
    protocol, _, number = text.partition(":")
    return protocol, int(number)
