"""When syncs and resyncs are due, computed from times alone."""

import pytest

from svcproxy.sync.core.schedule import Schedule


def synced(now: float = 100.0, *, min_interval: float = 1.0, period: float = 30.0) -> Schedule:
    """Return a schedule whose first sync ended at ``now``."""
    schedule = Schedule(min_interval, period)
    schedule.succeeded(now, resynced=True)
    return schedule


def test_the_first_sync_is_due_immediately_and_is_a_resync() -> None:
    schedule = Schedule(1.0, 30.0)
    assert schedule.due() <= 0.0
    assert schedule.is_resync_due(5.0)


def test_a_single_change_is_synced_immediately() -> None:
    schedule = synced(100.0)
    schedule.request()
    assert schedule.due() == 101.0  # in the past when a single change arrives
    assert not schedule.is_resync_due(110.0)


def test_changes_wait_for_the_minimum_interval_after_the_last_end() -> None:
    schedule = synced(100.0)
    schedule.request()
    schedule.succeeded(103.0, resynced=False)
    schedule.request()
    assert schedule.due() == 104.0


def test_without_changes_only_the_periodic_resync_is_due() -> None:
    schedule = synced(100.0)
    assert schedule.due() == 130.0
    assert schedule.is_resync_due(130.0)
    schedule.request()
    schedule.succeeded(120.0, resynced=False)
    assert schedule.due() == 130.0, "partial syncs do not delay the resync"


def test_an_overdue_resync_does_not_wait_for_the_minimum_interval() -> None:
    schedule = synced(100.0, min_interval=20.0)
    schedule.request()
    schedule.succeeded(125.0, resynced=False)
    schedule.request()
    assert schedule.due() == 130.0


def test_a_requested_resync_is_due_soon() -> None:
    schedule = synced(100.0)
    schedule.request_resync()
    assert schedule.due() == 100.1
    assert schedule.is_resync_due(100.1)
    schedule.succeeded(101.5, resynced=True)
    assert schedule.due() == 131.5


def test_failures_are_retried_by_resyncs_with_back_off() -> None:
    schedule = synced(100.0)
    waits = []
    now = 101.0
    for _ in range(8):
        waits.append(schedule.failed(now))
        assert schedule.due() == now + waits[-1]
        assert schedule.is_resync_due(now + waits[-1])
        now += waits[-1]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    schedule.request()
    assert schedule.due() == now, "changes do not shorten the wait"
    schedule.succeeded(now, resynced=True)
    assert schedule.failed(now) == 1.0, "a success resets the back-off"


@pytest.mark.parametrize("failures", [1, 5000])
def test_many_failures_do_not_overflow(failures: int) -> None:
    schedule = Schedule(0.0, 30.0)
    for _ in range(failures):
        schedule.failed(1.0)
    assert schedule.due() <= 31.0


def test_an_adaptive_pause_is_as_long_as_the_sync() -> None:
    schedule = Schedule(1.0, 30.0, adaptive=True)
    for took, pause in ((0.25, 0.25), (0.00001, Schedule.SHORTEST_PAUSE), (3.0, 1.0)):
        schedule.succeeded(100.0, resynced=True, took=took)
        schedule.request()
        assert schedule.due() == 100.0 + pause


def test_an_adaptive_pause_has_an_upper_limit() -> None:
    schedule = Schedule(1.0, 30.0, adaptive=True, longest_pause=0.25)
    for took, pause in ((0.125, 0.125), (3.0, 0.25)):
        schedule.succeeded(100.0, resynced=True, took=took)
        schedule.request()
        assert schedule.due() == 100.0 + pause


def test_an_adaptive_pause_never_exceeds_a_minimum_interval_of_zero() -> None:
    schedule = Schedule(0.0, 30.0, adaptive=True)
    schedule.succeeded(100.0, resynced=True, took=0.5)
    schedule.request()
    assert schedule.due() == 100.0


def test_an_uncertain_change_leads_to_a_resync_as_soon_as_a_certain_one() -> None:
    schedule = synced(100.0)
    schedule.request_resync(certain=False)
    assert schedule.due() == 100.1
    assert schedule.is_resync_due(100.1)


def test_continued_changes_are_repaired_once_in_a_minimum_interval() -> None:
    schedule = synced(100.0)
    pauses = []
    now = 100.0
    for _ in range(6):
        schedule.request_resync()
        pauses.append(round(schedule.due() - now, 3))
        now = schedule.due()
        schedule.succeeded(now, resynced=True, found=True)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    schedule.succeeded(now, resynced=True)
    schedule.request_resync()
    assert schedule.due() == pytest.approx(now + 0.1), "a resync without a repair resets the wait"


def test_time_without_repairs_resets_the_wait() -> None:
    schedule = synced(100.0)
    for moment in (101.0, 102.0, 104.0):
        schedule.request_resync()
        schedule.succeeded(moment, resynced=True, found=True)
    schedule.request_resync()
    assert schedule.due() == pytest.approx(104.2)


def test_resyncs_that_find_nothing_delay_the_next_uncertain_change() -> None:
    schedule = synced(100.0)
    waits = []
    now = 100.0
    for _ in range(8):
        schedule.request_resync(certain=False)
        waits.append(schedule.due() - now)
        assert not schedule.is_resync_due(schedule.due() - 0.1)
        now = schedule.due()
        schedule.succeeded(now, resynced=True)
    assert waits == pytest.approx([0.1, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0])
    schedule.request_resync(certain=False)
    schedule.request_resync()
    assert schedule.due() <= now + 1.0, "a certain change does not wait"
    schedule.succeeded(now + 1.0, resynced=True, found=True)
    schedule.request_resync(certain=False)
    assert schedule.due() <= now + 2.0, "a resync that found something resets the wait"


def test_an_uncertain_change_does_not_delay_syncs_of_changes() -> None:
    schedule = synced(100.0)
    for _ in range(4):
        schedule.request_resync(certain=False)
        schedule.succeeded(110.0, resynced=True)
    schedule.request_resync(certain=False)
    schedule.request()
    assert schedule.due() == 111.0
    assert not schedule.is_resync_due(111.0)
    schedule.succeeded(111.0, resynced=False)
    assert schedule.due() == 110.0 + 8.0


def test_a_periodic_resync_resets_the_wait_of_uncertain_changes() -> None:
    schedule = synced(100.0)
    for _ in range(5):
        schedule.request_resync(certain=False)
        schedule.succeeded(110.0, resynced=True)
    schedule.succeeded(140.0, resynced=True)
    schedule.request_resync(certain=False)
    assert schedule.due() == 140.1


def test_a_repair_waits_longer_than_an_adaptive_pause() -> None:
    schedule = Schedule(1.0, 30.0, adaptive=True)
    schedule.succeeded(100.0, resynced=True, took=0.001)
    schedule.request_resync()
    assert schedule.due() == 100.1
