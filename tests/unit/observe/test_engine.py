"""The engine's thread reports its progress, for /livez."""

import threading
from contextlib import closing

import pytest

from svcproxy import limits, threads
from svcproxy.observe.client_connections import ClientLimits
from svcproxy.observe.engine import Engine
from testbed.waiting import eventually


def test_a_stalled_iteration_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "THREAD_STEP_SECONDS", 0.0)
    hung, release = threading.Event(), threading.Event()

    def on_wakeup() -> float:
        hung.set()
        release.wait(10)
        return float("inf")

    class Closing(Engine):
        def close(self) -> None:
            self.stop(5.0)

    with closing(Closing("engine-under-test", ClientLimits(), on_wakeup)) as engine:
        engine.start()
        engine.wake()
        assert hung.wait(5)
        eventually(lambda: "engine-under-test" in threads.stalled(), "the stalled thread")
        release.set()
        eventually(lambda: "engine-under-test" not in threads.stalled(), "its recovery")
