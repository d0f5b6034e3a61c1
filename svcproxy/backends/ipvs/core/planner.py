"""From the desired state to plans: by a comparison of everything, or for changed Service ports."""

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from msgspec import structs

from svcproxy.backends.base import Desired
from svcproxy.backends.ipvs.core.chains_and_sets import SETS, substituted
from svcproxy.backends.ipvs.core.difference import (
    Observed,
    Plan,
    SharedObjects,
    Target,
    compare_table,
    edit_tables,
    servers_of,
    split_hand_over,
    update_server,
)
from svcproxy.backends.ipvs.core.draining import Draining, drain
from svcproxy.backends.ipvs.core.port_state import (
    EMPTY,
    Entry,
    PortState,
    ServerTarget,
    port_state,
    ports_taken,
)
from svcproxy.backends.ipvs.core.refusals import Item, Refusals, Results, attributed, suspects
from svcproxy.backends.ipvs.core.settings import IpvsSettings, annotation_problems
from svcproxy.backends.xtables.core.rule_text import NAT, TABLES
from svcproxy.backends.xtables.core.tableplan import TablePlan
from svcproxy.model.names import NamespacedName, Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.kernel_objects import (
    Connections,
    RealServerKey,
    RealServers,
    SetEntry,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import (
    DeleteRealServer,
    DeleteVirtualServer,
    Failure,
    ServerOperation,
)

_FEW_PORTS = 8
"""If a Service has more ports, the set of its port numbers is cached: it may have 20,000 ports."""


class ServicePorts:
    """The Service ports of the last plan, with the other ports of the same Service."""

    def __init__(self) -> None:
        self._ports: dict[ServicePortName, ServicePort] = {}
        self._names: dict[NamespacedName, set[ServicePortName]] = {}
        self._taken: dict[NamespacedName, Mapping[Protocol, AbstractSet[int]]] = {}

    @property
    def names(self) -> AbstractSet[ServicePortName]:
        """The names of all Service ports."""
        return self._ports.keys()

    def get(self, names: Iterable[ServicePortName]) -> list[ServicePort]:
        """Return the Service ports with these names; unknown names are skipped."""
        return [self._ports[name] for name in names if name in self._ports]

    def put(self, name: ServicePortName, port: ServicePort | None) -> None:
        """Set the present value of a Service port; ``None`` if it was deleted."""
        self._taken.pop(name.service, None)
        if port is not None:
            self._ports[name] = port
            self._names.setdefault(name.service, set()).add(name)
            return
        self._ports.pop(name, None)
        names = self._names.get(name.service, set())
        names.discard(name)
        if not names:
            self._names.pop(name.service, None)

    def concerned(
        self, changed: Mapping[ServicePortName, ServicePort | None]
    ) -> list[ServicePortName]:
        """Return changed ports and their Services' other ports, whose hidden ports may change."""
        found = dict.fromkeys(changed)
        for service in {name.service for name in changed}:
            found.update(dict.fromkeys(self._names.get(service, ())))
        return list(found)

    def state(self, name: ServicePortName, settings: IpvsSettings) -> PortState:
        """Return the kernel objects that a port needs; none if there is no such port."""
        port = self._ports.get(name)
        return port_state(port, settings, self._ports_taken(name)) if port else EMPTY

    def _ports_taken(self, name: ServicePortName) -> AbstractSet[int]:
        siblings = self._names.get(name.service, set())
        if len(siblings) < 2:
            return frozenset()
        taken = self._taken.get(name.service)
        if taken is None:
            taken = ports_taken(self._ports[n] for n in siblings)
            if len(siblings) > _FEW_PORTS:
                self._taken[name.service] = taken
        return taken[name.protocol]


class Planner:
    """Computes plans, and remembers what the kernel holds after the last one.

    Its memory consists of the Service ports, from which their kernel objects are computed again,
    the objects that several of them share, the draining servers, and the refused objects.

    Args:
        settings: the settings.
        drain_limit: the seconds after which a draining real server is deleted even if it has
            connections; 0 for no limit.

    Attributes:
        draining: the draining servers.
    """

    def __init__(self, settings: IpvsSettings, drain_limit: float = 0.0) -> None:
        self._settings = settings
        self._ports = ServicePorts()
        self._shared = SharedObjects()
        self._refusals = Refusals()
        self._sizes: Counter[str] = Counter()
        self.draining = Draining(drain_limit)

    @property
    def settings(self) -> IpvsSettings:
        """The settings of the last plan."""
        return self._settings

    @property
    def sizes(self) -> dict[str, int]:
        """How many objects the kernel holds, by kind."""
        held = dict(self._sizes)
        if self._refusals:
            held["virtual_servers"] -= len(self._refusals.servers)
            held["real_servers"] -= sum(map(len, self._refusals.real.values()))
        return held

    @property
    def counts(self) -> Counter[str]:
        """How many entries each set has, and how many ``addresses`` are bound."""
        return self._shared.counts(self._refusals)

    @property
    def ports(self) -> AbstractSet[ServicePortName]:
        """The names of the Service ports."""
        return self._ports.names

    def state(self, name: ServicePortName) -> PortState:
        """Return the kernel objects that a port needs; none if there is no such port."""
        return self._ports.state(name, self._settings)

    def held(self, name: ServicePortName) -> Iterator[tuple[VirtualServerKey, ServerTarget]]:
        """Yield the virtual servers of a port without the objects that the kernel refused."""
        for key, (server, real) in self.state(name).servers.items():
            if key not in self._refusals.servers:
                yield key, (server, real - self._refusals.missing(key))

    def is_refused(self, key: VirtualServerKey) -> bool:
        """Whether the kernel refused a virtual server or its desired properties."""
        return key in self._refusals.servers

    # --- Resync -------------------------------------------------------------------------------

    def plan(self, desired: Desired, settings: IpvsSettings, observed: Observed) -> Plan:
        """Compare the desired state with everything that the kernel holds."""
        self._settings = settings
        self._ports = ServicePorts()
        for name, port in desired.ports.items():
            self._ports.put(name, port)
        target = Target.of((self.state(name) for name in self.ports), settings)
        self._shared = SharedObjects(target.addresses, target.entries)
        self.draining.lingering = {}
        self._refusals = Refusals()
        plan = Plan(is_resync=True, fallback=settings.scheduling)
        plan.annotation_problems = annotation_problems(
            desired.ports.values(), settings.scheduling.name
        )
        self._compare_servers(plan, target.servers, observed)
        self._shared.compare(plan, observed, settings)
        for table in TABLES:
            chains, found = target.tables[table], observed.tables.get(table, {})
            plan.tables[table] = compare_table(table, chains, found)
            if table == NAT:
                plan.hand_over = split_hand_over(plan.tables[NAT], chains, found)
            self._sizes[f"{table}_rules"] = sum(map(len, chains.values()))
        self._sizes["virtual_servers"] = len(target.servers)
        self._sizes["real_servers"] = sum(len(real) for _, real in target.servers.values())
        return plan

    def _compare_servers(
        self, plan: Plan, wanted: Mapping[VirtualServerKey, ServerTarget], observed: Observed
    ) -> None:
        for key, target in wanted.items():
            found = observed.servers.get(key)
            found_real = observed.real.get(key, {})
            update_server(self._steps(plan, key), key, target, found, found_real)
            if found is not None:
                drain(plan, key, target[1], found_real)
        for key in observed.servers.keys() - wanted.keys():
            if self._is_ours(key, observed.bound, observed.holds):
                found_real = observed.real.get(key, {})
                bound = key.address in observed.bound
                for state in self._remove_server(plan, key, found_real, bound=bound):
                    self._shared.add(state)

    def _steps(self, plan: Plan, key: VirtualServerKey) -> list[ServerOperation]:
        """Return the part of a plan that updates a virtual server."""
        is_node_port = key.address in self._settings.facts.addresses
        return plan.node_ports if is_node_port else plan.serve

    def owns(self, key: VirtualServerKey) -> bool:
        """Whether a resync would treat a virtual server as svcproxy's, needed or not."""
        shared = self._shared
        return self._is_ours(key, shared.addresses, shared.entries.__contains__)

    def _is_ours(
        self,
        key: VirtualServerKey,
        bound: Container[str],
        holds: Callable[[Entry], bool],
    ) -> bool:
        """Whether a virtual server without a Service port was created for one.

        IPVS does not record which program created a virtual server. One at an address on
        ``kube-ipvs0`` is svcproxy's, and so is one at a port in a set of node ports.
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

    # --- Changed Service ports ----------------------------------------------------------------

    def plan_changes(self, ports: Mapping[ServicePortName, ServicePort | None]) -> Plan | None:
        """Compute the difference that changed Service ports make.

        Returns:
            The plan, or ``None`` if a set lacks capacity: a resync then creates a larger one.
        """
        concerned = self._ports.concerned(ports)
        old = [self.state(name) for name in concerned]
        for name, port in ports.items():
            self._ports.put(name, port)
        new = [self.state(name) for name in concerned]
        plan = Plan(
            tables={table: TablePlan() for table in TABLES},
            fallback=self._settings.scheduling,
            annotation_problems=annotation_problems(ports.values(), self._settings.scheduling.name),
        )
        former, wanted = servers_of(old), servers_of(new)
        self._change_servers(plan, former, wanted, old)
        bound = {address for state in old for address in state.addresses}
        for key in former.keys() - wanted.keys():
            left = self._known_real(key, former[key])
            new.extend(self._remove_server(plan, key, left, bound=key.address in bound))
        self._refusals.forget_servers(former.keys() | wanted.keys())
        fit = self._shared.change(plan, old, new, self._refusals, self._settings)
        for table, growth in edit_tables(plan.tables, old, new).items():
            self._sizes[f"{table}_rules"] += growth
        self._count(former, wanted)
        plan.ports, plan.former = concerned, former.keys()
        return plan if fit and not self._refusals.full else None

    def _change_servers(
        self,
        plan: Plan,
        former: Mapping[VirtualServerKey, ServerTarget],
        wanted: Mapping[VirtualServerKey, ServerTarget],
        old: list[PortState],
    ) -> None:
        """Plan the changes to needed virtual servers; add lingering ones among them to ``old``."""
        for key, target in wanted.items():
            known = former.get(key)
            known_real = self._known_real(key, known)
            found = None if known is None or self.is_refused(key) else known[0]
            update_server(self._steps(plan, key), key, target, found, known_real)
            if known is not None:
                drain(plan, key, target[1], known_real)
            if key in self.draining.lingering:
                old.append(self.draining.lingering.pop(key))

    def _known_real(self, key: VirtualServerKey, known: ServerTarget | None) -> RealServers:
        """Return the real servers that a port had, without those that the kernel refused."""
        return dict.fromkeys(known[1] - self._refusals.missing(key), 1) if known else {}

    def _count(
        self,
        old: Mapping[VirtualServerKey, ServerTarget],
        new: Mapping[VirtualServerKey, ServerTarget],
    ) -> None:
        self._sizes["virtual_servers"] += len(new) - len(old)
        self._sizes["real_servers"] += sum(len(real) for _, real in new.values())
        self._sizes["real_servers"] -= sum(len(real) for _, real in old.values())

    def record(
        self, plan: Plan, results: Results
    ) -> tuple[dict[ServicePortName, str], list[Failure]]:
        """Record the results of an executed plan.

        The next ``plan_changes`` for a Service port with refused objects retries these.

        Returns:
            The incomplete Service ports with the reasons, and the failures that concern no single
            Service port.
        """
        if results.rescheduled:
            facts = self._settings.facts
            missing = facts.missing_schedulers.union(
                operation.server.scheduler for operation in results.rescheduled
            )
            facts = structs.replace(facts, missing_schedulers=missing)
            self._settings = structs.replace(self._settings, facts=facts)
        reasons, rest = self._refusals.record(results.failures, substituted(plan.create_sets))
        if plan.is_resync:
            self._refusals.full = False  # the resync created the set with its final capacity
        concerned = self.ports if plan.is_resync else plan.ports
        refused, left = attributed(reasons, self._suspects(reasons, concerned))
        if left and not plan.is_resync:
            # Other ports need the same address or entry as one of the changed ports did.
            refused.update(attributed(left, self._suspects(left, self.ports))[0])
        return refused, rest

    def _suspects(
        self, items: Collection[Item], names: Iterable[ServicePortName]
    ) -> Iterator[tuple[ServicePortName, PortState]]:
        if items:
            for port in suspects(self._ports.get(names), items):
                yield port.name, self.state(port.name)

    def plan_removals(
        self,
        connections: Mapping[VirtualServerKey, Mapping[RealServerKey, Connections]],
        now: float,
    ) -> Plan:
        """Plan the removal of real servers that have drained, and of their virtual servers.

        Args:
            connections: the connections of the real servers of draining virtual servers.
            now: seconds of the monotonic clock.
        """
        plan, servers = Plan(), list[ServerOperation]()
        for key, found in connections.items():
            closing = not self._blocks_address(key)
            finished = self.draining.finished(key, found, now, closing=closing)
            self.draining.remove(key, finished)
            if key in self.draining.lingering and not self.draining.real_servers(key):
                servers.append(DeleteVirtualServer(key))
                state = self.draining.lingering.pop(key)
                self._shared.change(plan, [state], [], self._refusals, self._settings)
            else:
                plan.delete.extend(DeleteRealServer(key, real) for real in finished)
        plan.delete += servers
        return plan

    def _remove_server(
        self, plan: Plan, key: VirtualServerKey, found: RealServers, *, bound: bool
    ) -> Iterable[PortState]:
        """Plan the removal of a virtual server; with TCP, when its real servers have drained.

        Returns:
            The objects that the virtual server needs until it is deleted.
        """
        if key.protocol is not Protocol.TCP or not found:
            plan.delete.append(DeleteVirtualServer(key))
            return ()
        drain(plan, key, frozenset(), found)
        # Keep its address, and the set entry by which a fresh process recognizes it as svcproxy's.
        sets = SETS[self._settings.family]
        kept = (sets.bound, SetEntry(key.address)) if bound else self._node_port_entry(key)
        addresses = frozenset((key.address,)) if bound else frozenset[str]()
        state = PortState({}, addresses, frozenset((kept,)), {}, frozenset())
        self.draining.lingering[key] = state
        return (state,)

    def _blocks_address(self, key: VirtualServerKey) -> bool:
        """Whether a lingering virtual server keeps its address and port from another owner.

        It does unless a Service port without endpoints has them. It then does not wait for
        connections in TIME_WAIT, which last for minutes.
        """
        if key not in self.draining.lingering:
            return False
        sets, entry = SETS[self._settings.family], SetEntry(key.address, key.protocol, key.port)
        return not any((name, entry) in self._shared.entries for name in (sets.reject, sets.drop))
