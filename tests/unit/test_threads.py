"""Threads that fail end the process, threads that stall are reported."""

import threading
from collections.abc import Iterator

import pytest

from svcproxy import threads
from svcproxy.backends.mode_spec import ActiveMode
from svcproxy.cleanup.sweeper import Sweeper
from svcproxy.config import ProxyMode
from svcproxy.model.names import IPFamily
from svcproxy.sync.after_sync import SyncResult
from testbed.waiting import eventually
from tests.unit.sync.test_loop import Stage, service


@pytest.fixture
def deaths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reasons: list[str] = []
    monkeypatch.setattr(threads, "die", reasons.append)
    return reasons


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, SystemExit, RecursionError])
def test_any_exception_in_a_thread_ends_the_process(
    deaths: list[str], error: type[BaseException]
) -> None:
    def fail() -> None:
        raise error("why\n")

    threads.spawn(fail, "worker").join()
    assert deaths == [f"thread worker failed: {error.__name__}: why\n"]


def test_a_thread_may_return(deaths: list[str]) -> None:
    threads.spawn(lambda: threads.working(-1.0), "worker").join()
    assert deaths == []
    assert "worker" not in threads.stalled()


def test_an_overdue_thread_is_named_until_it_reports(release: threading.Event) -> None:
    reported, go_on = threading.Event(), threading.Event()

    def work() -> None:
        threads.working(-1.0)
        go_on.wait()
        threads.waiting()
        reported.set()
        release.wait()

    threads.spawn(work, "slow")
    eventually(lambda: "slow" in threads.stalled())
    go_on.set()
    reported.wait()
    assert "slow" not in threads.stalled()


def test_other_threads_may_call_the_same_code() -> None:
    threads.working(-1.0)
    threads.waiting()
    assert threading.current_thread().name not in threads.stalled()


def test_the_sweeper(deaths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Sweeper, "_sweep", fail)
    sweeper = Sweeper(ActiveMode(ProxyMode.NFTABLES, None, ()), [IPFamily.IPV4], 30.0)
    sweeper.start()
    stage = Stage()
    stage.put(service("a"))
    stage.synced()
    stage.step()
    result: SyncResult = stage.results[0]
    sweeper.hook(IPFamily.IPV4)(result)
    eventually(lambda: deaths)
    assert "cleanup" in deaths[0]


@pytest.mark.parametrize("text", ["x\n" * 1000, "\x1b[31m\u202e", "\udcff"])
def test_a_reason_cannot_forge_a_line(text: str) -> None:
    assert threads._printable(text).isprintable()
