"""From the desired state to steps, whole or for what changed."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from svcproxy.backends.base import Desired
from svcproxy.backends.ipvs.compare import (
    Target,
    changed,
    compare_table,
    handed_over,
    serve,
    servers,
)
from svcproxy.backends.ipvs.enough import fits, room, roomy, substitution
from svcproxy.backends.ipvs.layout import NOTHING, PortState, ServerTarget, layout, ports_taken
from svcproxy.backends.ipvs.naming import SETS
from svcproxy.backends.ipvs.operations import (
    CreateSet,
    DeleteRealServer,
    DeleteVirtualServer,
    SetRealServer,
)
from svcproxy.backends.ipvs.plan import Entry, Observed, Plan
from svcproxy.backends.ipvs.settings import IpvsSettings
from svcproxy.backends.ipvs.values import (
    RealServerKey,
    RealServers,
    SetEntry,
    VirtualServerKey,
)
from svcproxy.backends.xtables.ruleset import FILTER, NAT, TABLES
from svcproxy.backends.xtables.tableplan import TablePlan
from svcproxy.model.names import NamespacedName, Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort


class _Claims(NamedTuple):
    """What Service ports and draining virtual servers have in common, by how many need it."""

    addresses: Counter[str]
    entries: Counter[Entry]


class Planner:
    """Knows what the kernel holds after the last applied plan, and computes the next.

    Its memory is the finished Service ports themselves, from which their former meaning is
    computed again, and what needs counting because several share it. ``lingering`` are the
    virtual servers that nobody wants any more and that stay while one of their real servers
    drains.
    """

    def __init__(self, settings: IpvsSettings) -> None:
        self._settings = settings
        self._ports: dict[ServicePortName, ServicePort] = {}
        self._names: dict[NamespacedName, set[ServicePortName]] = {}
        self._claims = _Claims(Counter(), Counter())
        self._lingering: dict[VirtualServerKey, PortState] = {}
        self._sizes: Counter[str] = Counter()
        self._room: dict[str, int] = {}
        self._held: Counter[str] = Counter()
        self._overfull = False

    @property
    def settings(self) -> IpvsSettings:
        """What the present state was made with."""
        return self._settings

    @property
    def lingering(self) -> AbstractSet[VirtualServerKey]:
        """The virtual servers that are not wanted but still there."""
        return self._lingering.keys()

    @property
    def sizes(self) -> dict[str, int]:
        """How much the kernel holds, by kind."""
        return dict(self._sizes)

    @property
    def counts(self) -> Counter[str]:
        """How many set entries, by the names of the sets, and addresses there should be."""
        counts = +self._held
        counts["addresses"] = len(self._claims.addresses)
        return counts

    @property
    def ports(self) -> AbstractSet[ServicePortName]:
        """The Service ports."""
        return self._ports.keys()

    def layout(self, name: ServicePortName) -> PortState:
        """What a port means at present; nothing if there is no such port."""
        port = self._ports.get(name)
        return layout(port, self._settings, self._taken(name)) if port else NOTHING

    def _taken(self, name: ServicePortName) -> AbstractSet[int]:
        siblings = self._names.get(name.service, set())
        if len(siblings) < 2:
            return frozenset()
        ports = (self._ports[n] for n in siblings if n.protocol is name.protocol)
        return ports_taken(ports)[name.protocol]

    # --- From scratch -------------------------------------------------------------------------

    def plan(self, desired: Desired, settings: IpvsSettings, observed: Observed) -> Plan:
        """Compare from scratch with what the kernel holds."""
        self._settings = settings
        self._ports, self._names = {}, {}
        for name, port in desired.ports.items():
            self._remember(name, port)
        target = Target.of((self.layout(name) for name in self._ports), settings)
        self._claims = _Claims(target.addresses, target.entries)
        self._lingering = {}
        plan = Plan(compared=True)
        self._compare_servers(plan, target.servers, observed)
        self._compare_sets(plan, observed)
        self._compare_addresses(plan, observed)
        for table in TABLES:
            chains, found = target.tables[table], observed.tables.get(table, {})
            plan.tables[table] = compare_table(table, chains, found)
            if table == NAT:
                plan.hand_over = handed_over(plan.tables[NAT], chains, found)
            self._sizes[f"{table}_rules"] = sum(map(len, chains.values()))
        self._sizes["virtual_servers"] = len(target.servers)
        self._sizes["real_servers"] = sum(len(real) for _, real in target.servers.values())
        return plan

    def _compare_servers(
        self, plan: Plan, wanted: Mapping[VirtualServerKey, ServerTarget], observed: Observed
    ) -> None:
        for key, target in wanted.items():
            found = observed.servers.get(key)
            steps = plan.node_ports if self._is_node_port(key) else plan.serve
            serve(steps, key, target, found, observed.real.get(key, {}))
            if found is not None:
                self._retire(plan, key, target[1], observed.real.get(key, {}))
        for key in observed.servers.keys() - wanted.keys():
            if self._is_ours(key, observed.bound, observed.holds):
                found_real = observed.real.get(key, {})
                bound = key.address in observed.bound
                for state in self._dismiss(plan, key, found_real, bound=bound):
                    self._claims.addresses.update(state.addresses)
                    self._claims.entries.update(state.entries)

    def _is_node_port(self, key: VirtualServerKey) -> bool:
        return key.address in self._settings.addresses

    def owns(self, key: VirtualServerKey) -> bool:
        """Whether a comparison would take a virtual server for a Service's, wanted or not."""
        return self._is_ours(key, self._claims.addresses, self._claims.entries.__contains__)

    def _is_ours(
        self,
        key: VirtualServerKey,
        bound: Container[str],
        holds: Callable[[Entry], bool],
    ) -> bool:
        """Whether a virtual server that no Service has was made for one.

        IPVS keeps no mark of who made a virtual server. Its address tells: on ``kube-ipvs0`` are
        those of Services only; and a port in the sets of node ports is one of ours at any address.
        """
        if self._settings.is_excluded(key.address):
            return False
        return key.address in bound or holds(self._node_port_entry(key))

    def _node_port_entry(self, key: VirtualServerKey) -> Entry:
        sets = SETS[self._settings.family]
        name = sets.node_port(key.protocol, local=False)
        if key.protocol is Protocol.SCTP:
            return name, SetEntry(key.address, key.protocol, key.port)
        return name, SetEntry(port=key.port)

    def _compare_sets(self, plan: Plan, observed: Observed) -> None:
        wanted: dict[str, set[SetEntry]] = {name: set() for name in SETS[self._settings.family]}
        for name, entry in self._claims.entries:
            wanted[name].add(entry)
        for name, kind in SETS[self._settings.family].kinds.items():
            present, found = observed.sets.get(name, (None, frozenset[SetEntry]()))
            entries = wanted[name] | found
            if present is not None and fits(present, kind, len(entries)):
                plan.enter.extend((name, entry) for entry in sorted(wanted[name] - found))
                self._room[name] = room(present)
            else:
                made = roomy(kind, len(entries))
                self._room[name] = room(made)
                if present is None:
                    plan.create_sets.append(CreateSet(name, made))
                    plan.enter.extend((name, entry) for entry in sorted(wanted[name]))
                else:
                    plan.create_sets.extend(
                        substitution(name, made, sorted(entries), self._settings.family)
                    )
            plan.leave.extend((name, entry) for entry in sorted(found - wanted[name]))
        self._held = Counter(name for name, _ in self._claims.entries)
        self._overfull = False

    def _compare_addresses(self, plan: Plan, observed: Observed) -> None:
        wanted = self._claims.addresses.keys()
        plan.bind.extend(sorted(wanted - observed.bound))
        plan.unbind.extend(
            a for a in sorted(observed.bound - wanted) if not self._settings.is_excluded(a)
        )

    # --- What changed -------------------------------------------------------------------------

    def plan_changes(self, ports: Mapping[ServicePortName, ServicePort | None]) -> Plan | None:
        """Compute the difference that changed Service ports make.

        ``None`` if a set would get too full: a comparison from scratch then makes a larger one.
        """
        concerned = self._concerned(ports)
        old = [self.layout(name) for name in concerned]
        for name, port in ports.items():
            self._remember(name, port)
        new = [self.layout(name) for name in concerned]
        plan = Plan(tables={table: TablePlan() for table in TABLES})
        former, wanted = servers(old), servers(new)
        for key, target in wanted.items():
            known = former.get(key)
            steps = plan.node_ports if self._is_node_port(key) else plan.serve
            known_real = dict.fromkeys(known[1], 1) if known else {}
            serve(steps, key, target, known[0] if known else None, known_real)
            if known is not None:
                self._retire(plan, key, target[1], known_real)
            if key in self._lingering:
                old.append(self._lingering.pop(key))
        bound = {address for state in old for address in state.addresses}
        for key in former.keys() - wanted.keys():
            found = dict.fromkeys(former[key][1], 1)
            new.extend(self._dismiss(plan, key, found, bound=key.address in bound))
        self._claim(plan, old, new)
        self._edit_rules(plan, old, new)
        self._count(former, wanted)
        plan.ports, plan.former = concerned, former.keys()
        return None if self._overfull else plan

    def _concerned(
        self, ports: Mapping[ServicePortName, ServicePort | None]
    ) -> list[ServicePortName]:
        """The changed ports, and those of the same Services: hidden ports keep clear of them."""
        concerned = dict.fromkeys(ports)
        for service in {name.service for name in ports}:
            concerned.update(dict.fromkeys(self._names.get(service, ())))
        return list(concerned)

    def _remember(self, name: ServicePortName, port: ServicePort | None) -> None:
        if port is not None:
            self._ports[name] = port
            self._names.setdefault(name.service, set()).add(name)
            return
        self._ports.pop(name, None)
        names = self._names.get(name.service, set())
        names.discard(name)
        if not names:
            self._names.pop(name.service, None)

    def _claim(self, plan: Plan, old: Iterable[PortState], new: Iterable[PortState]) -> None:
        """Take up what is needed from now on and give up what is not."""
        addresses: Counter[str] = Counter()
        entries: Counter[Entry] = Counter()
        for state in new:
            addresses.update(state.addresses)
            entries.update(state.entries)
        for state in old:
            addresses.subtract(state.addresses)
            entries.subtract(state.entries)
        bind, unbind = changed(self._claims.addresses, addresses)
        enter, leave = changed(self._claims.entries, entries)
        plan.bind.extend(sorted(bind))
        plan.unbind.extend(a for a in sorted(unbind) if not self._settings.is_excluded(a))
        plan.enter.extend(sorted(enter))
        plan.leave.extend(sorted(leave))
        self._held.update(name for name, _ in enter)
        # Until the old ones leave, there has to be room for both.
        self._overfull = any(self._held[name] > most for name, most in self._room.items())
        self._held.subtract(name for name, _ in leave)

    def _edit_rules(self, plan: Plan, old: Iterable[PortState], new: Iterable[PortState]) -> None:
        before = {rule for state in old for rule in state.rules}
        after = {rule for state in new for rule in state.rules}
        for table, chain, text in sorted(before - after):
            plan.tables[table].remove.append((chain, text))
        for table, chain, text in sorted(after - before):
            plan.tables[table].add.append((chain, text))
        former = {chain: rules for state in old for chain, rules in state.chains.items()}
        wanted = {chain: rules for state in new for chain, rules in state.chains.items()}
        nat = plan.tables[NAT]
        nat.write.update((c, rules) for c, rules in wanted.items() if former.get(c) != rules)
        nat.fresh.update(wanted.keys() - former.keys())
        nat.delete.extend(sorted(former.keys() - wanted.keys()))
        for table in (NAT, FILTER):
            lists = sum(1 for r in after if r[0] == table) - sum(1 for r in before if r[0] == table)
            self._sizes[f"{table}_rules"] += lists
        self._sizes[f"{NAT}_rules"] += sum(map(len, wanted.values()))
        self._sizes[f"{NAT}_rules"] -= sum(map(len, former.values()))

    def _count(
        self,
        old: Mapping[VirtualServerKey, ServerTarget],
        new: Mapping[VirtualServerKey, ServerTarget],
    ) -> None:
        self._sizes["virtual_servers"] += len(new) - len(old)
        self._sizes["real_servers"] += sum(len(real) for _, real in new.values())
        self._sizes["real_servers"] -= sum(len(real) for _, real in old.values())

    # --- What leaves --------------------------------------------------------------------------

    def _retire(
        self,
        plan: Plan,
        key: VirtualServerKey,
        wanted: AbstractSet[RealServerKey],
        found: RealServers,
    ) -> None:
        """Have real servers that are not wanted leave a virtual server that stays."""
        for real in sorted(found.keys() - wanted):
            if key.protocol is not Protocol.TCP:
                plan.delete.append(DeleteRealServer(key, real))
                continue
            if found[real]:
                plan.quiesce.append(SetRealServer(key, real, 0))
            plan.leaving.setdefault(key, []).append(real)

    def _dismiss(
        self, plan: Plan, key: VirtualServerKey, found: RealServers, *, bound: bool
    ) -> Iterable[PortState]:
        """Have a virtual server leave: one for TCP when its real servers have drained.

        Gives what it needs until then.
        """
        if key.protocol is not Protocol.TCP or not found:
            plan.delete.append(DeleteVirtualServer(key))
            return ()
        self._retire(plan, key, frozenset(), found)
        # Its address, and what tells a fresh process that it is ours, stay as long as it does.
        sets = SETS[self._settings.family]
        kept = (sets.bound, SetEntry(key.address)) if bound else self._node_port_entry(key)
        addresses = frozenset((key.address,)) if bound else frozenset[str]()
        state = PortState({}, addresses, frozenset((kept,)), {}, frozenset())
        self._lingering[key] = state
        return (state,)

    def holds_on(self, key: VirtualServerKey) -> bool:
        """Whether a virtual server that leaves keeps others from its address and port.

        Not if it is wanted or a Service that has no endpoints has it. Otherwise packets there are
        for somebody else by now, and it should not wait until the last connection is closed and
        forgotten, which takes minutes.
        """
        if key not in self._lingering:
            return False
        sets, entry = SETS[self._settings.family], SetEntry(key.address, key.protocol, key.port)
        return not any((name, entry) in self._claims.entries for name in (sets.reject, sets.drop))

    def drained(self, key: VirtualServerKey) -> Plan:
        """What is to be done when the last real server of a lingering virtual server is gone."""
        plan = Plan(delete=[DeleteVirtualServer(key)])
        state = self._lingering.pop(key)
        self._claim(plan, [state], [])
        return plan
