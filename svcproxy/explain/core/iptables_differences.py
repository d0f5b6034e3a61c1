"""Describes how iptables' tables differ from the desired ones. Pure.

The daemon's planner compares; its plan is described here. So there is a difference exactly if a
resync would write something.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial

from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.core import naming
from svcproxy.backends.iptables.core.plan import Observed, Plan
from svcproxy.backends.iptables.core.planner import Planner
from svcproxy.backends.iptables.core.render import PortRules, render
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.xtables.core.hashing import port_hash
from svcproxy.backends.xtables.core.rule_text import NAT, TABLES, Rules
from svcproxy.explain.core.differences import Difference, DifferenceKind, grouped
from svcproxy.explain.core.iptables_rules import IptablesRuleset
from svcproxy.explain.core.table_differences import Attribution, table_differences
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort

_SHARED_TREE_CHAINS = frozenset((naming.CLUSTER_IPS, naming.FROM_OUTSIDE))
"""The chains with the prefix of Services' chains through which the packets of all Services pass."""


def differences(
    desired: Desired, settings: IptablesSettings, observed: Observed
) -> list[Difference]:
    """Compare the tables with the desired ones; empty if a resync would write nothing.

    Args:
        desired: the desired state.
        settings: the settings that a resync would use now.
        observed: what the kernel holds.
    """
    plan = Planner(settings).plan(desired, settings, observed)
    if not plan:
        return []
    owners = _Owners(desired.ports, settings, plan, observed)
    attribution = Attribution(owners.of_chain, owners.of_rule)
    found: list[Difference] = []
    for table in TABLES:
        present = observed.tables.get(table, {})
        found += table_differences(table, plan.tables[table], present, attribution)

    for kind, names in (
        (DifferenceKind.MISSING, plan.create_sets),
        (DifferenceKind.UNEXPECTED, plan.destroy_sets),
    ):
        described = partial(_ipset, kind, owners)
        found += grouped(names, "ipsets", described, owners.of_chain)
    return found


def _ipset(kind: DifferenceKind, owners: "_Owners", name: str) -> Difference:
    return Difference(kind, f"ipset {name}", tuple(sorted(set(owners.of_chain(name)))))


class _Owners:
    """Finds the Service ports of chains, ipsets and rules."""

    def __init__(
        self,
        ports: Mapping[ServicePortName, ServicePort],
        settings: IptablesSettings,
        plan: Plan,
        observed: Observed,
    ) -> None:
        self._ports = ports
        self._settings = settings
        self._desired = plan.tables[NAT].write
        self._actual = observed.tables.get(NAT, {})
        self._chains: dict[str, ServicePortName] = {}
        self._rules: dict[str, ServicePortName] = {}
        for name, port in ports.items():
            rules = rendered(port, settings)
            if rules is not None:
                self._chains.update(dict.fromkeys(rules.chains, name))
                self._rules.update(dict.fromkeys(rules_in_shared_chains(rules), name))

    @cached_property
    def _hashes(self) -> Mapping[str, ServicePortName]:
        return {port_hash(name): name for name in self._ports}

    def of_chain(self, chain: str) -> Iterable[ServicePortName]:
        """Return the Service port of a chain or ipset: of a desired one, or by its hash."""
        owner = self._chains.get(chain) or self._hashes.get(chain.rpartition("-")[2])
        return () if owner is None else (owner,)

    def of_rule(self, table: str, chain: str, text: str) -> Iterator[ServicePortName]:
        """Yield the Service ports whose packets a rule selects."""
        if chain in self._chains:
            return
        if text in self._rules:
            yield self._rules[text]
            return
        target = text.rpartition("-j ")[2]
        if table == NAT and naming.is_service_chain(target):
            yield from self._below(target)

    def _below(self, chain: str, depth: int = 0) -> Iterator[ServicePortName]:
        """Yield the Service ports that a chain of a dispatch tree leads to."""
        owners = tuple(self.of_chain(chain))
        if owners or chain in _SHARED_TREE_CHAINS or depth > _DEEPEST:
            yield from owners
            return
        rules: Rules = self._desired.get(chain, self._actual.get(chain, ()))
        for text in rules:
            if text in self._rules:
                yield self._rules[text]
                continue
            target = text.rpartition("-j ")[2]
            if naming.is_service_chain(target):
                yield from self._below(target, depth + 1)


_DEEPEST = 16
"""Trees are at most this deep; a loop that another program made ends there."""


def rendered(port: ServicePort, settings: IptablesSettings) -> PortRules | None:
    """Return the rules of a Service port; ``None`` if an address or number is invalid."""
    try:
        return render(port, settings)
    except ValueError:
        return None


def rules_in_shared_chains(rules: PortRules) -> Iterator[str]:
    """Yield the rules of a Service port in chains that it shares with others."""
    for entries in (rules.cluster_ips, rules.external_ips, rules.node_ports):
        yield from entries.values()
    for texts in rules.shared_rules.values():
        yield from texts


def object_lines(
    ruleset: IptablesRuleset, port: ServicePort, settings: IptablesSettings
) -> list[str]:
    """Return the rules that carry a Service port: those that lead to its chains, and its chains.

    Args:
        ruleset: the tables, desired or as the kernel holds them.
        port: the Service port.
        settings: the settings.

    Returns:
        Lines as iptables-save prints them.
    """
    rules = rendered(port, settings)
    if rules is None:
        return []
    wanted = set(rules_in_shared_chains(rules))
    own = [chain for chain in rules.chains if ruleset.has(NAT, chain)]
    lines = [
        f"-A {chain} {text}"
        for chains in (ruleset.tables.get(table, {}) for table in TABLES)
        for chain, texts in chains.items()
        if chain not in rules.chains
        for text in texts
        if text in wanted or text.rpartition("-j ")[2] in rules.chains
    ]
    for chain in own:
        lines += (f"-A {chain} {text}" for text in ruleset.tables[NAT][chain])
    return lines
