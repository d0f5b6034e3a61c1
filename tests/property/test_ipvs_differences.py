"""What ``svcproxy diff`` says in IPVS mode is what a resync would repair, port by port."""

from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.backends.base import Desired
from svcproxy.backends.ipvs.core.planner import Planner
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.explain.core.differences import Difference, DifferenceKind
from svcproxy.explain.core.ipvs_differences import differences
from svcproxy.model.names import ServicePortName
from tests.property.strategies import SYNC, events
from tests.property.test_ipvs_incremental import (
    COMMON,
    Machine,
    damage,
    play,
    scene,
    settings_values,
    traffic,
)


def found_in(machine: Machine) -> list[Difference]:
    desired = Desired(machine.state.ports, machine.options)
    return differences(desired, machine.options, machine.kernel.observed())


def named(found: list[Difference]) -> set[ServicePortName]:
    return {name for difference in found for name in difference.service_ports}


@COMMON
@given(settings_values, events, traffic, st.integers())
def test_draining_servers_are_no_difference(
    options: IpvsSettings, events: list[Any], traffic: list[Any], seed: int
) -> None:
    machine = Machine(options)
    play(machine, scene(events, traffic, seed))
    assert not found_in(machine)


@COMMON
@given(settings_values, events, st.randoms(use_true_random=False))
def test_there_is_a_difference_exactly_if_a_resync_repairs_something(
    options: IpvsSettings, events: list[Any], random: Random
) -> None:
    machine = Machine(options)
    play(machine, [*events, SYNC])
    machine.wait(61)
    damage(machine, random)
    found = found_in(machine)
    assert bool(found) == bool(machine.plan())
    for difference in found:
        assert not (difference.actual and difference.kind is DifferenceKind.MISSING)
        assert not (difference.desired and difference.kind is DifferenceKind.UNEXPECTED)
        if not difference.object.startswith(("ipset", "chain")):
            assert difference.desired != difference.actual


@COMMON
@given(settings_values, events, st.randoms(use_true_random=False))
def test_exactly_the_damaged_service_ports_are_named(
    options: IpvsSettings, events: list[Any], random: Random
) -> None:
    machine = Machine(options)
    play(machine, [*events, SYNC])
    machine.wait(61)
    planner, kernel = Planner(options), machine.kernel
    desired = Desired(machine.state.ports, options)
    assert not planner.plan(desired, options, kernel.observed())
    states = {name: planner.state(name) for name in planner.ports}
    expected: set[ServicePortName] = set()
    for key in [key for key in kernel.servers if random.random() < 0.2]:
        del kernel.servers[key], kernel.real[key]
        expected |= {name for name, state in states.items() if key in state.servers}
    for key, real in kernel.real.items():
        for each in [each for each in real if random.random() < 0.1]:
            del real[each]
            expected |= {name for name, state in states.items() if key in state.servers}
    for set_name, (_, entries) in kernel.sets.items():
        for entry in [entry for entry in sorted(entries) if random.random() < 0.1]:
            entries.discard(entry)
            needed = (set_name, entry)
            expected |= {name for name, state in states.items() if needed in state.entries}
    for address in [address for address in sorted(kernel.bound) if random.random() < 0.2]:
        kernel.bound.discard(address)
        expected |= {name for name, state in states.items() if address in state.addresses}
    for chains in kernel.tables.tables.values():
        for chain in [chain for chain in chains if chains[chain] and random.random() < 0.1]:
            lost = chains[chain].pop()
            expected |= {
                name
                for name, state in states.items()
                if chain in state.chains or any(lost == text for _, _, text in state.rules)
            }
    assert named(found_in(machine)) == expected
