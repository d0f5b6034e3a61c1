"""Which Service ports are held back, and when they are due."""

import math

from svcproxy.model.names import Protocol, ServicePortName
from svcproxy.sync.core.quarantine import Quarantine

A, B = (ServicePortName("ns", name, "http", Protocol.TCP) for name in "ab")


def test_retries_back_off_up_to_the_longest_wait() -> None:
    held = Quarantine(1.0, 30.0)
    now, waits = 100.0, []
    for _ in range(7):
        held.note(now, {A: "no"}, [A])
        waits.append(held.next_due - now)
        assert held.due(held.next_due - 0.01) == []
        assert held.due(held.next_due) == [A]
        now = held.next_due
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_each_port_is_reported_once_for_each_reason() -> None:
    held = Quarantine(1.0, 30.0)
    assert held.note(0.0, {A: "no"}, [A, B]) == [(A, "no")]
    assert held.note(1.0, {A: "no"}, [A]) == []
    assert held.note(1.0, {A: "still no", B: "no"}, None) == [(A, "still no"), (B, "no")]


def test_a_port_that_was_not_attempted_stays_held_back() -> None:
    held = Quarantine(1.0, 30.0)
    held.note(0.0, {A: "no"}, [A])
    held.note(0.5, {}, [B])
    assert list(held.names) == [A]
    held.note(1.0, {}, [A])
    assert len(held) == 0
    assert held.next_due == math.inf


def test_a_full_sync_attempts_all() -> None:
    held = Quarantine(1.0, 30.0)
    held.note(0.0, {A: "no", B: "no"}, [A, B])
    held.note(1.0, {B: "no"}, None)
    assert list(held.names) == [B]


def test_a_change_resets_the_back_off() -> None:
    held = Quarantine(1.0, 30.0)
    for now in range(5):
        held.note(float(now), {A: "no"}, [A])
    held.release([A, B])
    assert held.note(10.0, {A: "no"}, [A]) == [(A, "no")]
    assert held.next_due == 11.0
