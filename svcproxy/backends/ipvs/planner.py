"""From the desired state to steps, whole or for what changed."""

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from msgspec import structs

from svcproxy.backends.base import Desired
from svcproxy.backends.ipvs.compare import (
    Target,
    changed,
    compare_table,
    handed_over,
    serve,
    servers,
)
from svcproxy.backends.ipvs.enough import fits, room, roomy, substitutes, substitution
from svcproxy.backends.ipvs.layout import PortState, ServerTarget
from svcproxy.backends.ipvs.naming import SETS
from svcproxy.backends.ipvs.plan import Entry, Observed, Plan
from svcproxy.backends.ipvs.ports import Ports
from svcproxy.backends.ipvs.refused import Item, Refused, attributed, retry, suspects
from svcproxy.backends.ipvs.settings import IpvsSettings
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, TABLES
from svcproxy.backends.xtables.core.tableplan import TablePlan
from svcproxy.model.names import Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    RealServers,
    SetEntry,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import (
    CreateSet,
    DeleteRealServer,
    DeleteVirtualServer,
    Failure,
    SetRealServer,
)


class _Claims(NamedTuple):
    """What Service ports and draining virtual servers have in common, by how many need it."""

    addresses: Counter[str]
    entries: Counter[Entry]


class Planner:
    """Knows what the kernel holds after the last applied plan, and computes the next.

    Its memory is the finished Service ports themselves, from which their former meaning is
    computed again, what needs counting because several share it, and what the kernel refused.
    ``lingering`` are the virtual servers that nobody wants any more and that stay while one of
    their real servers drains.
    """

    def __init__(self, settings: IpvsSettings) -> None:
        self._settings = settings
        self._ports = Ports()
        self._claims = _Claims(Counter(), Counter())
        self._lingering: dict[VirtualServerKey, PortState] = {}
        self._sizes: Counter[str] = Counter()
        self._room: dict[str, int] = {}
        self._held: Counter[str] = Counter()
        self._overfull = False
        self._refused = Refused()

    @property
    def settings(self) -> IpvsSettings:
        """What the present state was made with."""
        return self._settings

    def lacks(self, schedulers: AbstractSet[str]) -> None:
        """Note schedulers that the kernel lacks: the default one has taken their place."""
        missing = self._settings.unavailable | schedulers
        self._settings = structs.replace(self._settings, unavailable=missing)

    @property
    def lingering(self) -> AbstractSet[VirtualServerKey]:
        """The virtual servers that are not wanted but still there."""
        return self._lingering.keys()

    @property
    def sizes(self) -> dict[str, int]:
        """How much the kernel holds, by kind."""
        held = dict(self._sizes)
        if self._refused:
            held["virtual_servers"] -= len(self._refused.servers)
            held["real_servers"] -= sum(map(len, self._refused.real.values()))
        return held

    @property
    def counts(self) -> Counter[str]:
        """How many set entries, by the names of the sets, and addresses there should be."""
        counts = +self._held
        counts["addresses"] = len(self._claims.addresses) - len(self._refused.addresses)
        counts.subtract(name for name, _ in self._refused.entries)
        return counts

    @property
    def ports(self) -> AbstractSet[ServicePortName]:
        """The Service ports."""
        return self._ports.names

    def layout(self, name: ServicePortName) -> PortState:
        """What a port needs at present; nothing if there is no such port."""
        return self._ports.layout(name, self._settings)

    def held(self, name: ServicePortName) -> Iterator[tuple[VirtualServerKey, ServerTarget]]:
        """Yield the virtual servers of a port without the objects that the kernel refused."""
        for key, (server, real) in self.layout(name).servers.items():
            if key not in self._refused.servers:
                yield key, (server, real - self._refused.missing(key))

    def is_refused(self, key: VirtualServerKey) -> bool:
        """Whether the kernel refused a virtual server or its desired properties."""
        return key in self._refused.servers

    # --- From scratch -------------------------------------------------------------------------

    def plan(self, desired: Desired, settings: IpvsSettings, observed: Observed) -> Plan:
        """Compare from scratch with what the kernel holds."""
        self._settings = settings
        self._ports = Ports()
        for name, port in desired.ports.items():
            self._ports.put(name, port)
        target = Target.of((self.layout(name) for name in self.ports), settings)
        self._claims = _Claims(target.addresses, target.entries)
        self._lingering = {}
        self._refused = Refused()
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
        concerned = self._ports.concerned(ports)
        old = [self.layout(name) for name in concerned]
        for name, port in ports.items():
            self._ports.put(name, port)
        new = [self.layout(name) for name in concerned]
        plan = Plan(tables={table: TablePlan() for table in TABLES})
        former, wanted = servers(old), servers(new)
        for key, target in wanted.items():
            known = former.get(key)
            steps = plan.node_ports if self._is_node_port(key) else plan.serve
            known_real = self._known_real(key, known)
            found = None if known is None or self.is_refused(key) else known[0]
            serve(steps, key, target, found, known_real)
            if known is not None:
                self._retire(plan, key, target[1], known_real)
            if key in self._lingering:
                old.append(self._lingering.pop(key))
        bound = {address for state in old for address in state.addresses}
        for key in former.keys() - wanted.keys():
            left = self._known_real(key, former[key])
            new.extend(self._dismiss(plan, key, left, bound=key.address in bound))
        self._refused.retried_servers(former.keys() | wanted.keys())
        self._claim(plan, old, new)
        self._edit_rules(plan, old, new)
        self._count(former, wanted)
        plan.ports, plan.former = concerned, former.keys()
        return None if self._overfull or self._refused.full else plan

    def _known_real(self, key: VirtualServerKey, known: ServerTarget | None) -> RealServers:
        """Return the real servers that a port had, without those that the kernel refused."""
        return dict.fromkeys(known[1] - self._refused.missing(key), 1) if known else {}

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
        self._held.update(name for name, _ in enter)
        # Until the old ones leave, there has to be room for both.
        self._overfull = any(self._held[name] > most for name, most in self._room.items())
        self._held.subtract(name for name, _ in leave)
        if self._refused:
            retry(self._refused.addresses, addresses.keys(), bind, unbind)
            retry(self._refused.entries, entries.keys(), enter, leave)
        plan.bind.extend(sorted(bind))
        plan.unbind.extend(a for a in sorted(unbind) if not self._settings.is_excluded(a))
        plan.enter.extend(sorted(enter))
        plan.leave.extend(sorted(leave))

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

    # --- What is refused ----------------------------------------------------------------------

    def note(
        self, plan: Plan, failures: Sequence[Failure]
    ) -> tuple[dict[ServicePortName, str], list[Failure]]:
        """Remember the objects of a plan that the kernel refused.

        The next ``plan_changes`` for one of their Service ports retries them.

        Returns:
            The incomplete Service ports with the reasons, and the failures that concern no single
            Service port.
        """
        reasons, rest = self._refused.note(failures, substitutes(plan.create_sets))
        if plan.compared:
            self._refused.full = False  # the set has just got its largest size
        concerned = self.ports if plan.compared else plan.ports
        refused, left = attributed(reasons, self._suspects(reasons, concerned))
        if left and not plan.compared:
            # Other ports need the same address or entry as one of the changed ports did.
            refused.update(attributed(left, self._suspects(left, self.ports))[0])
        return refused, rest

    def _suspects(
        self, items: Collection[Item], names: Iterable[ServicePortName]
    ) -> Iterator[tuple[ServicePortName, PortState]]:
        if items:
            for port in suspects(self._ports.get(names), items):
                yield port.name, self.layout(port.name)

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
