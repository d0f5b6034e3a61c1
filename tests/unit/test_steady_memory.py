"""Changes leak no memory, and the memory for one change does not grow with the cluster."""

import gc
import json
import random
import sys
import tracemalloc
from collections.abc import Callable, Mapping

import pytest

from benchmarks.population import Population, Shape, Size
from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.core.plan import Observed as IptablesObserved
from svcproxy.backends.iptables.core.planner import Planner as IptablesPlanner
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.ipvs.core.difference import Observed as IpvsObserved
from svcproxy.backends.ipvs.core.planner import Planner as IpvsPlanner
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.backends.nftables.core.plan import Planner as NftablesPlanner
from svcproxy.backends.settings import Settings
from svcproxy.kube.core.decoding import decode_object
from svcproxy.kube.core.parse import parse_object
from svcproxy.model.names import IPFamily, Kind, ServicePortName
from svcproxy.model.objects import EndpointSlice, Service
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.state.desired import DesiredState
from testbed.manifests import Object

pytestmark = pytest.mark.slow

SERVICES = 80
PODS = ("10.244.1.2", "10.244.1.3")
Ports = Mapping[ServicePortName, ServicePort | None]
PlanChanges = Callable[[Ports], object]


def iptables(state: DesiredState) -> PlanChanges:
    settings = IptablesSettings(IPFamily.IPV4)
    planner = IptablesPlanner(settings)
    planner.plan(Desired(state.ports, settings), settings, IptablesObserved({}))
    return planner.plan_changes


def ipvs(state: DesiredState) -> PlanChanges:
    settings = IpvsSettings(IPFamily.IPV4)
    planner = IpvsPlanner(settings)
    planner.plan(
        Desired(state.ports, settings), settings, IpvsObserved({}, {}, {}, {}, frozenset())
    )
    return planner.plan_changes


def nftables(state: DesiredState) -> PlanChanges:
    settings = Settings(IPFamily.IPV4)
    planner = NftablesPlanner(settings)
    planner.plan(Desired(state.ports, settings), settings, TableDump())
    return planner.plan_changes


class Daemon:
    """Processes changes from JSON to the plan."""

    def __init__(
        self, planner: Callable[[DesiredState], PlanChanges], services: int = SERVICES
    ) -> None:
        self.population = Population(Size(services, 5), PODS, Shape(large=0, dialled=10))
        self.state = DesiredState(IPFamily.IPV4, "node1")
        for obj in self.population.objects():
            self.take(obj)
        self.state.checkout()
        self.plan_changes = planner(self.state)
        self.chance = random.Random(3)
        self.generation = 0

    def take(self, obj: Object) -> None:
        match parse_object(decode_object(Kind(obj["kind"]), json.dumps(obj).encode())):
            case Service() as service:
                self.state.update_service(service)
            case EndpointSlice() as piece:
                self.state.update_slice(piece)

    def change(self, times: int) -> None:
        for _ in range(times):
            self.generation += 1
            number = self.chance.choice(self.population.ordinary)
            self.move(number, self.generation)

    def move(self, number: int, generation: int) -> None:
        self.take(self.population.moved_slice(number, generation))
        changes = self.state.checkout()
        # No port, if the same slice randomly gets the same one of its 250 addresses again.
        assert len(changes.ports) <= 1
        self.plan_changes(changes.ports)

    def take_again(self, objects: list[Object]) -> None:
        """Take objects that are already known, as from a restarted watch."""
        for obj in objects:
            self.take(obj)
            assert not self.state.checkout()


every_planner = pytest.mark.parametrize("planner", [iptables, nftables, ipvs])


@every_planner
def test_memory_does_not_grow_with_the_number_of_changes(
    planner: Callable[[DesiredState], PlanChanges],
) -> None:
    tracemalloc.start()
    try:
        daemon = Daemon(planner)
        daemon.change(5 * SERVICES)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        daemon.change(5 * SERVICES)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after < before * 1.02, f"{before} bytes before, {after} after"


@every_planner
def test_a_change_takes_as_much_memory_among_many_services_as_among_few(
    planner: Callable[[DesiredState], PlanChanges],
) -> None:
    """A change makes no copy of the state and no list of all names."""
    few, many = (_memory_of_a_change(planner, services) for services in (SERVICES, 6 * SERVICES))
    assert many < few * 1.25, f"{few} bytes among few, {many} among many"


def _memory_of_a_change(planner: Callable[[DesiredState], PlanChanges], services: int) -> int:
    daemon = Daemon(planner, services)
    daemon.change(20)
    taken = []
    for _ in range(9):
        gc.collect()
        tracemalloc.start()
        daemon.change(1)
        taken.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The median ignores the change that happens to enlarge a hash table.
    return sorted(taken)[len(taken) // 2]


@every_planner
def test_changes_back_and_forth_leave_no_objects(
    planner: Callable[[DesiredState], PlanChanges],
) -> None:
    daemon = Daemon(planner)
    number = daemon.population.ordinary[0]

    def back_and_forth(times: int) -> int:
        for _ in range(times):
            daemon.move(number, 1)
            daemon.move(number, 2)
        gc.collect()
        return sys.getallocatedblocks()

    few, many = back_and_forth(10), back_and_forth(200)
    assert many - few < 20, f"{many - few} objects more after 200 times"


def test_known_objects_of_a_restarted_watch_leave_no_objects() -> None:
    daemon = Daemon(nftables)
    objects = list(daemon.population.objects())
    few, many = (_blocks_after(daemon.take_again, objects) for _ in range(2))
    assert many - few < 20, f"{many - few} objects more"


def _blocks_after(action: Callable[[list[Object]], None], objects: list[Object]) -> int:
    action(objects)
    gc.collect()
    return sys.getallocatedblocks()
