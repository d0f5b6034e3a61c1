"""For any sequence of events, incremental syncs and a sync from scratch give the same rules.

The events cover traffic policies, topology, termination, affinity, source ranges and conflicts, in
both families.
"""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svcproxy.backends.iptables.core.plan import Observed, Plan
from svcproxy.backends.iptables.core.planner import Planner
from svcproxy.backends.iptables.core.restore_inputs import CHUNK_CHAINS, restore_inputs
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.iptables.core.static import SHARED_CHAINS
from svcproxy.backends.settings import LocalTraffic
from svcproxy.backends.xtables.core.rule_text import FILTER
from svcproxy.backends.xtables.core.savefile import Saved
from svcproxy.model.names import IPFamily
from tests.examples import examples
from tests.fakes.restored_tables import RestoredTables
from tests.property.machines import Machine
from tests.property.strategies import SYNC, events


class Tables(Machine):
    """A machine whose kernel is a fake of iptables-restore."""

    def __init__(self, options: IptablesSettings) -> None:
        super().__init__(options, Planner(options), RestoredTables())
        self.stage = CHUNK_CHAINS

    def observed(self) -> Observed:
        return Observed(self.kernel.saved(), frozenset(self.kernel.sets))

    def apply(self, plan: Plan) -> None:
        self.kernel.create_sets(plan.create_sets)
        for text in restore_inputs(plan, size=self.stage):
            self.kernel.restore(text)
        self.kernel.destroy_sets(plan.destroy_sets)

    def applied(self, plan: Plan) -> None:
        assert plan.sizes == {t: own_rules(self.kernel.saved(), t) for t in plan.sizes}

    def contents(self) -> Any:
        return canonical(self.kernel.saved()), self.kernel.sets


def own_rules(saved: Saved, table: str) -> int:
    return sum(len(rules) for chain, rules in saved[table].items() if chain.startswith("KUBE-"))


def canonical(saved: Saved) -> Saved:
    """Sort the shared chains of the filter table, in which the order of rules does not matter."""
    filters = {
        chain: tuple(sorted(rules)) if chain in SHARED_CHAINS else rules
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


slow = [HealthCheck.too_slow]


@settings(max_examples=examples(200), deadline=None, suppress_health_check=slow)
@given(settings_values, events)
def test_incremental_equals_from_scratch(options: IptablesSettings, sequence: list[Any]) -> None:
    machine = Tables(options).take_all([*sequence, SYNC])
    fresh = Tables(options)
    fresh.stage = 1
    fresh.take_over(machine)
    assert machine.state.ports == fresh.state.ports
    assert machine.contents() == fresh.contents()


@settings(max_examples=examples(100), deadline=None, suppress_health_check=slow)
@given(settings_values, events)
def test_applying_twice_changes_nothing(options: IptablesSettings, sequence: list[Any]) -> None:
    machine = Tables(options).take_all([*sequence, SYNC])
    again = machine.compare(Planner(options))
    assert not again
    assert not again.text()
    assert not machine.planner.plan_changes({})


@settings(max_examples=examples(100), deadline=None, suppress_health_check=slow)
@given(settings_values, events, st.randoms(use_true_random=False))
def test_the_order_of_events_does_not_matter(
    options: IptablesSettings, sequence: list[Any], random: Any
) -> None:
    """Only the last state of each object counts, whenever it arrived."""
    machine = Tables(options).take_all([e for e in sequence if e != SYNC] + [SYNC])
    other = Tables(options).take_shuffled(machine, random)
    assert other.contents() == machine.contents()


@settings(max_examples=examples(60), deadline=None, suppress_health_check=slow)
@given(settings_values, events, st.randoms(use_true_random=False))
def test_any_damage_is_repaired_by_a_resync(
    options: IptablesSettings, sequence: list[Any], random: Any
) -> None:
    """A resync restores everything that other processes deleted or flushed."""
    machine = Tables(options).take_all([*sequence, SYNC])
    whole, _ = machine.contents()
    for held in machine.kernel.tables.values():
        for chain in held:
            if random.random() < 0.2:
                held[chain] = held[chain][: random.randrange(len(held[chain]) + 1)]
    machine.apply(machine.compare())
    repaired, _ = machine.contents()
    for table, chains in whole.items():
        for chain, rules in chains.items():
            assert sorted(repaired[table][chain]) == sorted(rules)
