"""The wish to stop."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from svcproxy.stop import Stop


@pytest.fixture
def stop() -> Iterator[Stop]:
    made = Stop()
    before = signal.signal(signal.SIGUSR1, lambda *_: made.set())
    yield made
    signal.signal(signal.SIGUSR1, before)


def test_nothing_is_wished_at_first(stop: Stop) -> None:
    assert not stop.wait(0.01)


def test_a_signal_ends_a_wait_and_all_later_ones(stop: Stop) -> None:
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    assert stop.wait()
    assert stop.wait()


@pytest.mark.timeout(20)
def test_a_signal_may_come_at_any_point_of_a_wait(stop: Stop) -> None:
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
