"""Plans as values, and the two ways to build one from the rules of Service ports."""

from collections.abc import Mapping

import msgspec

from svcproxy.backends.iptables.core.dispatch import DispatchTree
from svcproxy.backends.iptables.core.render import PortRules
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.iptables.core.static import SHARED_CHAINS, static_chains
from svcproxy.backends.xtables.core.restoretext import join_lines
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, TABLES, Rules
from svcproxy.backends.xtables.core.savefile import Saved
from svcproxy.backends.xtables.core.tableplan import TablePlan
from svcproxy.model.names import ServicePortName

TREES = ("cluster_ips", "external_ips", "node_ports")
"""The dispatch trees, by the name of the field of ``PortRules`` that holds a port's entries."""


class Observed(msgspec.Struct, frozen=True):
    """What the kernel holds.

    Attributes:
        tables: rules by table and chain.
        sets: the names of svcproxy's ipsets of this family.
    """

    tables: Saved
    sets: frozenset[str] = frozenset()


class Plan(msgspec.Struct, frozen=True):
    """The changes to both tables.

    Attributes:
        tables: the changes by table.
        sizes: how many rules of svcproxy each table holds afterwards.
        create_sets: ipsets to create before the rules are restored. ipset has no transaction in
            common with iptables.
        destroy_sets: ipsets to destroy after the rules are restored.
        refused: the Service ports that keep their former rules, with the reasons: those that
            cannot be rendered, and those that the kernel refused before.
        names_sets: whether rules of the planned Service ports name ipsets.
    """

    tables: dict[str, TablePlan]
    sizes: dict[str, int]
    create_sets: tuple[str, ...] = ()
    destroy_sets: tuple[str, ...] = ()
    refused: Mapping[ServicePortName, str] = {}
    names_sets: bool = False

    def __bool__(self) -> bool:
        return any(self.tables.values()) or bool(self.create_sets or self.destroy_sets)

    def text(self) -> str:
        """Return the restore input; empty if there is nothing to do.

        Make before break: the filter table comes first, as in kube-proxy, so that traffic to a
        Service without endpoints is rejected before its DNAT rules are removed.
        """
        lines: list[str] = []
        for table in TABLES:
            if self.tables[table]:
                lines += self.tables[table].lines(table)
        return join_lines(lines)


class DesiredRules:
    """The rules of all Service ports, for a plan from scratch."""

    def __init__(self) -> None:
        self.sets: set[str] = set()
        self._chains: dict[str, Rules] = {}
        self._shared_rules: dict[str, list[str]] = {chain: [] for chain in SHARED_CHAINS}
        self._entries: dict[str, dict[int, str]] = {name: {} for name in TREES}

    def add(self, rules: PortRules, *, keep_owners: bool = False) -> None:
        """Add the rules of one Service port.

        Args:
            rules: the rules.
            keep_owners: leave out the frontends that a port added earlier has; otherwise the port
                added last gets them.
        """
        self.sets |= rules.sets
        self._chains.update(rules.chains)
        for name, taken in self._entries.items():
            entries = getattr(rules, name)
            if keep_owners:
                entries = {key: text for key, text in entries.items() if key not in taken}
            taken.update(entries)
        for chain, texts in rules.shared_rules.items():
            self._shared_rules[chain].extend(texts)

    def tables(
        self, settings: IptablesSettings, trees: Mapping[str, DispatchTree]
    ) -> dict[str, dict[str, Rules]]:
        """Return every chain by table; this also loads the entries into the dispatch trees."""
        tables = static_chains(settings)
        tables[NAT].update(self._chains)
        tables[FILTER].update((chain, tuple(texts)) for chain, texts in self._shared_rules.items())
        for name, tree in trees.items():
            tree.load(self._entries[name])
            tables[NAT].update(tree.chains())
        return tables


class PlanBuilder:
    """Builds an incremental plan from the former and new rules of changed Service ports.

    Args:
        trees: the dispatch trees; ``change_trees`` changes them.
    """

    def __init__(self, trees: Mapping[str, DispatchTree]) -> None:
        self._trees = trees
        self._nat, self._filters = TablePlan(), TablePlan()
        self._entries: dict[str, dict[int, str | None]] = {name: {} for name in TREES}
        self._create: set[str] = set()
        self._destroy: set[str] = set()
        self._names_sets = False

    def add(self, old: PortRules, new: PortRules) -> None:
        """Add the former and the new rules of one Service port."""
        nat = self._nat
        nat.delete.extend(old.chains.keys() - new.chains.keys())
        nat.write.update((c, r) for c, r in new.chains.items() if old.chains.get(c) != r)
        nat.fresh.update(new.chains.keys() - old.chains.keys())
        for tree, entries in self._entries.items():
            _merge_entries(entries, getattr(old, tree), getattr(new, tree), self._trees[tree])
        _edit_shared_chains(self._filters, old.shared_rules, new.shared_rules)
        self._create |= new.sets - old.sets
        self._destroy |= old.sets - new.sets
        self._names_sets |= bool(new.sets)

    def former_entries(self) -> dict[str, dict[int, str | None]]:
        """Return the rules that the dispatch trees hold now for the keys that will change."""
        return {
            name: {key: self._trees[name].get(key) for key in entries}
            for name, entries in self._entries.items()
        }

    def change_trees(self) -> int:
        """Change the dispatch trees; return by how many rules they grew."""
        growth = 0
        for tree, entries in self._entries.items():
            change = self._trees[tree].change(entries)
            growth += change.growth
            for chain, rules in change.chains.items():
                if rules is None:
                    self._nat.delete.append(chain)
                else:
                    self._nat.write[chain] = rules
        return growth

    def plan(self, sizes: dict[str, int], refused: Mapping[ServicePortName, str]) -> Plan:
        """Return the finished plan.

        Args:
            sizes: ``Plan.sizes``.
            refused: ``Plan.refused``.
        """
        self._nat.delete.sort()
        return Plan(
            {FILTER: self._filters, NAT: self._nat},
            sizes,
            create_sets=tuple(sorted(self._create)),
            destroy_sets=tuple(sorted(self._destroy)),
            refused=refused,
            names_sets=self._names_sets,
        )


def _merge_entries(
    into: dict[int, str | None], old: Mapping[int, str], new: Mapping[int, str], tree: DispatchTree
) -> None:
    """Add set and removed keys; if a key moves to another port, the new owner's rule wins.

    Another port may have taken a key since the kernel refused an update of this port. Such a key
    is not removed.
    """
    for key in old.keys() - new.keys():
        if tree.get(key) == old[key]:
            into.setdefault(key, None)
    into.update(new)


def _edit_shared_chains(
    plan: TablePlan, old: Mapping[str, Rules], new: Mapping[str, Rules]
) -> None:
    for chain in sorted(old.keys() | new.keys()):
        before, after = old.get(chain, ()), new.get(chain, ())
        plan.remove.extend((chain, text) for text in before if text not in after)
        plan.add.extend((chain, text) for text in after if text not in before)
