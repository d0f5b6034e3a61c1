"""Changes leave nothing behind: what they are computed with is as large after many as before."""

import gc
import json
import random
import tracemalloc
from collections.abc import Callable, Mapping

import pytest

from benchmarks.population import Population, Shape, Size
from svcproxy.backends.base import Desired
from svcproxy.backends.iptables.plan import Observed as IptablesObserved
from svcproxy.backends.iptables.plan import Planner as IptablesPlanner
from svcproxy.backends.iptables.settings import IptablesSettings
from svcproxy.backends.nftables.dump import Observed as NftablesObserved
from svcproxy.backends.nftables.plan import Planner as NftablesPlanner
from svcproxy.backends.settings import Settings
from svcproxy.kube.parse import parse_object
from svcproxy.kube.wire import decode_object
from svcproxy.model.names import IPFamily, Kind, ServicePortName
from svcproxy.model.objects import EndpointSlice, Service
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import DesiredState
from testbed.manifests import Object

SERVICES = 80
PODS = ("10.244.1.2", "10.244.1.3")
Ports = Mapping[ServicePortName, ServicePort | None]
PlanChanges = Callable[[Ports], object]


def iptables(state: DesiredState) -> PlanChanges:
    settings = IptablesSettings(IPFamily.IPV4)
    planner = IptablesPlanner(settings)
    planner.plan(Desired(state.ports, None), settings, IptablesObserved({}))
    return planner.plan_changes


def nftables(state: DesiredState) -> PlanChanges:
    settings = Settings(IPFamily.IPV4)
    planner = NftablesPlanner(settings)
    planner.plan(Desired(state.ports, None), settings, NftablesObserved())
    return planner.plan_changes


class Daemon:
    """The way of a change from its JSON to its plan."""

    def __init__(self, planner: Callable[[DesiredState], PlanChanges]) -> None:
        self.population = Population(Size(SERVICES, 5), PODS, Shape(large=0, dialled=10))
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
            self.take(self.population.moved_slice(number, self.generation))
            changes = self.state.checkout()
            # None, if chance takes the same one again at the same of its 250 addresses.
            assert len(changes.ports) <= 1
            self.plan_changes(changes.ports)


@pytest.mark.parametrize("planner", [iptables, nftables])
def test_very_many_changes_need_no_more_memory(
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
