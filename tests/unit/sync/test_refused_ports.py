"""A Service port that the kernel refuses delays no other Service port."""

import pytest
from structlog.testing import capture_logs

from svcproxy.backends.base import Outcome
from tests.unit.sync.test_loop import Content, DictBackend, Stage, service

LABELS = {"ip_family": "IPv4"}
HELD = ("svcproxy_refused_service_ports", LABELS)


class PickyBackend(DictBackend):
    """A backend whose kernel refuses some names and keeps their former state."""

    def __init__(self) -> None:
        super().__init__()
        self.refusing: set[str] = set()
        self.tried: list[set[str]] = []

    def apply(self, plan: Content) -> Outcome:
        before = dict(self.kernel)
        changed = {n for n in {*plan, *before} if plan.get(n) != before.get(n)}
        self.tried.append(changed)
        refused = {name for name in changed if name in self.refusing}
        super().apply(plan)
        for name in refused:
            self.kernel.pop(name, None)
            if name in before:
                self.kernel[name] = before[name]
        return Outcome(
            {"written": len(changed)}, refused={KEYS[name]: "ENOSPC" for name in refused}
        )


STATE = Stage().loop._state
for number, letter in enumerate("abcd", 1):
    STATE.update_service(service(letter, number))
KEYS = {str(name): name for name in STATE.checkout().ports}


@pytest.fixture
def stage() -> Stage:
    """A stage after the first sync of Service ``a``, whose kernel can refuse ports."""
    made = Stage(PickyBackend())
    made.put(service("a"))
    made.synced()
    made.step()
    return made


def picky(stage: Stage) -> PickyBackend:
    assert isinstance(stage.backend, PickyBackend)
    return stage.backend


def test_other_ports_are_programmed_without_delay(stage: Stage) -> None:
    picky(stage).refusing = {"ns/b:http"}
    stage.put(service("b", 2), service("c", 3))
    assert stage.step(1.1) == ["apply"]
    assert set(stage.backend.kernel) == {"ns/a:http", "ns/c:http"}
    assert stage.value(*HELD) == 1
    stage.put(service("d", 4))
    assert stage.step(1.0) == ["apply"]
    assert "ns/d:http" in stage.backend.kernel
    assert stage.health.livez().status == 200


def test_a_refused_port_is_retried_with_back_off_and_reported_once(stage: Stage) -> None:
    picky(stage).refusing = {"ns/b:http"}
    stage.put(service("b", 2))
    with capture_logs() as logs:
        stage.step(1.1)
        at = stage.now
        attempts = []
        for _ in range(50):
            picky(stage).tried.clear()
            stage.step(0.5)
            if {"ns/b:http"} in picky(stage).tried:
                attempts.append(round(stage.now - at, 1))
    assert attempts == [1.0, 3.0, 7.0, 15.0]
    (line,) = [log for log in logs if log["event"] == "service_port.refused"]
    assert line["service_port"] == "ns/b:http"
    assert line["reason"] == "ENOSPC"


def test_the_loop_sleeps_until_the_retry_is_due(stage: Stage) -> None:
    picky(stage).refusing = {"ns/b:http"}
    stage.put(service("b", 2))
    stage.step(1.1)
    stage.loop._maintain_at = None
    assert stage.loop._wake_at() == stage.now + 1.0
    picky(stage).refusing.clear()
    assert stage.step(1.0) == ["apply"]
    assert stage.value(*HELD) == 0
    assert "ns/b:http" in stage.backend.kernel
    stage.loop._maintain_at = None
    assert stage.loop._wake_at() > stage.now + 20.0


def test_hooks_get_a_refused_port_when_the_kernel_has_it(stage: Stage) -> None:
    stage.results.clear()
    picky(stage).refusing = {"ns/a:http"}
    stage.put(service("c", 3))
    stage.remove("a")
    stage.step(1.1)
    assert {str(n) for n in stage.results[-1].changes.ports} == {"ns/c:http"}
    picky(stage).refusing.clear()
    stage.step(1.1)
    (name,) = stage.results[-1].changes.ports
    assert str(name) == "ns/a:http"
    assert stage.results[-1].changes.previous[name].frontends[0].address == "10.96.0.1"


def test_a_change_or_a_deletion_ends_the_back_off(stage: Stage) -> None:
    picky(stage).refusing = {"ns/b:http"}
    stage.put(service("b", 2))
    stage.step(1.1)
    stage.remove("b")
    stage.step(1.1)
    assert stage.value(*HELD) == 0
    picky(stage).tried.clear()
    assert stage.step(10.0) == []


def test_the_loop_does_not_spin_after_a_failed_sync(stage: Stage) -> None:
    picky(stage).refusing = {"ns/b:http"}
    stage.put(service("b", 2))
    stage.step(1.1)
    stage.backend.broken = True
    stage.put(service("c", 3))
    stage.step(1.1)
    stage.loop._maintain_at = None
    assert stage.loop._wake_at() > stage.now
