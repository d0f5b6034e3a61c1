"""For any sequence of events: incremental equals from scratch, and applying twice is empty.

The full semantics are driven: policies, topology, termination, affinity, source ranges,
conflicts, both families.
"""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.plan import Observed, Plan, Planner
from svcproxy.backends.iptables.settings import IptablesSettings
from svcproxy.backends.iptables.staging import STAGE_CHAINS, staged
from svcproxy.backends.iptables.static import LISTS
from svcproxy.backends.settings import LocalTraffic
from svcproxy.backends.xtables.ruleset import FILTER
from svcproxy.backends.xtables.savefile import Saved
from svcproxy.model.names import IPFamily, NamespacedName
from svcproxy.model.objects import EndpointSlice, Node, Service
from svcproxy.state.desired import DesiredState
from tests.fakes.restored_tables import RestoredTables
from tests.property.strategies import NODE, SYNC, events


class Machine:
    """One family's state, planner and kernel, driven by events as the sync loop would."""

    def __init__(self, options: IptablesSettings) -> None:
        self.options = options
        self.state = DesiredState(options.family, NODE)
        self.planner = Planner(options)
        self.kernel = RestoredTables()
        self.objects: dict[Any, Any] = {}
        self._full = True
        self.stage = STAGE_CHAINS

    def take(self, event: Any) -> None:
        if isinstance(event, Node):
            self.objects["node"] = event
        elif isinstance(event, Service | EndpointSlice):
            self.objects[type(event), event.name] = event
        elif event[0] == "node":
            self.objects.pop("node", None)
        else:
            kind = Service if event[0] == "service" else EndpointSlice
            self.objects.pop((kind, event[1]), None)
        feed(self.state, event)

    def observed(self) -> Observed:
        return Observed(self.kernel.saved(), frozenset(self.kernel.sets))

    def apply(self, plan: Plan) -> None:
        self.kernel.create_sets(plan.create_sets)
        for text in staged(plan, size=self.stage):
            self.kernel.restore(text)
        self.kernel.destroy_sets(plan.destroy_sets)

    def sync(self) -> None:
        changes = self.state.checkout()
        if self._full:
            desired = Desired(self.state.ports, self.state.node)
            plan = self.planner.plan(desired, self.options, self.observed())
            self._full = False
        else:
            plan = self.planner.plan_changes(changes.ports)
        self.apply(plan)
        assert plan.sizes == {t: ours(self.kernel.saved(), t) for t in plan.sizes}


def feed(state: DesiredState, event: Any) -> None:
    match event:
        case Service():
            state.update_service(event)
        case EndpointSlice():
            state.update_slice(event)
        case Node():
            state.update_node(event)
        case ("service", NamespacedName() as name):
            state.delete_service(name)
        case ("slice", NamespacedName() as name):
            state.delete_slice(name)
        case _:
            state.update_node(None)


def ours(saved: Saved, table: str) -> int:
    return sum(len(rules) for chain, rules in saved[table].items() if chain.startswith("KUBE-"))


def canonical(saved: Saved) -> Saved:
    """Lists of the filter table in one order: theirs has no meaning."""
    filters = {
        chain: tuple(sorted(rules)) if chain in LISTS else rules
        for chain, rules in saved[FILTER].items()
    }
    return {**saved, FILTER: filters}


settings_values = st.builds(
    IptablesSettings,
    family=st.sampled_from(list(IPFamily)),
    masquerade_all=st.booleans(),
    local_traffic=st.sampled_from(
        [LocalTraffic(), LocalTraffic(source="10.244.0.0/16"), LocalTraffic(interface="cni+")]
    ),
    node_address=st.sampled_from(["", "192.168.50.1"]),
    hairpin_match=st.booleans(),
    affinity_sets=st.booleans(),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(settings_values, events)
def test_incremental_equals_from_scratch(options: IptablesSettings, sequence: list[Any]) -> None:
    machine = Machine(options)
    for event in (*sequence, SYNC):
        if event == SYNC:
            machine.sync()
        else:
            machine.take(event)
    fresh = Machine(options)
    fresh.stage = 1
    for obj in machine.objects.values():
        fresh.take(obj)
    fresh.sync()
    assert machine.state.ports == fresh.state.ports
    assert canonical(machine.kernel.saved()) == canonical(fresh.kernel.saved())
    assert machine.kernel.sets == fresh.kernel.sets


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(settings_values, events)
def test_applying_twice_changes_nothing(options: IptablesSettings, sequence: list[Any]) -> None:
    machine = Machine(options)
    for event in (*sequence, SYNC):
        if event == SYNC:
            machine.sync()
        else:
            machine.take(event)
    desired = Desired(machine.state.ports, machine.state.node)
    again = Planner(options).plan(desired, options, machine.observed())
    assert not again
    assert not again.text()
    assert not machine.planner.plan_changes({})


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(settings_values, events, st.randoms(use_true_random=False))
def test_the_order_of_events_does_not_matter(
    options: IptablesSettings, sequence: list[Any], random: Any
) -> None:
    """What counts is the last state of each object, whenever it came."""
    machine = Machine(options)
    for event in sequence:
        if event != SYNC:
            machine.take(event)
    machine.sync()
    shuffled = list(machine.objects.values())
    random.shuffle(shuffled)
    other = Machine(options)
    for obj in shuffled:
        other.take(obj)
        if random.random() < 0.3:
            other.sync()
    other.sync()
    assert canonical(other.kernel.saved()) == canonical(machine.kernel.saved())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(settings_values, events, st.randoms(use_true_random=False))
def test_any_damage_is_repaired_by_a_comparison(
    options: IptablesSettings, sequence: list[Any], random: Any
) -> None:
    """Whatever others deleted or flushed, a comparison from scratch restores all of it."""
    machine = Machine(options)
    for event in (*sequence, SYNC):
        if event == SYNC:
            machine.sync()
        else:
            machine.take(event)
    whole = canonical(machine.kernel.saved())
    for held in machine.kernel.tables.values():
        for chain in held:
            if random.random() < 0.2:
                held[chain] = held[chain][: random.randrange(len(held[chain]) + 1)]
    desired = Desired(machine.state.ports, machine.state.node)
    plan = machine.planner.plan(desired, options, machine.observed())
    machine.apply(plan)
    repaired = canonical(machine.kernel.saved())
    for table, chains in whole.items():
        for chain, rules in chains.items():
            assert sorted(repaired[table][chain]) == sorted(rules)
