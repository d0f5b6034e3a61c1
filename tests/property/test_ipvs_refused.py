"""Objects that the kernel refuses are retried for their Service port and affect no other one."""

from copy import deepcopy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.backends.ipvs.core.difference import Plan
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.model.names import ServicePortName
from tests.fakes.ipvs_kernel import PickyKernel
from tests.property.strategies import events
from tests.property.test_ipvs_incremental import (
    COMMON,
    Machine,
    play,
    scene,
    settings_values,
    traffic,
)

NODE_ADDRESSES = ("192.168.50.1", "fd00:192:168:50::1")
"""Addresses whose virtual servers are refused, and nothing else at them."""
VIPS = (
    *("203.0.113.1", "203.0.113.2", "fd00:203::1", *NODE_ADDRESSES),
    *(address for n in range(6) for address in (f"10.96.0.{n}", f"fd00:10:96::{n}")),
)
PODS = tuple(a for n in range(1, 31) for a in (f"10.244.0.{n}", f"fd00:10:244::{n}"))
refusing = st.sets(st.sampled_from([*VIPS, *PODS]), max_size=12)


class PickyMachine(Machine):
    """A machine that retries as the sync loop does: ``held`` are the Service ports to retry."""

    def __init__(self, options: IpvsSettings, refusing: set[str]) -> None:
        self.picky = PickyKernel(refusing)
        super().__init__(options, self.picky)
        self.held: dict[ServicePortName, str] = {}
        self.written = 0

    def apply(self, plan: Plan) -> None:
        results = self.execute(plan)
        refused, rest = self.planner.record(plan, results)
        assert not rest
        assert all(refused.values())
        assert min(results.operations.values(), default=0) >= 0
        self.written = sum(results.operations.values())
        if plan.is_resync:
            self.held.clear()
        for name in plan.ports:
            self.held.pop(name, None)
        self.held.update(refused)

    def retry(self) -> None:
        changes = {name: self.state.ports.get(name) for name in self.held}
        plan = self.planner.plan_changes(changes)
        assert plan is not None
        self.apply(plan)


@COMMON
@given(settings_values, events, traffic, st.integers(), refusing)
def test_all_else_is_served_and_refused_objects_are_retried(
    options: IpvsSettings, events: list[Any], traffic: list[Any], seed: int, refusing: set[str]
) -> None:
    machine = PickyMachine(options, refusing)
    play(machine, scene(events, traffic, seed))
    machine.kernel.busy = set()
    machine.wait(61)
    fresh = PickyMachine(options, refusing)
    fresh.state = deepcopy(machine.state)
    fresh.sync()
    assert machine.contents() == fresh.contents()
    assert machine.planner.counts == machine.counted()
    assert machine.planner.sizes == fresh.planner.sizes
    assert machine.held.keys() <= fresh.held.keys()
    machine.retry()
    assert not machine.written, "a refused retry is counted as a change"
    machine.picky.refusing = frozenset()
    machine.retry()
    assert not machine.held
    assert not machine.plan(), "a resync finds a difference"


@COMMON
@given(settings_values, events, refusing)
def test_the_audit_expects_what_the_kernel_holds(
    options: IpvsSettings, events: list[Any], refusing: set[str]
) -> None:
    machine = PickyMachine(options, refusing)
    play(machine, events)
    machine.sync()
    machine.wait(61)
    expected = {
        key: (server, set(real))
        for name in machine.planner.ports
        for key, (server, real) in machine.planner.held(name)
    }
    kernel = machine.kernel
    assert expected == {key: (kernel.servers[key], set(kernel.real[key])) for key in kernel.servers}


@COMMON
@given(settings_values, events, refusing)
def test_a_resync_retries_and_changes_nothing_else(
    options: IpvsSettings, events: list[Any], refusing: set[str]
) -> None:
    machine = PickyMachine(options, refusing)
    play(machine, events)
    machine.sync()
    machine.wait(61)
    before, held = machine.contents(), set(machine.held)
    machine.apply(machine.plan())
    assert machine.contents() == before
    assert not machine.written
    assert machine.held.keys() >= held
