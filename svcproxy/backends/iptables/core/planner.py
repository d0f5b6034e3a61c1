"""From the desired state to the input of iptables-restore, whole or for what changed."""

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
    LISTS,
    cluster_ip_rules,
    node_port_rules,
)
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, TABLES, Rules
from svcproxy.backends.xtables.core.tableplan import Jump, TablePlan
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort

_REMOVAL_COST = 64
"""So many rules are compared in the time that one rule is rendered and written."""
_NOTHING = PortRules({}, {}, {}, {}, {})


class _Former(msgspec.Struct):
    """The planner's state before its last plan, to return to if the plan is not applied.

    ``ports`` holds the Service ports that changed, ``None`` for those that did not exist; after a
    plan from scratch, all of them. ``keys`` are the changed rules of the dispatch trees.
    ``filters`` reverts an incremental plan's changes to the filter table.
    """

    ports: Mapping[ServicePortName, ServicePort | None]
    keys: dict[str, dict[int, str | None]]
    sizes: Counter[str]
    filters: TablePlan


class _Refused(msgspec.Struct):
    """A Service port that the kernel refused; the next ``left`` full comparisons skip it."""

    port: ServicePort
    reason: str
    left: int = 9


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
        self._former = _Former({}, {}, Counter(), TablePlan())
        self._refused: dict[ServicePortName, _Refused] = {}

    @property
    def settings(self) -> IptablesSettings:
        """What the present rules were made with."""
        return self._settings

    @property
    def sizes(self) -> dict[str, int]:
        """How many of our rules each table holds."""
        return dict(self._sizes)

    @property
    def wanted(self) -> dict[ServicePortName, ServicePort]:
        """The desired Service ports, including those that the kernel refused."""
        return self._ports | {name: noted.port for name, noted in self._refused.items()}

    def target(
        self, ports: Mapping[ServicePortName, ServicePort]
    ) -> tuple[dict[str, dict[str, Rules]], set[str], dict[ServicePortName, str]]:
        """Return our chains by table, our ipsets, and the ports that cannot be rendered.

        What was known before is forgotten. A frontend of several ports belongs to the last of
        them. A port that cannot be rendered keeps its last good state, except for frontends that
        another port has taken.
        """
        former, self._ports = self._ports, dict(ports)
        target = DesiredRules()
        refused: dict[ServicePortName, str] = {}
        for name, port in ports.items():
            try:
                target.add(render(port, self._settings))
            except ValueError as error:
                refused[name] = str(error)
        for name in refused:
            del self._ports[name]
            if name in former:
                self._ports[name] = former[name]
                target.add(render(former[name], self._settings), late=True)
        self._trees = _trees(self._settings)
        return target.tables(self._settings, self._trees), target.sets, refused

    def plan(
        self,
        desired: Desired,
        settings: IptablesSettings,
        observed: Observed,
        held: Collection[ServicePortName] = (),
    ) -> Plan:
        """Compare from scratch with what the kernel holds.

        Args:
            desired: the desired state.
            settings: the settings that the rules depend on.
            observed: what the kernel holds.
            held: Service ports that stay as in the last applied plan, or absent. If empty, those
                that the kernel refused and that have not changed since are held.
        """
        self._settings = settings
        former, sizes = self._ports, self._sizes.copy()
        ports = desired.ports
        known = {} if held else self._still_refused(ports)
        if held := held or known:
            kept = {name: former[name] for name in held if name in former}
            ports = kept | {name: port for name, port in ports.items() if name not in held}
        target, sets, refused = self.target(ports)
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
        plan = Plan(
            plans,
            dict(self._sizes),
            create_sets=tuple(sorted(sets - observed.sets)),
            destroy_sets=tuple(sorted(observed.sets - sets)),
            refused=refused | known,
        )
        self._former = _Former(former, {}, sizes, TablePlan())
        return plan

    def plan_changes(self, ports: Mapping[ServicePortName, ServicePort | None]) -> Plan:
        """Compute the difference that changed Service ports make."""
        difference = PlanBuilder(self._trees)
        former: dict[ServicePortName, ServicePort | None] = {}
        sizes = self._sizes.copy()
        refused: dict[ServicePortName, str] = {}
        for name, port in ports.items():
            known = self._ports.get(name)
            self._refused.pop(name, None)
            try:
                new = render(port, self._settings) if port else _NOTHING
            except ValueError as error:
                refused[name] = str(error)
                continue
            old = render(known, self._settings) if known else _NOTHING
            former[name] = known
            self._remember(name, port)
            difference.add(old, new)
            self._sizes[NAT] += _count(new.chains.values()) - _count(old.chains.values())
            self._sizes[FILTER] += _count(new.lists.values()) - _count(old.lists.values())
        keys = difference.former_keys()
        self._sizes[NAT] += difference.change_trees()
        plan = difference.plan(dict(self._sizes), refused)
        filters = plan.tables[FILTER]
        self._former = _Former(
            former, keys, sizes, TablePlan(remove=filters.add, add=filters.remove)
        )
        self._rewrite_long_lists(filters)
        return plan

    def _rewrite_long_lists(self, filters: TablePlan) -> None:
        """Write a list as a whole where removing rules one by one takes longer.

        iptables-nft-restore compares a rule to be removed with all rules before it: 5,000 removals
        from a list of 5,000 took 38 s.
        """
        held = self._sizes[FILTER] + len(filters.remove)
        removals = Counter(chain for chain, _ in filters.remove)
        most = _REMOVAL_COST * (held + len(self._ports))
        lists: dict[str, list[str]] = {c: [] for c, n in removals.items() if n * held > most}
        if not lists:
            return
        for port in self._ports.values():
            for chain, texts in render(port, self._settings).lists.items():
                if chain in lists:
                    lists[chain].extend(texts)
        filters.write.update((chain, tuple(texts)) for chain, texts in lists.items())
        filters.remove = [entry for entry in filters.remove if entry[0] not in lists]
        filters.add = [entry for entry in filters.add if entry[0] not in lists]

    def note_refused(
        self,
        ports: Mapping[ServicePortName, ServicePort | None],
        refused: Mapping[ServicePortName, str],
    ) -> None:
        """Note which of ``ports`` the kernel refused; the next full comparisons skip them."""
        for name, reason in refused.items():
            if (port := ports.get(name)) is not None:
                self._refused[name] = _Refused(port, reason)

    def _still_refused(
        self, ports: Mapping[ServicePortName, ServicePort]
    ) -> dict[ServicePortName, str]:
        """Return the refused ports that have not changed; every tenth full comparison retries them.

        Not every one does, because a retry writes to the filter table: it is committed before the
        nat table is refused.
        """
        found: dict[ServicePortName, str] = {}
        for name, noted in list(self._refused.items()):
            if noted.left and ports.get(name) == noted.port:
                noted.left -= 1
                found[name] = noted.reason
            else:
                del self._refused[name]
        return found

    def undo(self) -> TablePlan:
        """Return to the state before the last plan, which was not applied.

        After an incremental plan, ``plan_changes`` may follow. After a plan from scratch only the
        Service ports are restored, not the dispatch trees: ``plan`` has to follow.

        Returns:
            The plan that reverts an incremental plan's changes to the filter table, for when that
            table was committed.
        """
        former = self._former
        if former.keys:
            for name, port in former.ports.items():
                self._remember(name, port)
            for tree, noted in former.keys.items():
                self._trees[tree].change(noted)
        else:
            self._ports = {name: port for name, port in former.ports.items() if port is not None}
        self._sizes = former.sizes
        return former.filters

    def _remember(self, name: ServicePortName, port: ServicePort | None) -> None:
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
