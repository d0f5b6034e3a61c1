"""For any events, incremental changes equal a resync, and a second resync has nothing to do.

Connections begin and end at random, so real servers drain, are used again, and outlast restarts.
"""

from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.ipvs.core import chains_and_sets
from svcproxy.backends.ipvs.core.chains_and_sets import LISTS, SETS
from svcproxy.backends.ipvs.core.difference import Plan
from svcproxy.backends.ipvs.core.planner import Planner
from svcproxy.backends.ipvs.core.refusals import Results
from svcproxy.backends.ipvs.core.settings import IpvsSettings, KernelFacts
from svcproxy.backends.ipvs.kernel import execute
from svcproxy.backends.settings import LocalTraffic
from svcproxy.backends.xtables.core.rule_text import NAT
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.kernel_objects import RealServerKey, VirtualServerKey
from svcproxy.netlink.core.operations import CreateSet
from svcproxy.state.desired import DesiredState
from tests.examples import examples
from tests.fakes.ipvs_kernel import IpvsKernel
from tests.property.machines import feed
from tests.property.strategies import NODE, SYNC, events
from tests.property.test_iptables_incremental import Tables

ADDRESSES = {
    IPFamily.IPV4: ("192.168.50.1", "203.0.113.2"),
    IPFamily.IPV6: ("fd00:192:168:50::1", "fd00:203::1"),
}
SUBNETS = {IPFamily.IPV4: ("203.0.113.2/32",), IPFamily.IPV6: ("fd00:203::/64",)}


class Machine:
    """One family's state, planner and kernel, driven by events as the sync loop would."""

    def __init__(self, options: IpvsSettings, kernel: IpvsKernel | None = None) -> None:
        self.options = options
        self.state = DesiredState(options.family, NODE)
        self.kernel = kernel or IpvsKernel()
        self.now = 0.0
        self.start()

    def start(self) -> None:
        self.planner = Planner(self.options, 60)
        self._full = True

    def plan(self) -> Plan:
        desired = Desired(self.state.ports, self.options)
        return self.planner.plan(desired, self.options, self.kernel.observed())

    def apply(self, plan: Plan) -> None:
        results = self.execute(plan)
        assert not results.failures

    def execute(self, plan: Plan) -> Results:
        """Execute a plan as ``IpvsBackend.apply`` does."""
        self.planner.draining.apply(plan, self.now)
        results = execute(plan, self.kernel)
        results.failures += self.remove_drained(plan.leaving).failures
        return results

    def remove_drained(self, keys: Iterable[VirtualServerKey]) -> Results:
        connections = {key: self.kernel.connections(key) for key in keys}
        return execute(self.planner.plan_removals(connections, self.now), self.kernel)

    def sync(self) -> None:
        changes = self.state.checkout()
        plan = None if self._full else self.planner.plan_changes(changes.ports)
        self._full = False
        self.apply(self.plan() if plan is None else plan)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        assert not self.remove_drained(list(self.planner.draining.virtual_servers)).failures

    def counted(self) -> Counter[str]:
        kernel = self.kernel.observed()
        found = {name: len(entries) for name, (_, entries) in kernel.sets.items()}
        found["addresses"] = len(kernel.bound)
        return +Counter(found)

    def contents(self) -> Any:
        kernel = self.kernel.observed()
        tables = {
            table: {c: sorted(r) if c in LISTS[table] else r for c, r in chains.items()}
            for table, chains in kernel.tables.items()
        }
        return tables, kernel.servers, kernel.real, kernel.sets, kernel.bound


settings_values = st.builds(
    lambda family, **rest: IpvsSettings(
        family=family,
        facts=KernelFacts(addresses=ADDRESSES[family], subnets=SUBNETS[family]),
        **rest,
    ),
    family=st.sampled_from(list(IPFamily)),
    masquerade_all=st.booleans(),
    local_traffic=st.sampled_from(
        [LocalTraffic(), LocalTraffic(source="10.244.0.0/16"), LocalTraffic(interface="cni+")]
    ),
    node_address=st.sampled_from(["", "192.168.50.1"]),
)

COMMON = settings(
    max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
BUSY = "busy"
traffic = st.lists(
    st.tuples(
        st.just(BUSY), st.sets(st.integers(1, 30), max_size=8), st.sampled_from([8080, 8081])
    ),
    max_size=6,
)


def scene(events: list[Any], traffic: list[Any], seed: int) -> list[Any]:
    """Mix changes of the open connections into the events."""
    mixed = list(events)
    random = Random(seed)
    for moment in traffic:
        mixed.insert(random.randint(0, len(mixed)), moment)
    return [*mixed, SYNC]


def play(machine: Machine, sequence: list[Any]) -> None:
    prefix = "10.244.0." if machine.options.family is IPFamily.IPV4 else "fd00:10:244::"
    for event in sequence:
        if event == SYNC:
            machine.sync()
        elif isinstance(event, tuple) and event[0] == BUSY:
            machine.kernel.busy = {
                RealServerKey(f"{prefix}{number}", event[2]) for number in event[1]
            }
            machine.wait(7)
        else:
            feed(machine.state, event)


@COMMON
@given(settings_values, events, traffic, st.integers())
def test_incremental_equals_from_scratch(
    options: IpvsSettings, events: list[Any], traffic: list[Any], seed: int
) -> None:
    machine = Machine(options)
    play(machine, scene(events, traffic, seed))
    assert machine.planner.counts == machine.counted()
    assert not machine.plan(), "a resync finds a difference"
    machine.kernel.busy = set()
    machine.wait(61)
    fresh = Machine(options)
    fresh.state = deepcopy(machine.state)
    fresh.sync()
    assert machine.contents() == fresh.contents()
    assert machine.planner.sizes == fresh.planner.sizes
    assert machine.planner.draining.next_check() is None


@COMMON
@given(settings_values, events, traffic, st.integers())
def test_a_restart_finds_draining_servers(
    options: IpvsSettings, events: list[Any], traffic: list[Any], seed: int
) -> None:
    machine = Machine(options)
    play(machine, scene(events, traffic, seed))
    before, draining = machine.contents(), set(machine.planner.draining.virtual_servers)
    machine.start()
    machine.sync()
    assert machine.contents() == before
    assert set(machine.planner.draining.virtual_servers) == draining
    machine.kernel.busy = set()
    machine.wait(1)
    fresh = Machine(options)
    fresh.state = machine.state
    fresh.sync()
    assert machine.contents() == fresh.contents()


@COMMON
@given(settings_values, events, st.integers(1, 5))
def test_sets_grow_before_they_are_full(
    options: IpvsSettings, events: list[Any], maximum: int
) -> None:
    small = IpvsKernel()
    for name, kind in SETS[options.family].kinds.items():
        small.change_sets([CreateSet(name, kind._replace(maximum=kind.maximum and maximum))])
    machine = Machine(options, small)
    machine.sync()
    play(machine, [*events, SYNC])
    machine.wait(61)
    fresh = Machine(options)
    fresh.state = deepcopy(machine.state)
    fresh.sync()
    entries, expected = (
        {name: found for name, (_, found) in each.kernel.observed().sets.items()}
        for each in (machine, fresh)
    )
    assert entries == expected
    assert not machine.plan()


@COMMON
@given(settings_values, events, st.randoms(use_true_random=False))
def test_damage_is_repaired(options: IpvsSettings, events: list[Any], random: Random) -> None:
    machine = Machine(options)
    play(machine, [*events, SYNC])
    machine.wait(61)
    before = machine.contents()
    damage(machine, random)
    machine.apply(machine.plan())
    assert machine.contents() == before
    assert not machine.plan()


class TakingOver(IpvsKernel):
    """A kernel that checks that the rules of iptables mode serve until IPVS does."""

    def __init__(self, former: Tables, wanted: IpvsKernel) -> None:
        super().__init__()
        self.tables = deepcopy(former.kernel)
        self._dispatch = list(self.tables.tables[NAT][chains_and_sets.SERVICES])
        self._wanted = wanted
        self.took_over = False

    def restore(self, text: str) -> None:
        super().restore(text)
        if self.tables.tables[NAT][chains_and_sets.SERVICES] != self._dispatch:
            assert self.bound == self._wanted.bound
            assert self.real == self._wanted.real
            self.took_over = True


@COMMON
@given(settings_values, events)
def test_taking_over_from_iptables_mode(options: IpvsSettings, events: list[Any]) -> None:
    former, fresh = Tables(IptablesSettings(family=options.family)), Machine(options)
    for event in events:
        if event != SYNC:
            former.take(event)
            feed(fresh.state, event)
    former.sync()
    fresh.sync()
    kernel = TakingOver(former, fresh.kernel)
    machine = Machine(options, kernel)
    machine.state = fresh.state
    machine.sync()
    assert kernel.took_over
    assert not machine.plan(), "a resync finds a difference"


def damage(machine: Machine, random: Random) -> None:
    kernel = machine.kernel
    for key in random.sample(sorted(kernel.servers), k=min(2, len(kernel.servers))):
        match random.randrange(4):
            case 0:
                del kernel.servers[key], kernel.real[key]
            case 1:
                kernel.real[key] = dict.fromkeys(kernel.real[key], 0)
            case 2:
                kernel.real[key][RealServerKey("192.0.2.1", 1)] = 1
            case _:
                kernel.real[key].clear()
    damage_sets(machine, random)
    if kernel.bound:
        kernel.bound.discard(random.choice(sorted(kernel.bound)))
    for table, chains in kernel.tables.tables.items():
        for chain in random.sample(sorted(chains), k=3):
            assert table in LISTS
            chains[chain].clear()


def damage_sets(machine: Machine, random: Random) -> None:
    sets, kinds = machine.kernel.sets, SETS[machine.options.family].kinds
    for name in random.sample(sorted(kinds), k=5):
        entries = sets[name][1]
        for entry in random.sample(sorted(entries), k=min(1, len(entries))):
            entries.discard(entry)
    made_otherwise = random.choice(sorted(kinds))
    sets[made_otherwise] = kinds[made_otherwise]._replace(type=""), set()
