"""The stop request, set by signals at any moment."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from svcproxy.stop_signal import StopSignal
from testbed.waiting import eventually


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    before = signal.getsignal(signal.SIGUSR1)
    made = StopSignal()
    made.install(signal.SIGUSR1)
    yield made
    made.close()
    signal.signal(signal.SIGUSR1, before)


def test_there_is_no_stop_request_at_first(stop: StopSignal) -> None:
    assert not stop.wait(0.01)


def test_signals_do_not_block_when_the_pipe_is_full(stop: StopSignal) -> None:
    for _ in range(10_000):
        signal.raise_signal(signal.SIGUSR1)
    assert stop.wait()


def test_a_signal_ends_a_wait_and_all_later_ones(stop: StopSignal) -> None:
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    assert stop.wait()
    assert stop.wait()


@pytest.mark.timeout(20)
def test_a_signal_may_arrive_at_any_point_of_a_wait(stop: StopSignal) -> None:
    """With ``threading.Event`` this hangs at the first point within its lock."""
    lines = 0

    def interrupt(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            signal.raise_signal(signal.SIGUSR1)
        return interrupt

    sys.settrace(interrupt)
    try:
        assert stop.wait(5)
    finally:
        sys.settrace(None)
    assert lines


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_signal_may_arrive_between_the_last_check_for_signals_and_the_wait() -> None:
    """No Python code runs at that point, so the test stops many processes at about that moment."""
    chance = random.Random(1)
    for _ in range(300):
        ready, notify = os.pipe()
        child = os.fork()
        if child == 0:
            stop = StopSignal()
            stop.install(signal.SIGUSR1)
            os.write(notify, b"!")
            stop.wait()
            os._exit(0)
        os.read(ready, 1)
        until = time.perf_counter() + chance.uniform(0, 100e-6)
        while time.perf_counter() < until:
            pass
        os.kill(child, signal.SIGUSR1)
        try:
            eventually(lambda: os.waitpid(child, os.WNOHANG) == (child, 0), "its end", every=0.001)  # noqa: B023
        except AssertionError:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        finally:
            os.close(ready)
            os.close(notify)
