"""When syncs happen, told by times alone."""

import pytest

from svcproxy.sync.core.schedule import Schedule


def synced(now: float = 100.0, *, min_interval: float = 1.0, period: float = 30.0) -> Schedule:
    """A schedule whose first sync ended at ``now``."""
    schedule = Schedule(min_interval, period)
    schedule.succeeded(now, compared=True)
    return schedule


def test_the_first_sync_is_due_at_once_and_thorough() -> None:
    schedule = Schedule(1.0, 30.0)
    assert schedule.due() <= 0.0
    assert schedule.thorough(5.0)


def test_a_lone_change_goes_out_at_once() -> None:
    schedule = synced(100.0)
    schedule.request()
    assert schedule.due() == 101.0  # in the past by the time a lone change comes
    assert not schedule.thorough(110.0)


def test_changes_wait_for_the_minimum_interval_after_the_last_end() -> None:
    schedule = synced(100.0)
    schedule.request()
    schedule.succeeded(103.0, compared=False)
    schedule.request()
    assert schedule.due() == 104.0


def test_without_changes_only_the_periodic_comparison_is_due() -> None:
    schedule = synced(100.0)
    assert schedule.due() == 130.0
    assert schedule.thorough(130.0)
    schedule.request()
    schedule.succeeded(120.0, compared=False)
    assert schedule.due() == 130.0, "partial syncs do not put the comparison off"


def test_an_overdue_comparison_does_not_wait_for_the_minimum_interval() -> None:
    schedule = synced(100.0, min_interval=20.0)
    schedule.request()
    schedule.succeeded(125.0, compared=False)
    schedule.request()
    assert schedule.due() == 130.0


def test_a_doubt_is_settled_soon() -> None:
    schedule = synced(100.0)
    schedule.doubt()
    assert schedule.due() == 100.1
    assert schedule.thorough(100.1)
    schedule.succeeded(101.5, compared=True)
    assert schedule.due() == 131.5


def test_failures_are_retried_thoroughly_and_ever_more_slowly() -> None:
    schedule = synced(100.0)
    waits = []
    now = 101.0
    for _ in range(8):
        waits.append(schedule.failed(now))
        assert schedule.due() == now + waits[-1]
        assert schedule.thorough(now + waits[-1])
        now += waits[-1]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    schedule.request()
    assert schedule.due() == now, "changes do not shorten the wait"
    schedule.succeeded(now, compared=True)
    assert schedule.failed(now) == 1.0, "a success begins anew"


@pytest.mark.parametrize("failures", [1, 5000])
def test_many_failures_do_no_harm(failures: int) -> None:
    schedule = Schedule(0.0, 30.0)
    for _ in range(failures):
        schedule.failed(1.0)
    assert schedule.due() <= 31.0


def test_an_adaptive_pause_is_as_long_as_the_sync_was() -> None:
    schedule = Schedule(1.0, 30.0, adaptive=True)
    for took, pause in ((0.25, 0.25), (0.00001, Schedule.SHORTEST_PAUSE), (3.0, 1.0)):
        schedule.succeeded(100.0, compared=True, took=took)
        schedule.request()
        assert schedule.due() == 100.0 + pause


def test_an_adaptive_pause_ends_where_waiting_spares_nothing() -> None:
    schedule = Schedule(1.0, 30.0, adaptive=True, longest_pause=0.25)
    for took, pause in ((0.125, 0.125), (3.0, 0.25)):
        schedule.succeeded(100.0, compared=True, took=took)
        schedule.request()
        assert schedule.due() == 100.0 + pause


def test_an_adaptive_pause_never_exceeds_a_minimum_of_nothing() -> None:
    schedule = Schedule(0.0, 30.0, adaptive=True)
    schedule.succeeded(100.0, compared=True, took=0.5)
    schedule.request()
    assert schedule.due() == 100.0


def test_a_suspicion_is_looked_into_as_soon_as_a_sure_change() -> None:
    schedule = synced(100.0)
    schedule.doubt(sure=False)
    assert schedule.due() == 100.1
    assert schedule.thorough(100.1)


def test_those_who_go_on_are_repaired_once_in_a_minimum_interval() -> None:
    schedule = synced(100.0)
    pauses = []
    now = 100.0
    for _ in range(6):
        schedule.doubt()
        pauses.append(round(schedule.due() - now, 3))
        now = schedule.due()
        schedule.succeeded(now, compared=True, found=True)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    schedule.succeeded(now, compared=True)
    schedule.doubt()
    assert schedule.due() == pytest.approx(now + 0.1), "a quiet period makes peace"


def test_time_makes_peace() -> None:
    schedule = synced(100.0)
    for moment in (101.0, 102.0, 104.0):
        schedule.doubt()
        schedule.succeeded(moment, compared=True, found=True)
    schedule.doubt()
    assert schedule.due() == pytest.approx(104.2)


def test_unfounded_suspicions_wait_ever_longer() -> None:
    schedule = synced(100.0)
    waits = []
    now = 100.0
    for _ in range(8):
        schedule.doubt(sure=False)
        waits.append(schedule.due() - now)
        assert not schedule.thorough(schedule.due() - 0.1)
        now = schedule.due()
        schedule.succeeded(now, compared=True)
    assert waits == pytest.approx([0.1, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0])
    schedule.doubt(sure=False)
    schedule.doubt()
    assert schedule.due() <= now + 1.0, "what is sure does not wait"
    schedule.succeeded(now + 1.0, compared=True, found=True)
    schedule.doubt(sure=False)
    assert schedule.due() <= now + 2.0, "a comparison that found something begins anew"


def test_a_suspicion_does_not_hold_up_changes() -> None:
    schedule = synced(100.0)
    for _ in range(4):
        schedule.doubt(sure=False)
        schedule.succeeded(110.0, compared=True)
    schedule.doubt(sure=False)
    schedule.request()
    assert schedule.due() == 111.0
    assert not schedule.thorough(111.0)
    schedule.succeeded(111.0, compared=False)
    assert schedule.due() == 110.0 + 8.0


def test_quiet_forgives() -> None:
    schedule = synced(100.0)
    for _ in range(5):
        schedule.doubt(sure=False)
        schedule.succeeded(110.0, compared=True)
    schedule.succeeded(140.0, compared=True)
    schedule.doubt(sure=False)
    assert schedule.due() == 140.1


def test_foreign_changes_are_looked_into_more_seldom_than_an_adaptive_pause() -> None:
    schedule = Schedule(1.0, 30.0, adaptive=True)
    schedule.succeeded(100.0, compared=True, took=0.001)
    schedule.doubt()
    assert schedule.due() == 100.1
