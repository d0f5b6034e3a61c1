"""What ``svcproxy diff`` says about rules is what a resync would repair, port by port."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.core.render import render
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.explain.core.differences import Difference, DifferenceKind
from svcproxy.explain.core.iptables_differences import differences, rules_in_shared_chains
from svcproxy.model.names import ServicePortName
from tests.examples import examples
from tests.property.strategies import SYNC, events
from tests.property.test_iptables_incremental import Tables, settings_values

slow = [HealthCheck.too_slow]


def found_in(machine: Tables) -> list[Difference]:
    desired = Desired(machine.state.ports, machine.options)
    return differences(desired, machine.options, machine.observed())


def named(found: list[Difference]) -> set[ServicePortName]:
    return {name for difference in found for name in difference.service_ports}


def damage(machine: Tables, random: Any) -> None:
    for held in machine.kernel.tables.values():
        for chain in list(held):
            choice = random.random()
            if choice < 0.1:
                held[chain] = held[chain][: random.randrange(len(held[chain]) + 1)]
            elif choice < 0.15 and held[chain]:
                held[chain].append(random.choice(held[chain]))
            elif choice < 0.2:
                held[chain].insert(0, "-s 192.0.2.1/32 -j DROP")
            elif choice < 0.22 and chain.startswith("KUBE-"):
                del held[chain]
    for name in list(machine.kernel.sets):
        if random.random() < 0.1:
            machine.kernel.sets.discard(name)


@settings(max_examples=examples(100), deadline=None, suppress_health_check=slow)
@given(settings_values, events, st.randoms(use_true_random=False))
def test_there_is_a_difference_exactly_if_a_resync_repairs_something(
    options: IptablesSettings, sequence: list[Any], random: Any
) -> None:
    machine = Tables(options).take_all([*sequence, SYNC])
    assert not found_in(machine)
    damage(machine, random)
    found = found_in(machine)
    assert bool(found) == bool(machine.compare())
    for difference in found:
        if not difference.object.startswith("ipset"):
            assert difference.desired != difference.actual
        assert not (difference.actual and difference.kind is DifferenceKind.MISSING)
        assert not (difference.desired and difference.kind is DifferenceKind.UNEXPECTED)


@settings(max_examples=examples(100), deadline=None, suppress_health_check=slow)
@given(settings_values, events, st.randoms(use_true_random=False))
def test_exactly_the_damaged_service_ports_are_named(
    options: IptablesSettings, sequence: list[Any], random: Any
) -> None:
    """A deleted chain or rule of a Service port names this one alone."""
    machine = Tables(options).take_all([*sequence, SYNC])
    chains: dict[str, ServicePortName] = {}
    rules: dict[str, ServicePortName] = {}
    for name, port in machine.state.ports.items():
        made = render(port, options)
        chains |= dict.fromkeys(made.chains, name)
        rules |= dict.fromkeys(rules_in_shared_chains(made), name)
    expected: set[ServicePortName] = set()
    for held in machine.kernel.tables.values():
        for chain, present in held.items():
            if chain in chains and present and random.random() < 0.2:
                held[chain] = present[:-1]
                expected.add(chains[chain])
            for text in list(present) if chain not in chains else ():
                if text in rules and random.random() < 0.2:
                    present.remove(text)
                    expected.add(rules[text])
    assert named(found_in(machine)) == expected


@settings(max_examples=examples(30), deadline=None, suppress_health_check=slow)
@given(settings_values, events)
def test_flushed_tables_name_every_service_port_with_rules(
    options: IptablesSettings, sequence: list[Any]
) -> None:
    machine = Tables(options).take_all([*sequence, SYNC])
    for held in machine.kernel.tables.values():
        for chain in held:
            held[chain] = []
    assert named(found_in(machine)) == {
        name
        for name, port in machine.state.ports.items()
        if (made := render(port, options)).chains or list(rules_in_shared_chains(made))
    }
