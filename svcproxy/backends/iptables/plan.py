"""From the desired state to the input of iptables-restore, whole or for what changed."""

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from svcproxy.backends.base import Desired
from svcproxy.backends.iptables import naming
from svcproxy.backends.iptables.dispatch import DispatchTree
from svcproxy.backends.iptables.render import PortRules, render
from svcproxy.backends.iptables.settings import IptablesSettings
from svcproxy.backends.iptables.static import (
    JUMPS,
    KUBELET_JUMPS,
    LISTS,
    cluster_ip_rules,
    node_port_rules,
    static_chains,
)
from svcproxy.backends.xtables.ruleset import FILTER, NAT, TABLES, Rules
from svcproxy.backends.xtables.savefile import Saved
from svcproxy.backends.xtables.tableplan import Jump, TablePlan
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort

_NOTHING = PortRules({}, {}, {}, {}, {})


class Observed(msgspec.Struct, frozen=True):
    """What the kernel holds: rules by table and chain, and the family's ipsets by name."""

    tables: Saved
    sets: frozenset[str] = frozenset()


class Plan(msgspec.Struct, frozen=True):
    """The changes to both tables; ``sizes`` is how many of our rules each then holds.

    ``create_sets`` have to exist before the rules that name them, ``destroy_sets`` can only go
    after those; ipset has no common transaction with iptables.
    """

    tables: dict[str, TablePlan]
    sizes: dict[str, int]
    create_sets: tuple[str, ...] = ()
    destroy_sets: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(self.tables.values()) or bool(self.create_sets or self.destroy_sets)

    def text(self) -> str:
        """The restore input, or the empty text when there is nothing to do.

        The filter table goes first, as with kube-proxy: what is to be refused is refused before
        its forwarding ends.
        """
        lines = [
            line
            for table in TABLES
            if self.tables[table]
            for line in self.tables[table].lines(table)
        ]
        return "\n".join((*lines, "")) if lines else ""


class Planner:
    """Knows what the kernel holds after the last applied plan, and computes the next.

    Its memory is the finished Service ports themselves: their rules are a pure function of
    them and are rendered again when they are to be replaced.
    """

    def __init__(self, settings: IptablesSettings) -> None:
        self._settings = settings
        self._ports: dict[ServicePortName, ServicePort] = {}
        self._trees = _trees(settings)
        self._sizes: Counter[str] = Counter()

    @property
    def settings(self) -> IptablesSettings:
        """What the present rules were made with."""
        return self._settings

    def target(
        self, ports: Mapping[ServicePortName, ServicePort]
    ) -> tuple[dict[str, dict[str, Rules]], set[str]]:
        """Every chain of ours by table, and every ipset; the memory starts anew."""
        settings = self._settings
        tables = static_chains(settings)
        lists: dict[str, list[str]] = {chain: [] for chain in LISTS}
        entries: dict[str, dict[int, str]] = {name: {} for name in _TREES}
        sets: set[str] = set()
        for port in ports.values():
            rules = render(port, settings)
            sets |= rules.sets
            tables[NAT].update(rules.chains)
            for name, found in entries.items():
                found.update(getattr(rules, name))
            for chain, texts in rules.lists.items():
                lists[chain].extend(texts)
        tables[FILTER].update((chain, tuple(texts)) for chain, texts in lists.items())
        self._trees = _trees(settings)
        for name, tree in self._trees.items():
            tree.load(entries[name])
            tables[NAT].update(tree.chains())
        self._ports = dict(ports)
        return tables, sets

    def plan(self, desired: Desired, settings: IptablesSettings, observed: Observed) -> Plan:
        """Compare from scratch with what the kernel holds."""
        self._settings = settings
        target, sets = self.target(desired.ports)
        plans: dict[str, TablePlan] = {}
        for table in TABLES:
            chains, found = target[table], observed.tables.get(table, {})
            self._sizes[table] = sum(map(len, chains.values()))
            plans[table] = TablePlan(
                write={
                    c: rules for c, rules in chains.items() if not _same(c, rules, found, table)
                },
                jumps=_missing_jumps(table, chains, found),
                delete=_stale(table, chains, found),
                fresh=chains.keys() - found.keys(),
            )
        return Plan(
            plans,
            dict(self._sizes),
            create_sets=tuple(sorted(sets - observed.sets)),
            destroy_sets=tuple(sorted(observed.sets - sets)),
        )

    def plan_changes(self, ports: Mapping[ServicePortName, ServicePort | None]) -> Plan:
        """Compute the difference that changed Service ports make."""
        nat, filters = TablePlan(), TablePlan()
        entries: dict[str, dict[int, str | None]] = {name: {} for name in _TREES}
        create: set[str] = set()
        destroy: set[str] = set()
        for name, port in ports.items():
            known = self._ports.get(name)
            old = render(known, self._settings) if known else _NOTHING
            new = render(port, self._settings) if port else _NOTHING
            self._remember(name, port)
            nat.delete.extend(old.chains.keys() - new.chains.keys())
            nat.write.update((c, r) for c, r in new.chains.items() if old.chains.get(c) != r)
            nat.fresh.update(new.chains.keys() - old.chains.keys())
            self._sizes[NAT] += _count(new.chains.values()) - _count(old.chains.values())
            self._sizes[FILTER] += _count(new.lists.values()) - _count(old.lists.values())
            for tree, noted in entries.items():
                _note(noted, getattr(old, tree), getattr(new, tree))
            _edit(filters, old.lists, new.lists)
            create |= new.sets - old.sets
            destroy |= old.sets - new.sets
        for tree, noted in entries.items():
            change = self._trees[tree].change(noted)
            self._sizes[NAT] += change.growth
            for chain, rules in change.chains.items():
                if rules is None:
                    nat.delete.append(chain)
                else:
                    nat.write[chain] = rules
        nat.delete.sort()
        return Plan(
            {FILTER: filters, NAT: nat},
            dict(self._sizes),
            create_sets=tuple(sorted(create)),
            destroy_sets=tuple(sorted(destroy)),
        )

    def _remember(self, name: ServicePortName, port: ServicePort | None) -> None:
        if port is None:
            self._ports.pop(name, None)
        else:
            self._ports[name] = port


_TREES = ("cluster_ips", "external_ips", "node_ports")
"""The dispatch trees, named as the fields of ``PortRules`` that fill them."""


def _trees(settings: IptablesSettings) -> dict[str, DispatchTree]:
    bits = settings.family.bits
    before, after = cluster_ip_rules(settings), node_port_rules(settings)
    return {
        "cluster_ips": DispatchTree(naming.CLUSTER_IPS, bits),
        "external_ips": DispatchTree(naming.SERVICES, bits, before=before, after=after),
        "node_ports": DispatchTree(naming.NODE_PORTS, 0),
    }


def _count(rules: Iterable[Rules]) -> int:
    return sum(map(len, rules))


def _note(into: dict[int, str | None], old: Mapping[int, str], new: Mapping[int, str]) -> None:
    """Note set and removed keys; when a key changes hands, the new owner's rule stands."""
    for number in old.keys() - new.keys():
        into.setdefault(number, None)
    into.update(new)


def _edit(plan: TablePlan, old: Mapping[str, Rules], new: Mapping[str, Rules]) -> None:
    for chain in sorted(old.keys() | new.keys()):
        before, after = old.get(chain, ()), new.get(chain, ())
        plan.remove.extend((chain, text) for text in before if text not in after)
        plan.add.extend((chain, text) for text in after if text not in before)


def _same(chain: str, rules: Rules, found: Mapping[str, Rules], table: str) -> bool:
    """Whether the kernel holds the chain as it should be; lists may stand in any order."""
    present = found.get(chain)
    if present is None:
        return False
    if table == FILTER and chain in LISTS:
        return sorted(present) == sorted(rules)
    return present == rules


def _missing_jumps(
    table: str, chains: Mapping[str, Rules], found: Mapping[str, Rules]
) -> list[Jump]:
    missing = [j for j in JUMPS if j.table == table and j.text not in found.get(j.source, ())]
    if naming.KUBELET_FIREWALL in chains:
        missing.extend(j for j in KUBELET_JUMPS if j.text not in found.get(j.source, ()))
    return missing


def _stale(table: str, chains: Mapping[str, Rules], found: Mapping[str, Rules]) -> list[str]:
    """Chains of Services that are gone, or of kube-proxy's; only nat holds such chains."""
    if table != NAT:
        return []
    return sorted(c for c in found if naming.is_service_chain(c) and c not in chains)
