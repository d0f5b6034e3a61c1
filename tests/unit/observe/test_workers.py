"""Worker threads for slow pages."""

import threading
from collections.abc import Iterator

import pytest

from svcproxy.observe import workers as workers_module
from svcproxy.observe.workers import Workers
from testbed.waiting import eventually


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers("test", 2)
    yield made
    made.stop(5.0)


def test_jobs_run_a_few_at_a_time_in_order(workers: Workers) -> None:
    release = threading.Event()
    begun: list[int] = []

    def job(number: int) -> None:
        begun.append(number)
        release.wait(10)

    for number in range(6):
        workers.submit(number, lambda number=number: job(number))  # type: ignore[misc]
    eventually(lambda: len(begun) == 2, "two jobs")
    workers.cancel(3)
    workers.cancel(0)
    assert begun == [0, 1]
    release.set()
    eventually(lambda: len(begun) == 5, "all but the cancelled one")
    assert sorted(begun) == [0, 1, 2, 4, 5]


def test_threads_are_reused(workers: Workers) -> None:
    done: list[str] = []
    for number in range(5):
        workers.submit(number, lambda: done.append(threading.current_thread().name))
        eventually(lambda number=number: len(done) == number + 1, "the job")  # type: ignore[misc]
    assert set(done) <= {"test-page-0", "test-page-1"}


def test_nothing_runs_after_stop(workers: Workers) -> None:
    done: list[int] = []
    workers.stop(5.0)
    workers.submit(1, lambda: done.append(1))
    assert done == []


def test_without_threads_the_job_waits(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(workers_module, "spawn", refuse)
        workers.submit(1, lambda: done.append(1))
    workers.submit(2, lambda: done.append(2))
    eventually(lambda: done == [1, 2], "both jobs")
