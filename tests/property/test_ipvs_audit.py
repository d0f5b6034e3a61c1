"""With any events between its steps, an audit finds every damage and nothing else."""

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from svcproxy.backends.ipvs.auditor import Auditor
from svcproxy.backends.ipvs.core.audit import Audit, Difference
from svcproxy.backends.ipvs.core.difference import Plan
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import (
    ApiObject,
    EndpointSlice,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    RealServers,
    ServerFlag,
    VirtualServer,
    VirtualServerKey,
)
from tests.fakes.ipvs_listing import TICKS, pieces
from tests.property.strategies import SYNC, events
from tests.property.test_ipvs_incremental import (
    BUSY,
    COMMON,
    Machine,
    play,
    scene,
    settings_values,
    traffic,
)

PERIOD = 30.0
OTHERS = {
    IPFamily.IPV4: VirtualServerKey(Protocol.TCP, "2001:db8::1", 80),
    IPFamily.IPV6: VirtualServerKey(Protocol.TCP, "192.0.2.1", 80),
}


class Source:
    """Reads the fake kernel for an auditor."""

    def __init__(self, machine: "Audited", random: Random) -> None:
        self._machine = machine
        self._random = random

    def listing(self) -> Iterator[bytes]:
        return pieces(self._machine.kernel.servers, self._machine.kernel.real, self._random)

    def virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        return self._machine.kernel.servers.get(key)

    def weights(self, key: VirtualServerKey) -> RealServers:
        return self._machine.kernel.real[key]


class Audited(Machine):
    """A node whose virtual servers are audited in steps, as by the backend.

    Its clock advances by a millisecond with each reading.
    """

    def __init__(self, options: IpvsSettings, random: Random) -> None:
        self.random = random
        super().__init__(options)
        other = OTHERS[options.family]
        self.kernel.servers[other] = VirtualServer("rr")
        self.kernel.real[other] = {RealServerKey("192.0.2.7", 1): 1}

    def start(self) -> None:
        super().start()
        self.seconds = 0.0
        audit = Audit(self.planner, TICKS)
        self.auditor = Auditor(audit, Source(self, self.random), PERIOD, self.clock)

    def clock(self) -> float:
        self.seconds += 0.001
        return self.seconds

    def apply(self, plan: Plan) -> None:
        super().apply(plan)
        if plan.is_resync:
            self.auditor.start()
        else:
            self.auditor.audit.changed(plan)

    def wait(self, seconds: float) -> None:
        super().wait(seconds)
        self.auditor.audit.written()

    def step(self) -> Difference | None:
        """Wait until the next step is due, and make it."""
        result = self.auditor.step(lambda: self.random.random() < 0.5)
        if isinstance(result, float):
            self.seconds += result
            return None
        assert result is not None, "the auditor is stopped"
        return result

    def complete_pass(self) -> Difference | None:
        """Make steps until a pass that begins now or later is complete, or finds a difference."""
        now = self.seconds
        while self.auditor._checked <= now:
            found = self.step()
            if found is not None:
                return found
        return None


def population(family: IPFamily) -> Iterator[ApiObject]:
    """Services with endpoints, for events to change."""
    cluster, pods = ("10.96.0.", "10.244.0.")
    if family is IPFamily.IPV6:
        cluster, pods = ("fd00:10:96::", "fd00:10:244::")
    for number in range(6):
        name = NamespacedName("ns", f"svc{number}")
        port = ServicePortSpec("http", Protocol.TCP, 80, 30080 + number)
        cluster_ips = (str(ip_address(f"{cluster}{number}")),)
        yield Service(name, (port,), cluster_ips, affinity_seconds=60 * (number % 2))
        endpoints = tuple(
            SliceEndpoint(f"{pods}{each}", ready=True, serving=True, terminating=False)
            for each in range(1, 2 + 5 * number)
        )
        ports = (SlicePort("http", Protocol.TCP, 8080),)
        yield EndpointSlice(NamespacedName("ns", f"slice{number}"), name, family, ports, endpoints)


def audited(options: IpvsSettings, sequence: list[Any], random: Random) -> Audited:
    """A node in the middle of a pass, after events with steps between them."""
    machine = Audited(options, random)
    play(machine, [*population(options.family), SYNC])
    for event in sequence:
        play(machine, [event])
        if event == SYNC or (isinstance(event, tuple) and event[0] == BUSY):
            for _ in range(random.randint(0, 3)):
                found = machine.step()
                assert found is None, f"a false alarm: {found}"
    play(machine, [SYNC])
    return machine


@pytest.mark.timeout(400)
@COMMON
@given(settings_values, events, traffic, st.integers())
def test_own_changes_are_no_difference(
    options: IpvsSettings, events: list[Any], traffic: list[Any], seed: int
) -> None:
    machine = audited(options, scene(events, traffic, seed), Random(seed))
    found = machine.complete_pass()
    assert found is None, f"a false alarm: {found}"
    assert machine.auditor.current
    assert not machine.plan()


@pytest.mark.timeout(400)
@COMMON
@given(settings_values, events, traffic, st.integers())
def test_every_damage_is_found_by_the_end_of_the_next_pass(
    options: IpvsSettings, events: list[Any], traffic: list[Any], seed: int
) -> None:
    random = Random(seed)
    machine = audited(options, scene(events, traffic, seed), random)
    ports = [machine.planner.state(name) for name in machine.planner.ports]
    wanted = sorted(key for state in ports for key in state.servers)
    assume(wanted)
    key = random.choice(wanted)
    random.choice(DAMAGES)(machine, key)
    found = machine.complete_pass()
    assert (found is not None) is bool(machine.plan()), "audit and resync disagree"
    assert machine.auditor.current is (found is None)


def _vanish(machine: Audited, key: VirtualServerKey) -> None:
    del machine.kernel.servers[key], machine.kernel.real[key]


def _weigh(machine: Audited, key: VirtualServerKey) -> None:
    real = machine.kernel.real[key]
    chosen = machine.random.choice(sorted(real))
    real[chosen] = 7 if chosen in machine.planner.draining.real_servers(key) else 0


def _add(machine: Audited, key: VirtualServerKey) -> None:
    address = "192.0.2.1" if machine.options.family is IPFamily.IPV4 else "2001:db8::1"
    machine.kernel.real[key][RealServerKey(address, 1)] = 1


def _remove(machine: Audited, key: VirtualServerKey) -> None:
    real = machine.kernel.real[key]
    del real[
        machine.random.choice(sorted(real.keys() - machine.planner.draining.real_servers(key)))
    ]


def _schedule(machine: Audited, key: VirtualServerKey) -> None:
    flags = machine.kernel.servers[key].flags
    machine.kernel.servers[key] = VirtualServer("lc", flags, machine.kernel.servers[key].timeout)


def _persist(machine: Audited, key: VirtualServerKey) -> None:
    timeout = machine.kernel.servers[key].timeout
    machine.kernel.servers[key] = VirtualServer("rr", ServerFlag.PERSISTENT, timeout + 1)


def _another(machine: Audited, key: VirtualServerKey) -> None:
    """At an address that is on ``kube-ipvs0``, or a node port."""
    bound = key.address in machine.kernel.bound
    address = "192.0.2.1" if machine.options.family is IPFamily.IPV4 else "2001:db8::1"
    extra = key._replace(port=65000) if bound else key._replace(address=address)
    machine.kernel.servers[extra], machine.kernel.real[extra] = VirtualServer("rr"), {}


DAMAGES: list[Callable[[Audited, VirtualServerKey], None]] = [
    _vanish,
    _weigh,
    _add,
    _remove,
    _schedule,
    _persist,
    _another,
]
