"""The changes to make, as a value, and their computation from the rules of Service ports."""

from collections.abc import Mapping

import msgspec

from svcproxy.backends.iptables.core.dispatch import DispatchTree
from svcproxy.backends.iptables.core.render import PortRules
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.iptables.core.static import LISTS, static_chains
from svcproxy.backends.xtables.core.restoretext import joined
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, TABLES, Rules
from svcproxy.backends.xtables.core.savefile import Saved
from svcproxy.backends.xtables.core.tableplan import TablePlan
from svcproxy.model.names import ServicePortName

TREES = ("cluster_ips", "external_ips", "node_ports")
"""The dispatch trees, named as the fields of ``PortRules`` that fill them."""


class Observed(msgspec.Struct, frozen=True):
    """What the kernel holds: rules by table and chain, and the family's ipsets by name."""

    tables: Saved
    sets: frozenset[str] = frozenset()


class Plan(msgspec.Struct, frozen=True):
    """The changes to both tables; ``sizes`` is how many of our rules each holds afterwards.

    ``refused`` are the Service ports that the plan leaves as they were, with the reasons: those
    that cannot be rendered, and those that the kernel refused before.

    ``create_sets`` have to exist before the rules that name them, ``destroy_sets`` can only go
    after those; ipset has no common transaction with iptables.
    """

    tables: dict[str, TablePlan]
    sizes: dict[str, int]
    create_sets: tuple[str, ...] = ()
    destroy_sets: tuple[str, ...] = ()
    refused: Mapping[ServicePortName, str] = {}

    def __bool__(self) -> bool:
        return any(self.tables.values()) or bool(self.create_sets or self.destroy_sets)

    def text(self) -> str:
        """The restore input, or the empty text when there is nothing to do.

        The filter table goes first, as with kube-proxy: what is to be refused is refused before
        its forwarding ends.
        """
        lines: list[str] = []
        for table in TABLES:
            if self.tables[table]:
                lines += self.tables[table].lines(table)
        return joined(lines)


class DesiredRules:
    """Collects the rules of all Service ports."""

    def __init__(self) -> None:
        self.sets: set[str] = set()
        self._chains: dict[str, Rules] = {}
        self._lists: dict[str, list[str]] = {chain: [] for chain in LISTS}
        self._entries: dict[str, dict[int, str]] = {name: {} for name in TREES}

    def add(self, rules: PortRules, *, late: bool = False) -> None:
        """Add one Service port; if ``late``, without the frontends that another port has."""
        self.sets |= rules.sets
        self._chains.update(rules.chains)
        for name, found in self._entries.items():
            entries = getattr(rules, name)
            found.update({n: t for n, t in entries.items() if n not in found} if late else entries)
        for chain, texts in rules.lists.items():
            self._lists[chain].extend(texts)

    def tables(
        self, settings: IptablesSettings, trees: Mapping[str, DispatchTree]
    ) -> dict[str, dict[str, Rules]]:
        """Return every chain by table; loads the dispatch trees."""
        tables = static_chains(settings)
        tables[NAT].update(self._chains)
        tables[FILTER].update((chain, tuple(texts)) for chain, texts in self._lists.items())
        for name, tree in trees.items():
            tree.load(self._entries[name])
            tables[NAT].update(tree.chains())
        return tables


class PlanBuilder:
    """Collects what changed Service ports mean for both tables."""

    def __init__(self, trees: Mapping[str, DispatchTree]) -> None:
        self._trees = trees
        self._nat, self._filters = TablePlan(), TablePlan()
        self._entries: dict[str, dict[int, str | None]] = {name: {} for name in TREES}
        self._create: set[str] = set()
        self._destroy: set[str] = set()

    def add(self, old: PortRules, new: PortRules) -> None:
        """Add one Service port."""
        nat = self._nat
        nat.delete.extend(old.chains.keys() - new.chains.keys())
        nat.write.update((c, r) for c, r in new.chains.items() if old.chains.get(c) != r)
        nat.fresh.update(new.chains.keys() - old.chains.keys())
        for tree, noted in self._entries.items():
            _note(noted, getattr(old, tree), getattr(new, tree), self._trees[tree])
        _edit(self._filters, old.lists, new.lists)
        self._create |= new.sets - old.sets
        self._destroy |= old.sets - new.sets

    def former_keys(self) -> dict[str, dict[int, str | None]]:
        """Return the dispatch trees' present rules at the keys that are about to change."""
        return {
            name: {number: self._trees[name].get(number) for number in noted}
            for name, noted in self._entries.items()
        }

    def change_trees(self) -> int:
        """Change the dispatch trees; return by how many rules they grew."""
        growth = 0
        for tree, noted in self._entries.items():
            change = self._trees[tree].change(noted)
            growth += change.growth
            for chain, rules in change.chains.items():
                if rules is None:
                    self._nat.delete.append(chain)
                else:
                    self._nat.write[chain] = rules
        return growth

    def plan(self, sizes: dict[str, int], refused: Mapping[ServicePortName, str]) -> Plan:
        """The finished plan."""
        self._nat.delete.sort()
        return Plan(
            {FILTER: self._filters, NAT: self._nat},
            sizes,
            create_sets=tuple(sorted(self._create)),
            destroy_sets=tuple(sorted(self._destroy)),
            refused=refused,
        )


def _note(
    into: dict[int, str | None], old: Mapping[int, str], new: Mapping[int, str], tree: DispatchTree
) -> None:
    """Note set and removed keys; if a key moves to another port, the new owner's rule wins.

    The last accepted state of a refused port may have a key that another port has taken since:
    such a key is not removed.
    """
    for number in old.keys() - new.keys():
        if tree.get(number) == old[number]:
            into.setdefault(number, None)
    into.update(new)


def _edit(plan: TablePlan, old: Mapping[str, Rules], new: Mapping[str, Rules]) -> None:
    for chain in sorted(old.keys() | new.keys()):
        before, after = old.get(chain, ()), new.get(chain, ())
        plan.remove.extend((chain, text) for text in before if text not in after)
        plan.add.extend((chain, text) for text in after if text not in before)
