"""An unexpected exception for one Service affects no other Service."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from svcproxy.backends.base import Desired
from svcproxy.backends.settings import Settings
from svcproxy.model.names import NamespacedName, ServicePortName
from svcproxy.model.objects import Service
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes, DesiredState
from svcproxy.state.port_builder import service_port
from svcproxy.sync.core.isolation import Ports, isolate
from tests.unit.sync.test_loop import Content, DictBackend, Stage, service


class Brittle(DictBackend):
    """A backend whose planning raises for some addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.poison: set[str] = set()
        self.plans = 0

    def plan(self, desired: Desired, observed: Content) -> Content:
        self.plans += 1
        self._check(desired.ports.values())
        return super().plan(desired, observed)

    def plan_changes(self, changes: Changes, settings: Settings) -> Content | None:
        self._check(changes.ports.values())
        return super().plan_changes(changes, settings)

    def _check(self, ports: object) -> None:
        for port in ports:  # type: ignore[attr-defined]
            if port is not None and port.frontends[0].address in self.poison:
                raise KeyError(port.frontends[0].address)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Capture logs: structlog's own renderer shows all variables of a traceback, which is slow."""
    with capture_logs():
        yield


@pytest.fixture
def stage() -> Stage:
    return Stage(Brittle())


def brittle(stage: Stage) -> Brittle:
    assert isinstance(stage.backend, Brittle)
    return stage.backend


def run(stage: Stage, *services: Service) -> None:
    stage.put(*services)
    stage.synced()
    stage.step()


def test_at_the_start_all_other_services_are_programmed(stage: Stage) -> None:
    brittle(stage).poison = {"10.96.0.7", "10.96.0.150"}
    run(stage, *[service(f"s{n}", n) for n in range(1, 200)])
    assert len(stage.backend.kernel) == 197
    assert "ns/s7:http" not in stage.backend.kernel
    assert brittle(stage).plans < 50


def test_a_change_for_which_planning_fails_leaves_the_last_good_state(stage: Stage) -> None:
    run(stage, service("a"), service("b", 2))
    brittle(stage).poison = {"10.96.0.66"}
    before = stage.results[-1].ports
    stage.results.clear()
    with capture_logs() as logs:
        stage.put(service("b", 66), service("c", 3))
        stage.step(2.0)
        for number in range(4, 8):
            stage.put(service(f"s{number}", number))
            assert stage.step(2.0) == ["apply"]
    assert set(stage.backend.kernel) == {"ns/a:http", "ns/b:http", "ns/c:http"} | {
        f"ns/s{n}:http" for n in range(4, 8)
    }
    reports = [log for log in logs if log.get("service_port") == "ns/b:http"]
    assert len(reports) == 1
    assert all("ns/b:http" not in map(str, s.changes.ports) for s in stage.results)
    assert stage.health.livez().status == 200
    assert before


def test_further_changes_of_an_isolated_service_need_no_plans(stage: Stage) -> None:
    run(stage, service("a"), service("b", 2))
    brittle(stage).poison = {f"10.96.0.{n}" for n in range(60, 90)}
    stage.put(service("b", 60))
    stage.step(2.0)
    plans = brittle(stage).plans
    for number in range(61, 70):
        stage.put(service("b", number))
        stage.step(1.1)
    assert brittle(stage).plans == plans


def test_an_isolated_service_is_retried_and_programmed(stage: Stage) -> None:
    run(stage, service("a"), service("b", 2))
    brittle(stage).poison = {"10.96.0.66"}
    stage.put(service("b", 66))
    stage.step(2.0)
    assert len(stage.loop._held.isolation.names) == 1
    stage.step(31.0)
    stage.step(31.0)
    assert len(stage.loop._held.isolation.names) == 1
    brittle(stage).poison = set()
    stage.results.clear()
    for _ in range(4):
        stage.step(31.0)
    assert not stage.loop._held.isolation.names
    assert any("ns/b:http" in map(str, s.changes.ports) for s in stage.results)


def test_a_deletion_is_programmed_immediately(stage: Stage) -> None:
    run(stage, service("a"), service("b", 2))
    brittle(stage).poison = {"10.96.0.66"}
    stage.put(service("b", 66))
    stage.step(2.0)
    stage.remove("b")
    assert stage.step(2.0) == ["apply"]
    assert set(stage.backend.kernel) == {"ns/a:http"}
    assert not stage.loop._held.isolation.names


def test_bisection_finds_any_few_ports() -> None:
    state = DesiredState(Stage().loop.family, "node1")
    for number in range(1, 250):
        state.update_service(service(f"s{number}", number))
    state.checkout()
    chance = random.Random(1)
    for _ in range(20):
        bad = set(chance.sample(sorted(state.ports), chance.randint(1, 4)))

        def plan(ports: Ports, bad: set[ServicePortName] = bad) -> None:
            if bad & ports.keys():
                raise KeyError

        found = isolate(plan, state.ports, state.ports.keys(), {})
        assert found is not None
        assert found.keys() == bad


def test_a_service_that_cannot_be_computed_keeps_its_state(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(stage, service("a"), service("b", 2))

    def brittle_port(key: ServicePortName, *rest: Any, **options: Any) -> ServicePort:
        if key.name == "b":
            raise RecursionError
        return service_port(key, *rest, **options)

    monkeypatch.setattr("svcproxy.state.desired.service_port", brittle_port)
    stage.put(service("b", 66), service("c", 3))
    assert stage.step(2.0) == ["apply"]
    assert set(stage.backend.kernel) == {"ns/a:http", "ns/b:http", "ns/c:http"}
    assert stage.value("svcproxy_defects_total", {"where": "service"}) == 1


def test_an_object_that_cannot_be_stored_affects_no_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(stage, service("a"))
    inner = DesiredState.update_service

    def brittle_update(self: DesiredState, obj: Service) -> None:
        if obj.name == NamespacedName("ns", "b"):
            raise RecursionError
        inner(self, obj)

    monkeypatch.setattr(DesiredState, "update_service", brittle_update)
    stage.loop.inbox.put({})
    stage.put(service("b", 2), service("c", 3))
    stage.step(2.0)
    assert set(stage.backend.kernel) == {"ns/a:http", "ns/c:http"}
    assert stage.value("svcproxy_defects_total", {"where": "object"}) == 1


@pytest.mark.parametrize("method", ["update_service", "_compute_ports", "_claims_of"])
def test_objects_are_stored_later_if_memory_ran_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run(stage, service("a"))

    def exhausted(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(DesiredState, method, exhausted)
        stage.put(service("b", 2), service("c", 3))
        stage.step(2.0)
        stage.put(service("c", 4))
        stage.step(2.0)
    stage.step(40.0)
    assert set(stage.backend.kernel) == {"ns/a:http", "ns/b:http", "ns/c:http"}
    (changed,) = [port for name, port in stage.loop._state.ports.items() if name.name == "c"]
    assert changed.frontends[0].address == "10.96.0.4"
    assert stage.value("svcproxy_defects_total", {"where": "object"}) == 0
    assert stage.value("svcproxy_defects_total", {"where": "service"}) == 0


def test_an_isolated_port_is_not_retried_as_a_refused_one(stage: Stage) -> None:
    run(stage, service("a"), service("b", 2))
    brittle(stage).poison = {"10.96.0.66"}
    stage.put(service("b", 66))
    stage.step(2.0)
    (name,) = stage.loop._held.isolation.names
    stage.loop._held.refused.note(
        stage.now, {name: "ENOSPC"}, None
    )  # the kernel refuses the kept state
    stage.step(1.1)
    assert not stage.loop._held.refused.names
    assert stage.loop._wake_at() > stage.now


def test_a_released_address_is_served_after_memory_ran_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = structs.replace(service("b", 2), external_ips=("192.0.2.1",), created=1.0)
    younger = structs.replace(service("c", 3), external_ips=("192.0.2.1",), created=2.0)
    run(stage, older, younger)

    def exhausted(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(DesiredState, "_compute_ports", exhausted)
        stage.put(service("b", 2))
        stage.put(service("d", 4))
        stage.step(2.0)
    stage.step(40.0)
    (port,) = [port for name, port in stage.loop._state.ports.items() if name.name == "c"]
    assert [f.address for f in port.frontends] == ["10.96.0.3", "192.0.2.1"]


def test_the_first_lists_are_stored_after_memory_ran_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(DesiredState, "update_service", exhausted)
        run(stage, service("a"), service("b", 2))
    assert stage.step(40.0) == ["read", "apply"]
    assert set(stage.backend.kernel) == {"ns/a:http", "ns/b:http"}


def test_an_exception_without_any_ports_is_not_searched_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(stage, *[service(f"s{n}", n) for n in range(1, 200)])
    plans = 0

    def broken(*_: object) -> Content:
        nonlocal plans
        plans += 1
        raise KeyError

    for method in ("plan", "plan_changes"):
        monkeypatch.setattr(stage.backend, method, broken)
    stage.put(service("s1", 201))
    stage.step(2.0)
    assert plans < 8
