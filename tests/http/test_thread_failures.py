"""A thread that fails to handle an error ends the process."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog

from svcproxy.kube.api import KubernetesSource
from svcproxy.kube.credentials import ClientSettings
from svcproxy.model.names import Kind
from svcproxy.observe.health import HealthState
from svcproxy.observe.metrics import Metrics
from svcproxy.sync.fanout import Fanout
from testbed.apiserver.server import FakeApiServer
from testbed.waiting import eventually
from tests.fakes import objects
from tests.fakes.sink import RecordingSink

SCRIPT = """
import sys, threading
from pathlib import Path
from svcproxy.kube import events
from svcproxy.kube import watch_thread as follower
from svcproxy.kube.api import KubernetesSource
from svcproxy.kube.credentials import ClientSettings
from svcproxy.observe import log
from tests.fakes.sink import RecordingSink

log.configure("text", 0)

thread, url = sys.argv[1:]

class Mute:
    def __getattr__(self, _):
        raise MemoryError("the handler has no memory either")

def fail(*_):
    follower._log = events._log = Mute()
    raise MemoryError("injected")

settings = ClientSettings(master=url)
sink = RecordingSink()
KubernetesSource(settings, "node-1").start(sink)
sink.wait_synced()
if thread == "events":
    events._Sender._attempt = fail
else:
    follower.Reflector.watch_lines = fail
print("synced", flush=True)  # the next event meets the failure
if thread == "events":
    events.KubernetesEvents(settings, "node-1").node("Starting", "")
sys.stdin.read()
"""


@pytest.mark.parametrize("thread", ["watch-Service", "events"])
def test_a_thread_that_fails_ends_the_process(server: FakeApiServer, thread: str) -> None:
    server.put(objects.service("web"))
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, thread, server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "synced\n"
            server.put(objects.service("web2"))
            assert process.wait(30) == 1
            assert process.stderr is not None
            assert f"fatal: thread {thread} failed: MemoryError" in process.stderr.read()
        finally:
            process.kill()


def test_a_restarted_watch_is_logged_once(server: FakeApiServer) -> None:
    metrics = Metrics()
    health = HealthState(sync_period=30.0, clock=time.monotonic, wall=time.time)
    source = KubernetesSource(ClientSettings(master=server.url), "node-1")

    def restarts() -> float:
        return sum(float(metrics.watch_restarts.labels(kind)._value.get()) for kind in Kind)

    with structlog.testing.capture_logs() as logs:
        source.start(Fanout((), metrics, health))
        eventually(lambda: sum(log["event"] == "source.synced" for log in logs) >= 3)
        server.cut()
        eventually(lambda: restarts() >= 1)
        source.stop()
    assert sum(log["event"] == "watch.restarted" for log in logs) == restarts()


def test_a_failed_synced_call_is_repeated(
    server: FakeApiServer,
) -> None:
    class Forgetful(RecordingSink):
        failures = 1

        def synced(self, kind: Kind) -> None:
            if kind is Kind.SERVICE and self.failures:
                self.failures -= 1
                raise MemoryError
            super().synced(kind)

    server.put(objects.service("web"))
    sink = Forgetful()
    source = KubernetesSource(ClientSettings(master=server.url, backoff_seconds=0.1), "node-1")
    source.start(sink)
    try:
        eventually(lambda: Kind.SERVICE in sink.syncs)
    finally:
        source.stop()
