"""The difference between the desired state and the kernel, as a plan of ordered steps."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, TypeVar

import msgspec

from svcproxy.backends.ipvs.core import chains_and_sets as names
from svcproxy.backends.ipvs.core.chains_and_sets import (
    JUMPS,
    LISTS,
    SETS,
    capacity,
    fits,
    grown,
    static_chains,
    substitution,
)
from svcproxy.backends.ipvs.core.port_state import Entry, PortState, ServerTarget
from svcproxy.backends.ipvs.core.refusals import Refusals, retry
from svcproxy.backends.ipvs.core.settings import IpvsSettings, Scheduling
from svcproxy.backends.xtables.core.restoretext import join_lines
from svcproxy.backends.xtables.core.rule_text import NAT, TABLES, Rules
from svcproxy.backends.xtables.core.savefile import Saved
from svcproxy.backends.xtables.core.tableplan import Jump, TablePlan
from svcproxy.model.names import NamespacedName, ServicePortName
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    RealServers,
    SetEntry,
    SetKind,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import (
    AddRealServer,
    AddVirtualServer,
    CreateSet,
    ServerOperation,
    SetOperation,
    SetRealServer,
    SetVirtualServer,
)

T = TypeVar("T")
Leaving = dict[VirtualServerKey, list[RealServerKey]]


class Observed(msgspec.Struct, frozen=True):
    """What the kernel holds.

    Attributes:
        tables: the rules of iptables.
        servers: the virtual servers.
        real: the weights of their real servers.
        sets: kind and entries of the ipsets of IPVS mode, by name.
        bound: the addresses on ``kube-ipvs0``.
    """

    tables: Saved
    servers: Mapping[VirtualServerKey, VirtualServer]
    real: Mapping[VirtualServerKey, RealServers]
    sets: Mapping[str, tuple[SetKind, AbstractSet[SetEntry]]]
    bound: AbstractSet[str]

    def holds(self, entry: Entry) -> bool:
        """Whether a set exists and has an entry."""
        name, member = entry
        return name in self.sets and member in self.sets[name][1]


class Plan(msgspec.Struct):
    """Steps to be executed in the order of the fields up to ``remove_entries``.

    The order is make before break: a virtual server exists before rules and addresses direct
    packets to it, and reject rules are in effect before a virtual server is deleted.

    Attributes:
        create_sets: creates sets, and replaces sets of another kind or without enough capacity.
        add_entries: entries to add to sets.
        serve: adds and changes virtual servers, and adds real servers.
        tables: the changes of iptables.
        node_ports: like ``serve``, at the node's own addresses. These virtual servers receive
            packets immediately, so they follow the rules.
        bind: addresses to add to ``kube-ipvs0``.
        hand_over: rules that replace those of iptables mode, which bypass IPVS until then.
        quiesce: sets the weight of real servers to 0, which starts to drain them.
        leaving: the real servers that drain from this plan on, or that were found draining.
        delete: deletes servers that need not drain.
        unbind: addresses to remove from ``kube-ipvs0``.
        remove_entries: entries to remove from sets.
        fallback: the scheduler for virtual servers whose own scheduler the kernel lacks.
        is_resync: whether the plan results from a comparison of everything.
        ports: the Service ports that the plan is about, unless it is a resync.
        former: the virtual servers that these ports had before.
        annotation_problems: what is wrong with the scheduler annotations of these ports' Services.
    """

    create_sets: list[SetOperation] = []
    add_entries: list[Entry] = []
    serve: list[ServerOperation] = []
    tables: dict[str, TablePlan] = {}
    node_ports: list[ServerOperation] = []
    bind: list[str] = []
    hand_over: dict[str, TablePlan] = {}
    quiesce: list[ServerOperation] = []
    leaving: Leaving = {}
    delete: list[ServerOperation] = []
    unbind: list[str] = []
    remove_entries: list[Entry] = []
    fallback: Scheduling = Scheduling()
    is_resync: bool = False
    ports: Collection[ServicePortName] = ()
    former: Collection[VirtualServerKey] = ()
    annotation_problems: dict[NamespacedName, str] = {}

    def __bool__(self) -> bool:
        return bool(
            self.create_sets
            or self.add_entries
            or self.serve
            or any(self.tables.values())
            or self.node_ports
            or self.bind
            or any(self.hand_over.values())
            or self.quiesce
            or self.delete
            or self.unbind
            or self.remove_entries
        )


def servers_of(states: Iterable[PortState]) -> dict[VirtualServerKey, ServerTarget]:
    """Return the virtual servers of several Service ports."""
    return {key: target for state in states for key, target in state.servers.items()}


def update_server(
    steps: list[ServerOperation],
    key: VirtualServerKey,
    target: ServerTarget,
    found: VirtualServer | None,
    real: RealServers,
) -> None:
    """Append the steps that bring a virtual server to its target, but do not remove real servers.

    Args:
        steps: the list to append to.
        key: the virtual server.
        target: its properties and real servers.
        found: its properties in the kernel; ``None`` if it does not exist.
        real: its real servers in the kernel.
    """
    server, wanted = target
    if found is None:
        steps.append(AddVirtualServer(key, server))
    elif found != server:
        steps.append(SetVirtualServer(key, server))
    for each in sorted(wanted):
        weight = real.get(each) if found is not None else None
        if weight is None:
            steps.append(AddRealServer(key, each, 1))
        elif weight != 1:
            steps.append(SetRealServer(key, each, 1))


class SharedObjects:
    """Set entries and addresses on ``kube-ipvs0``, by how many Service ports need each.

    Draining virtual servers count as well. The class also tracks how many entries each set has
    and can take.
    """

    def __init__(
        self, addresses: Counter[str] | None = None, entries: Counter[Entry] | None = None
    ) -> None:
        self.addresses: Counter[str] = Counter() if addresses is None else addresses
        self.entries: Counter[Entry] = Counter() if entries is None else entries
        self._sizes: Counter[str] = Counter()
        self._capacity: dict[str, int] = {}

    def counts(self, refusals: Refusals) -> Counter[str]:
        """Return how many entries each set holds, and how many ``addresses`` are bound."""
        counts = +self._sizes
        counts["addresses"] = len(self.addresses) - len(refusals.addresses)
        counts.subtract(name for name, _ in refusals.entries)
        return counts

    def add(self, state: PortState) -> None:
        """Count the objects of a draining virtual server, before ``compare``."""
        self.addresses.update(state.addresses)
        self.entries.update(state.entries)

    def compare(self, plan: Plan, observed: Observed, settings: IpvsSettings) -> None:
        """Plan the difference between the needed objects and the kernel."""
        self._compare_sets(plan, observed, settings)
        wanted = self.addresses.keys()
        plan.bind.extend(sorted(wanted - observed.bound))
        plan.unbind.extend(
            a for a in sorted(observed.bound - wanted) if not settings.is_excluded(a)
        )

    def _compare_sets(self, plan: Plan, observed: Observed, settings: IpvsSettings) -> None:
        family = settings.family
        wanted: dict[str, set[SetEntry]] = {name: set() for name in SETS[family]}
        for name, entry in self.entries:
            wanted[name].add(entry)
        for name, kind in SETS[family].kinds.items():
            present, found = observed.sets.get(name, (None, frozenset[SetEntry]()))
            entries = wanted[name] | found
            if present is not None and fits(present, kind, len(entries)):
                plan.add_entries.extend((name, entry) for entry in sorted(wanted[name] - found))
                self._capacity[name] = capacity(present)
            else:
                created = grown(kind, len(entries))
                self._capacity[name] = capacity(created)
                if present is None:
                    plan.create_sets.append(CreateSet(name, created))
                    plan.add_entries.extend((name, entry) for entry in sorted(wanted[name]))
                else:
                    plan.create_sets.extend(substitution(name, created, sorted(entries), family))
            plan.remove_entries.extend((name, entry) for entry in sorted(found - wanted[name]))
        self._sizes = Counter(name for name, _ in self.entries)

    def change(
        self,
        plan: Plan,
        old: Sequence[PortState],
        new: Sequence[PortState],
        refusals: Refusals,
        settings: IpvsSettings,
    ) -> bool:
        """Plan the difference between the former and the new objects of changed Service ports.

        Refused objects that the new states still need are retried.

        Returns:
            Whether all sets have enough capacity. Old entries are removed last, so a set must
            hold the old and the new ones together.
        """
        addresses, entries = Counter[str](), Counter[Entry]()
        for state in new:
            addresses.update(state.addresses)
            entries.update(state.entries)
        for state in old:
            addresses.subtract(state.addresses)
            entries.subtract(state.entries)
        bind, unbind = _add_counts(self.addresses, addresses)
        gained, lost = _add_counts(self.entries, entries)
        self._sizes.update(name for name, _ in gained)
        fit = all(self._sizes[name] <= most for name, most in self._capacity.items())
        self._sizes.subtract(name for name, _ in lost)
        if refusals:
            # Without new states nothing is retried; objects that are no longer needed are forgotten.
            retry(refusals.addresses, addresses.keys() if new else unbind, bind, unbind)
            retry(refusals.entries, entries.keys() if new else lost, gained, lost)
        plan.bind.extend(sorted(bind))
        plan.unbind.extend(a for a in sorted(unbind) if not settings.is_excluded(a))
        plan.add_entries.extend(sorted(gained))
        plan.remove_entries.extend(sorted(lost))
        return fit


def _add_counts(counts: Counter[T], difference: Counter[T]) -> tuple[set[T], set[T]]:
    """Add a difference; return the items that became needed, and those no longer needed."""
    gained, lost = set(), set()
    for item, number in difference.items():
        if not number:
            continue
        before = counts[item]
        counts[item] = before + number
        if before <= 0 < counts[item]:
            gained.add(item)
        elif counts[item] <= 0 < before:
            lost.add(item)
        if counts[item] <= 0:
            del counts[item]
    return gained, lost


class Target(NamedTuple):
    """The desired state of the kernel."""

    servers: dict[VirtualServerKey, ServerTarget]
    addresses: Counter[str]
    entries: Counter[Entry]
    tables: dict[str, dict[str, Rules]]

    @classmethod
    def of(cls, states: Iterator[PortState], settings: IpvsSettings) -> "Target":
        """Combine the objects of all Service ports with the static chains."""
        tables = static_chains(settings)
        lists: dict[str, dict[str, list[str]]] = {
            table: {chain: [] for chain in LISTS[table]} for table in TABLES
        }
        target = cls({}, Counter(), Counter(), tables)
        for state in states:
            target.servers.update(state.servers)
            target.addresses.update(state.addresses)
            target.entries.update(state.entries)
            tables[NAT].update(state.chains)
            for table, chain, text in state.rules:
                lists[table][chain].append(text)
        for table, chains in lists.items():
            tables[table].update((chain, tuple(rules)) for chain, rules in chains.items())
        return target


def compare_table(table: str, chains: Mapping[str, Rules], found: Mapping[str, Rules]) -> TablePlan:
    """Compare a table with the kernel; rules of other programs are left alone."""
    return TablePlan(
        write={c: rules for c, rules in chains.items() if not _same(c, rules, found, table)},
        jumps=_missing_jumps(table, found),
        delete=sorted(c for c in found if names.is_own_chain(c) and c not in chains),
        fresh=chains.keys() - found.keys(),
    )


def split_hand_over(
    plan: TablePlan, chains: Mapping[str, Rules], found: Mapping[str, Rules]
) -> dict[str, TablePlan]:
    """Move the rules that end serving by iptables mode from nat's plan to a later one.

    Both modes use KUBE-SERVICES. If its rules of iptables mode were replaced before the addresses
    are bound to ``kube-ipvs0``, packets to a cluster IP would be routed away in between. The
    reverse order is safe: DNAT precedes the routing decision.

    Args:
        plan: the plan for nat.
        chains: the desired nat table.
        found: the present nat table.

    Returns:
        The later plan by table; empty if KUBE-SERVICES has no rules of iptables mode.
    """
    if names.SERVICES not in plan.write:
        return {}
    targets = {text.rpartition(" -j ")[2] for text in found.get(names.SERVICES, ())}
    if not (targets & found.keys()) - chains.keys():
        return {}
    return {NAT: TablePlan(write={names.SERVICES: plan.write.pop(names.SERVICES)})}


def edit_tables(
    tables: Mapping[str, TablePlan], old: Iterable[PortState], new: Iterable[PortState]
) -> dict[str, int]:
    """Plan the changes to rules and chains of changed Service ports.

    Args:
        tables: the plans to extend, by table.
        old: the former states of the ports.
        new: their new states.

    Returns:
        By how much the number of rules grows, by table.
    """
    before = {rule for state in old for rule in state.rules}
    after = {rule for state in new for rule in state.rules}
    for table, chain, text in sorted(before - after):
        tables[table].remove.append((chain, text))
    for table, chain, text in sorted(after - before):
        tables[table].add.append((chain, text))
    former = {chain: rules for state in old for chain, rules in state.chains.items()}
    wanted = {chain: rules for state in new for chain, rules in state.chains.items()}
    nat = tables[NAT]
    nat.write.update((c, rules) for c, rules in wanted.items() if former.get(c) != rules)
    nat.fresh.update(wanted.keys() - former.keys())
    nat.delete.extend(sorted(former.keys() - wanted.keys()))
    growth = dict.fromkeys(tables, 0)
    for table, _, _ in after:
        growth[table] += 1
    for table, _, _ in before:
        growth[table] -= 1
    growth[NAT] += sum(map(len, wanted.values())) - sum(map(len, former.values()))
    return growth


def _same(chain: str, rules: Rules, found: Mapping[str, Rules], table: str) -> bool:
    """Whether the kernel holds a chain as desired; the order matters unless it is a list."""
    present = found.get(chain)
    if present is None:
        return False
    if chain in LISTS[table]:
        return sorted(present) == sorted(rules)
    return present == rules


def _missing_jumps(table: str, found: Mapping[str, Rules]) -> list[Jump]:
    return [j for j in JUMPS if j.table == table and j.text not in found.get(j.source, ())]


def restore_input(tables: Mapping[str, TablePlan]) -> str:
    """Return the input of iptables-restore; empty if no rule changes."""
    lines = [line for table in TABLES if tables.get(table) for line in tables[table].lines(table)]
    return join_lines(lines)
