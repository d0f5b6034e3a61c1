"""A Service port that the kernel refuses does not block others, on the real kernel.

These tests limit the size of sets, unlike svcproxy: a full set is the simplest way to make the kernel
refuse a single element (ENFILE).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from svcproxy.backends.base import Backend, BackendError, Desired, Outcome
from svcproxy.backends.nftables.core.plan import KernelState
from svcproxy.kube.event_recorder import LoggingRecorder
from svcproxy.model.names import IPFamily, Kind, NamespacedName, Protocol
from svcproxy.model.objects import EndpointSlice, Service, ServicePortSpec, SliceEndpoint, SlicePort
from svcproxy.model.serviceport import ServicePort, Verdict
from svcproxy.netlink.core.attributes import nest, u32
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.expressions import Code, verdict
from svcproxy.netlink.core.nf_tables.ruleset import ChainSpec, Rule, SetSpec
from svcproxy.netlink.core.nf_tables.transaction import Plan
from svcproxy.observe.health import HealthState
from svcproxy.observe.metrics import Metrics
from svcproxy.state.desired import Changes, DesiredState
from svcproxy.sync.core.schedule import Schedule
from svcproxy.sync.loop import FamilyLoop
from svcproxy.sync.report import Reporter
from tests.kernel.test_nftables_table import Programmed, family, programmed
from tests.unit.nftables.services import VIP, service_port

__all__ = ["family", "programmed"]

pytestmark = pytest.mark.kernel

Limits = dict[str, int]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """The maximum numbers of elements of sets that are made from now on, by name."""
    found: Limits = {}
    attributes = SetSpec.attributes

    def limited(spec: SetSpec) -> bytes:
        size = found.get(spec.name)
        return attributes(spec) + (nest(9, u32(1, size)) if size else b"")

    monkeypatch.setattr(SetSpec, "attributes", limited)
    return found


def _vip(family: IPFamily, number: int) -> str:
    return f"10.97.0.{number}" if family is IPFamily.IPV4 else f"fd00:10:97::{number}"


def rejected(family: IPFamily, number: int) -> ServicePort:
    """Return a Service port with one element, in the set ``rejected``."""
    name, vip = f"s{number}", _vip(family, number)
    return service_port(family, (), name=name, vip=vip, verdict=Verdict.REJECT)


def served(family: IPFamily, number: int, endpoints: tuple[int, ...] = (1, 2)) -> ServicePort:
    return service_port(family, endpoints, name=f"s{number}", vip=_vip(family, number))


class Applied:
    """Applies changes with a backend, and counts transactions and reads."""

    def __init__(self, programmed: Programmed) -> None:
        self.programmed = programmed
        self.family = programmed.family
        self.backend = programmed.backend
        self.transactions = 0
        self.reads = 0
        self._count()

    def _count(self) -> None:
        table = self.backend._table
        transact, read = table._client.transact, table.read

        def counted(*arguments: Any, **named: Any) -> None:
            self.transactions += 1
            transact(*arguments, **named)

        def counted_read() -> TableDump:
            self.reads += 1
            return read()

        table._client.transact = counted  # type: ignore[method-assign]
        table.read = counted_read  # type: ignore[method-assign]

    def compare(self, *ports: ServicePort) -> Outcome:
        self.transactions = self.reads = 0
        desired = Desired({port.name: port for port in ports}, self.programmed.settings)
        return self.backend.apply(self.backend.plan(desired, self.backend.read()))

    def change(self, *ports: ServicePort, gone: tuple[ServicePort, ...] = ()) -> Outcome:
        self.transactions = self.reads = 0
        changed: dict[Any, ServicePort | None] = {port.name: port for port in ports}
        changed.update(dict.fromkeys((port.name for port in gone), None))
        plan = self.backend.plan_changes(Changes(changed), self.programmed.settings)
        assert plan is not None
        return self.backend.apply(plan)

    def has(self, port: ServicePort) -> bool:
        return f'comment "{port.name}"' in self.programmed.listed()


@pytest.fixture
def applied(limits: Limits, programmed: Programmed) -> Applied:
    """Two Service ports in the set ``rejected``, which is full."""
    limits["rejected"] = 2
    made = Applied(programmed)
    outcome = made.compare(*(rejected(programmed.family, n) for n in (1, 2)))
    assert not outcome.refused
    return made


@pytest.mark.behaviour("nftables mode: Refused element")
def test_a_refused_port_does_not_block_the_others(applied: Applied) -> None:
    family = applied.family
    third, other = rejected(family, 3), served(family, 4)
    with capture_logs() as logs:
        outcome = applied.change(third, other)
    assert list(outcome.refused) == [third.name]
    reason = outcome.refused[third.name]
    key = f"{_vip(family, 3)} . tcp . 80 (default/s3:http)"
    # The text of ENFILE.
    assert reason == f"cannot add an element of rejected: {key}: Too many open files in system"
    assert applied.has(other)
    assert not applied.has(third)
    assert not logs, "the loop reports it"


@pytest.mark.behaviour("nftables mode: Refused element")
def test_a_refused_port_does_not_slow_down_the_others(applied: Applied) -> None:
    family = applied.family
    applied.change(rejected(family, 3))
    outcome = applied.change(served(family, 4))
    assert not outcome.refused
    assert (applied.transactions, applied.reads) == (2, 0), "a new map, and its elements"
    assert applied.change(served(family, 4, (1, 3))).operations
    assert (applied.transactions, applied.reads) == (1, 0)


def test_a_retry_reads_nothing_and_applies_the_others(applied: Applied) -> None:
    family = applied.family
    third, other = rejected(family, 3), served(family, 4)
    applied.change(third, other)
    other = served(family, 4, (1, 3))
    outcome = applied.change(third, other)
    assert list(outcome.refused) == [third.name]
    assert applied.reads == 0
    # Endpoint 2 is on this node: its hairpin is deleted, too.
    assert outcome.operations == {"element_added": 1, "element_deleted": 2}
    assert not applied.compare(*(rejected(family, n) for n in (1, 2)), other).operations


@pytest.mark.behaviour("nftables mode: Refused element")
def test_a_refused_port_recovers(applied: Applied) -> None:
    family = applied.family
    third = rejected(family, 3)
    assert applied.change(third).refused
    assert applied.change(third).refused
    applied.change(gone=(rejected(family, 1),))
    outcome = applied.change(third)
    assert not outcome.refused
    assert outcome.operations == {"element_added": 2}
    assert applied.has(third)
    assert not applied.compare(rejected(family, 2), third).operations


@pytest.mark.behaviour("nftables mode: Refused element")
def test_a_refused_port_keeps_its_previous_state(applied: Applied) -> None:
    """Even through full comparisons, and while the Service port keeps changing."""
    family = applied.family
    before = served(family, 3, (1, 2, 3))
    applied.change(before)
    after = rejected(family, 3)
    for _ in range(2):
        assert list(applied.change(after).refused) == [after.name]
        assert applied.has(before)
        everything = [*(rejected(family, n) for n in (1, 2)), after, served(family, 5)]
        assert list(applied.compare(*everything).refused) == [after.name]
        assert applied.programmed.elements("all3"), "its endpoints"
    assert not applied.change(served(family, 3, (1, 2))).refused
    assert not applied.compare(
        *(rejected(family, n) for n in (1, 2)), served(family, 3, (1, 2)), served(family, 5)
    ).operations


@pytest.mark.behaviour("nftables mode: Refused element")
def test_after_a_restart_a_refused_port_keeps_its_elements(applied: Applied) -> None:
    """The new process does not know the state that these elements belong to."""
    family = applied.family
    vip = _vip(family, 3)
    before = service_port(family, (1, 2, 3), name="s3", vip=vip, external=True, seconds=100)
    applied.change(before)
    applied.programmed.close()
    applied.programmed.backend = applied.backend = applied.programmed._make()
    after = service_port(family, (), name="s3", vip=vip, external=True, verdict=Verdict.REJECT)
    everything = [*(rejected(family, n) for n in (1, 2)), after, served(family, 5)]
    for _ in range(2):
        assert list(applied.compare(*everything).refused) == [after.name]
        assert applied.has(before)
        assert applied.has(served(family, 5))
        assert len(applied.programmed.elements("all3-100")) == 6
    applied.change(served(family, 6))
    applied.change(gone=(rejected(family, 1),))
    applied.change(gone=(rejected(family, 2),))
    everything = [after, served(family, 5), served(family, 6)]
    # The kernel holds inherited elements of the port: only a full comparison replaces them.
    assert (
        applied.backend.plan_changes(Changes({after.name: after}), applied.programmed.settings)
        is None
    )
    assert not applied.compare(*everything).refused
    assert not applied.compare(*everything).operations


@pytest.mark.behaviour("nftables mode: Refused element")
def test_a_first_sync_leaves_out_only_refused_ports(limits: Limits, programmed: Programmed) -> None:
    """Many elements share a message, and the kernel names at most one of them."""
    family = programmed.family
    limits["rejected"] = 3
    applied = Applied(programmed)
    ports = [rejected(family, n) for n in range(1, 9)] + [served(family, n) for n in range(10, 99)]
    outcome = applied.compare(*ports)
    assert len(outcome.refused) == 5
    assert set(outcome.refused) < {port.name for port in ports[:8]}
    listed = applied.programmed.listed()
    assert all(f'comment "{port.name}"' in listed for port in ports[8:])
    assert len(programmed.elements("rejected")) == 3


def test_a_full_map_refuses_only_its_ports(limits: Limits, programmed: Programmed) -> None:
    family = programmed.family
    limits["all3"] = 5
    applied = Applied(programmed)
    first, second, other = (
        served(family, 1, (1, 2, 3)),
        served(family, 2, (1, 2, 3)),
        served(family, 3),
    )
    assert not applied.compare(first, other).refused
    assert list(applied.change(second, served(family, 3, (1,))).refused) == [second.name]
    assert not applied.has(second)
    assert len(programmed.elements("all3")) == 3
    assert len(programmed.elements("all1")) == 1
    assert not applied.change(second, gone=(first,)).refused
    assert not applied.compare(second, served(family, 3, (1,))).operations


def test_a_refusal_without_a_port_fails_the_sync(
    applied: Applied, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, of a chain that all Services share; the previous state stays."""
    wrong = ChainSpec("all-tiers", (Rule((verdict(Code.JUMP, "nowhere"),)),))
    monkeypatch.setattr(
        "svcproxy.backends.nftables.core.table_objects.tiers_chain", lambda *_: wrong
    )
    with pytest.raises(BackendError, match="No such file or directory"):
        applied.change(served(applied.family, 4))
    monkeypatch.undo()
    everything = [*(rejected(applied.family, n) for n in (1, 2)), served(applied.family, 4)]
    assert not applied.compare(*everything).refused
    assert applied.has(everything[-1])


# --- The loop ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _loop(programmed: Programmed) -> Iterator[tuple[FamilyLoop[KernelState, Plan], list[float]]]:
    now = [1000.0]
    clock = lambda: now[0]  # noqa: E731
    health = HealthState(sync_period=30.0, clock=clock, wall=clock, needs_node=False)
    backend: Backend[KernelState, Plan] = programmed.backend
    loop = FamilyLoop(
        backend,
        DesiredState(programmed.family, "node1"),
        Schedule(0.0, 30.0),
        Reporter(programmed.family, Metrics(), health, LoggingRecorder()),
        settings_for=lambda _node: programmed.settings,
        clock=clock,
    )
    for kind in Kind:
        loop.inbox.synced(kind)
    yield loop, now


def _service(loop: FamilyLoop[KernelState, Plan], vip: str, number: int, *, ready: bool) -> None:
    name = NamespacedName("ns", f"s{number}")
    ports = (ServicePortSpec("http", Protocol.TCP, 80, 0),)
    loop.inbox.put({(Kind.SERVICE, name): Service(name, ports, (f"{vip}{number}",))})
    if ready:
        family = IPFamily.IPV6 if ":" in vip else IPFamily.IPV4
        address = "fd00:10:244:1::1" if ":" in vip else "10.244.1.1"
        piece = EndpointSlice(
            name=name,
            service=name,
            family=family,
            ports=(SlicePort("http", Protocol.TCP, 8080),),
            endpoints=(SliceEndpoint(address, ready=True, serving=True),),
        )
        loop.inbox.put({(Kind.ENDPOINT_SLICE, name): piece})


@pytest.mark.behaviour("nftables mode: Refused element")
def test_the_loop_reports_a_refused_port_once_and_serves_the_others(
    limits: Limits, programmed: Programmed
) -> None:
    limits["rejected"] = 1
    vip = VIP[programmed.family]
    with _loop(programmed) as (loop, now), capture_logs() as logs:
        _service(loop, vip, 1, ready=False)
        loop.step()
        _service(loop, vip, 2, ready=False)
        _service(loop, vip, 3, ready=True)
        loop.step()
        assert "ns/s3:http" in programmed.listed(), "within the same sync"
        for _ in range(40):
            now[0] += 0.5
            loop.step()
        refusals = [line for line in logs if line["log_level"] in {"warning", "error"}]
        assert [line["event"] for line in refusals] == ["service_port.refused"]
        assert refusals[0]["service_port"] == "ns/s2:http"
        loop.inbox.put({(Kind.SERVICE, NamespacedName("ns", "s1")): None})
        loop.step()
        for _ in range(70):
            now[0] += 0.5
            loop.step()
    assert "ns/s2:http" in programmed.listed()
    refusals = [line for line in logs if line["log_level"] in {"warning", "error"}]
    assert len(refusals) == 1
