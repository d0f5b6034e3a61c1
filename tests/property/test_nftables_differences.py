"""What ``svcproxy diff`` says about a table is what a comparison would repair, port by port."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svcproxy.backends.base import Desired
from svcproxy.backends.nftables.core.render import endpoint_elements, hairpin_key, render
from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.backends.nftables.core.table_sets import CLUSTER_ADDRESSES, HAIRPINS
from svcproxy.explain.core import differences as core
from svcproxy.explain.core.differences import Difference, DifferenceKind
from svcproxy.explain.core.nft_differences import differences
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort
from tests.examples import examples
from tests.property.test_nftables_incremental import (
    Table,
    damage,
    histories,
    run,
    settings_values,
)

slow = [HealthCheck.too_slow]


def found_in(machine: Table) -> list[Difference]:
    desired = Desired(machine.state.ports, machine.options)
    return differences(desired, machine.options, machine.observed())


def named(found: list[Difference]) -> set[ServicePortName]:
    return {name for difference in found for name in difference.service_ports}


def needs(port: ServicePort, machine: Table, where: str, key: bytes) -> bool:
    rendered = render(port, machine.options)
    if where == CLUSTER_ADDRESSES:
        return key in rendered.cluster_addresses
    if where == HAIRPINS:
        return key in set(map(hairpin_key, rendered.hairpins))
    return key in rendered.elements.get(where, {}) or any(
        key in endpoint_elements(place, listed, range(len(listed.endpoints)))
        for place, listed in rendered.lists.items()
        if place[0] == where
    )


@settings(max_examples=examples(100), deadline=None, suppress_health_check=slow)
@given(settings_values, histories(), st.randoms(use_true_random=False))
def test_there_is_a_difference_exactly_if_a_comparison_repairs_something(
    options: NftablesSettings, sequence: list[Any], random: Any
) -> None:
    machine = run(options, sequence)
    assert not found_in(machine)
    damage(machine.kernel, random)
    found = found_in(machine)
    assert bool(found) == bool(machine.compare())
    for difference in found:
        assert difference.desired != difference.actual
        assert not (difference.actual and difference.kind is DifferenceKind.MISSING)
        assert not (difference.desired and difference.kind is DifferenceKind.UNEXPECTED)
    machine.apply(machine.compare())
    assert not found_in(machine)


@settings(max_examples=examples(100), deadline=None, suppress_health_check=slow)
@given(settings_values, histories(), st.randoms(use_true_random=False), st.sampled_from([20, 0]))
def test_exactly_the_damaged_service_ports_are_named(
    options: NftablesSettings, sequence: list[Any], random: Any, listed: int
) -> None:
    machine = run(options, sequence)
    expected: set[ServicePortName] = set()
    for where, held in machine.kernel.table.sets.items():
        for key in [k for k in held.elements if random.random() < 0.15]:
            del held.elements[key]
            ports = machine.planner.ports.items()
            expected |= {name for name, port in ports if needs(port, machine, where, key)}
    before, core.LISTED = core.LISTED, listed
    try:
        assert named(found_in(machine)) == expected
    finally:
        core.LISTED = before


@settings(max_examples=examples(30), deadline=None, suppress_health_check=slow)
@given(settings_values, histories())
def test_a_missing_table_is_one_difference(options: NftablesSettings, sequence: list[Any]) -> None:
    machine = run(options, sequence)
    machine.kernel.tables.clear()
    (found,) = found_in(machine)
    assert str(found) == "table svcproxy: missing"
    assert set(found.service_ports) == set(machine.state.ports)
