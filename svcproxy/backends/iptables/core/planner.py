"""Plans the changes to both tables, from scratch or for changed Service ports."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import msgspec

from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.core import naming
from svcproxy.backends.iptables.core.dispatch import DispatchTree
from svcproxy.backends.iptables.core.plan import DesiredRules, Observed, Plan, PlanBuilder
from svcproxy.backends.iptables.core.render import PortRules, render
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.iptables.core.static import (
    JUMPS,
    KUBELET_JUMPS,
    SHARED_CHAINS,
    cluster_ip_rules,
    node_port_rules,
)
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, TABLES, Rules
from svcproxy.backends.xtables.core.tableplan import Jump, TablePlan
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort

_REMOVAL_COST = 64
"""How many rules iptables-nft-restore compares in the time that rendering and writing one takes."""
_NO_RULES = PortRules({}, {}, {}, {}, {})


class _Snapshot(msgspec.Struct):
    """The planner's state before its last plan, to restore if the plan is not applied.

    Attributes:
        ports: the Service ports that the plan changes, ``None`` for new ones; for a plan from
            scratch, all of them.
        entries: the entries of the dispatch trees that the plan changes; empty for a plan from
            scratch.
        sizes: the number of rules by table.
        filters: reverts the changes of an incremental plan to the filter table.
    """

    ports: Mapping[ServicePortName, ServicePort | None]
    entries: dict[str, dict[int, str | None]]
    sizes: Counter[str]
    filters: TablePlan


class _Refused(msgspec.Struct):
    """A Service port that the kernel refused.

    Attributes:
        port: the refused state.
        reason: the error text.
        skips_left: how many of the next plans from scratch leave the port out.
    """

    port: ServicePort
    reason: str
    skips_left: int = 9


class Planner:
    """Knows what the kernel holds after the last applied plan, and computes the next plan.

    The planner stores the Service ports, not their rules. Rules are a pure function of a port and
    the settings, and are rendered again when they are replaced.
    """

    def __init__(self, settings: IptablesSettings) -> None:
        self._settings = settings
        self._ports: dict[ServicePortName, ServicePort] = {}
        self._trees = _trees(settings)
        self._sizes: Counter[str] = Counter()
        self._snapshot = _Snapshot({}, {}, Counter(), TablePlan())
        self._refused: dict[ServicePortName, _Refused] = {}

    @property
    def settings(self) -> IptablesSettings:
        """The settings of the last plan from scratch."""
        return self._settings

    @property
    def sizes(self) -> dict[str, int]:
        """How many rules of svcproxy each table holds."""
        return dict(self._sizes)

    def wanted_after(
        self, changes: Mapping[ServicePortName, ServicePort | None]
    ) -> dict[ServicePortName, ServicePort]:
        """Return all desired Service ports, including refused ones, after ``changes``."""
        known = self._ports | {name: refused.port for name, refused in self._refused.items()}
        wanted = {**known, **changes}
        return {name: port for name, port in wanted.items() if port is not None}

    def render_all(
        self, ports: Mapping[ServicePortName, ServicePort]
    ) -> tuple[dict[str, dict[str, Rules]], set[str], dict[ServicePortName, str]]:
        """Render all Service ports and store them as the planner's new state.

        If several ports have the same frontend, the last one gets it. A port that cannot be
        rendered keeps its last good state, except for frontends that another port has taken.

        Returns:
            All chains by table, all ipsets, and the ports that cannot be rendered, with reasons.
        """
        former, self._ports = self._ports, dict(ports)
        desired = DesiredRules()
        refused: dict[ServicePortName, str] = {}
        for name, port in ports.items():
            try:
                desired.add(render(port, self._settings))
            except ValueError as error:
                refused[name] = str(error)
        for name in refused:
            del self._ports[name]
            if name in former:
                self._ports[name] = former[name]
                desired.add(render(former[name], self._settings), keep_owners=True)
        self._trees = _trees(self._settings)
        return desired.tables(self._settings, self._trees), desired.sets, refused

    def plan(
        self,
        desired: Desired,
        settings: IptablesSettings,
        observed: Observed,
        excluded: Collection[ServicePortName] = (),
    ) -> Plan:
        """Plan from scratch: compute the difference between the desired state and the tables.

        Args:
            desired: the desired state.
            settings: the settings that the rules depend on.
            observed: what the kernel holds.
            excluded: Service ports to leave as in the last applied plan, or absent. If empty, ports
                that the kernel refused and that have not changed since are left out.
        """
        self._settings = settings
        former, sizes = self._ports, self._sizes.copy()
        ports = desired.ports
        skipped = {} if excluded else self._still_refused(ports)
        if excluded := excluded or skipped:
            kept = {name: former[name] for name in excluded if name in former}
            ports = kept | {name: port for name, port in ports.items() if name not in excluded}
        chains_by_table, sets, refused = self.render_all(ports)
        plans: dict[str, TablePlan] = {}
        for table in TABLES:
            chains = chains_by_table[table]
            self._sizes[table] = sum(map(len, chains.values()))
            plans[table] = _table_plan(table, chains, observed.tables.get(table, {}))
        plan = Plan(
            plans,
            dict(self._sizes),
            create_sets=tuple(sorted(sets - observed.sets)),
            destroy_sets=tuple(sorted(observed.sets - sets)),
            refused=refused | skipped,
            names_sets=bool(sets),
        )
        self._snapshot = _Snapshot(former, {}, sizes, TablePlan())
        return plan

    def plan_changes(self, ports: Mapping[ServicePortName, ServicePort | None]) -> Plan:
        """Plan the changes that changed Service ports make, relative to the last applied plan."""
        builder = PlanBuilder(self._trees)
        former: dict[ServicePortName, ServicePort | None] = {}
        sizes = self._sizes.copy()
        refused: dict[ServicePortName, str] = {}
        for name, port in ports.items():
            known = self._ports.get(name)
            self._refused.pop(name, None)
            try:
                new = render(port, self._settings) if port else _NO_RULES
            except ValueError as error:
                refused[name] = str(error)
                continue
            old = render(known, self._settings) if known else _NO_RULES
            former[name] = known
            self._store(name, port)
            builder.add(old, new)
            self._sizes[NAT] += _count(new.chains.values()) - _count(old.chains.values())
            self._sizes[FILTER] += _count(new.shared_rules.values())
            self._sizes[FILTER] -= _count(old.shared_rules.values())
        entries = builder.former_entries()
        self._sizes[NAT] += builder.change_trees()
        plan = builder.plan(dict(self._sizes), refused)
        filters = plan.tables[FILTER]
        self._snapshot = _Snapshot(
            former, entries, sizes, TablePlan(remove=filters.add, add=filters.remove)
        )
        self._rewrite_long_chains(filters)
        return plan

    def _rewrite_long_chains(self, filters: TablePlan) -> None:
        """Replace a shared chain as a whole where removing its rules one by one takes longer.

        iptables-nft-restore compares each rule to remove with all rules before it: removing 5,000
        of 5,000 rules took 38 s.
        """
        rules = self._sizes[FILTER] + len(filters.remove)
        removals = Counter(chain for chain, _ in filters.remove)
        most = _REMOVAL_COST * (rules + len(self._ports))
        chains: dict[str, list[str]] = {c: [] for c, n in removals.items() if n * rules > most}
        if not chains:
            return
        for port in self._ports.values():
            for chain, texts in render(port, self._settings).shared_rules.items():
                if chain in chains:
                    chains[chain].extend(texts)
        filters.write.update((chain, tuple(texts)) for chain, texts in chains.items())
        filters.remove = [entry for entry in filters.remove if entry[0] not in chains]
        filters.add = [entry for entry in filters.add if entry[0] not in chains]

    def note_refused(
        self,
        ports: Mapping[ServicePortName, ServicePort | None],
        refused: Mapping[ServicePortName, str],
    ) -> None:
        """Note which of ``ports`` the kernel refused; the next plans from scratch skip them."""
        for name, reason in refused.items():
            if (port := ports.get(name)) is not None:
                self._refused[name] = _Refused(port, reason)

    def _still_refused(
        self, ports: Mapping[ServicePortName, ServicePort]
    ) -> dict[ServicePortName, str]:
        """Return the refused ports that have not changed, with reasons.

        Every tenth plan from scratch retries them. More retries would do harm: each one writes to
        the filter table, which is committed before the nat table is refused.
        """
        found: dict[ServicePortName, str] = {}
        for name, refused in list(self._refused.items()):
            if refused.skips_left and ports.get(name) == refused.port:
                refused.skips_left -= 1
                found[name] = refused.reason
            else:
                del self._refused[name]
        return found

    def undo(self) -> TablePlan:
        """Return to the state before the last plan, which was not applied.

        After an incremental plan, ``plan_changes`` or ``plan`` may follow. After a plan from
        scratch only the Service ports are restored, not the dispatch trees, so ``plan`` must
        follow.

        Returns:
            A plan that reverts the changes of an incremental plan to the filter table, in case that
            table was committed.
        """
        snapshot = self._snapshot
        if snapshot.entries:
            for name, port in snapshot.ports.items():
                self._store(name, port)
            for tree, entries in snapshot.entries.items():
                self._trees[tree].change(entries)
        else:
            self._ports = {name: port for name, port in snapshot.ports.items() if port is not None}
        self._sizes = snapshot.sizes
        return snapshot.filters

    def _store(self, name: ServicePortName, port: ServicePort | None) -> None:
        if port is None:
            self._ports.pop(name, None)
        else:
            self._ports[name] = port


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


def _table_plan(table: str, chains: Mapping[str, Rules], found: Mapping[str, Rules]) -> TablePlan:
    return TablePlan(
        write={c: rules for c, rules in chains.items() if not _same(c, rules, found, table)},
        jumps=_missing_jumps(table, chains, found),
        delete=_stale_chains(table, chains, found),
        fresh=chains.keys() - found.keys(),
    )


def _same(chain: str, rules: Rules, found: Mapping[str, Rules], table: str) -> bool:
    """Whether the kernel holds the chain with these rules; in shared chains, in any order."""
    present = found.get(chain)
    if present is None:
        return False
    if table == FILTER and chain in SHARED_CHAINS:
        return sorted(present) == sorted(rules)
    return present == rules


def _missing_jumps(
    table: str, chains: Mapping[str, Rules], found: Mapping[str, Rules]
) -> list[Jump]:
    missing = [j for j in JUMPS if j.table == table and j.text not in found.get(j.source, ())]
    if naming.KUBELET_FIREWALL in chains:
        missing.extend(j for j in KUBELET_JUMPS if j.text not in found.get(j.source, ()))
    return missing


def _stale_chains(table: str, chains: Mapping[str, Rules], found: Mapping[str, Rules]) -> list[str]:
    """Return the chains of deleted Services, and of kube-proxy; only nat holds such chains."""
    if table != NAT:
        return []
    return sorted(c for c in found if naming.is_service_chain(c) and c not in chains)
