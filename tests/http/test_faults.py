"""Connection failures delay updates, and have no other effect."""

import threading
import time

import pytest
import structlog.testing

from svcproxy.kube.api import KubernetesSource
from svcproxy.kube.credentials import ClientSettings
from svcproxy.model.names import Kind
from testbed.apiserver.server import FakeApiServer
from tests.fakes import objects
from tests.fakes.sink import RecordingSink, eventually
from tests.http.conftest import Follow


def following_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("watch-")]


def test_an_interrupted_watch_resumes(server: FakeApiServer, follow: Follow) -> None:
    server.put(objects.service("web"))
    sink = follow()
    server.cut()
    server.put(objects.service("api"))
    sink.wait(lambda: sink.names() == {"web", "api"})
    assert len(sink.updates) == 2
    assert (Kind.SERVICE, "cut") in sink.restarts
    assert sink.deletes == []


@pytest.mark.parametrize("watch_list", [True, False])
@pytest.mark.parametrize("gone_as_event", [True, False])
def test_a_deletion_missed_by_a_compaction_is_detected(
    server: FakeApiServer, follow: Follow, *, watch_list: bool, gone_as_event: bool
) -> None:
    server.behaviour.gone_as_event = gone_as_event
    server.put_many([objects.service("kept"), objects.service("changed"), objects.service("gone")])
    sink = follow(watch_list=watch_list)
    sink.updates.clear()
    server.outage()
    server.delete("Service", "default", "gone")
    server.put(objects.service("changed", ports=[{"port": 81}]))
    server.put(objects.service("new"))
    server.compact()
    server.restore()
    sink.wait(lambda: sink.names() == {"kept", "changed", "new"})
    # The first relist delivers unchanged objects again, which has no effect.
    names = sorted(str(obj.name) for obj in sink.updates)
    assert names == ["default/changed", "default/kept", "default/new"]
    assert (Kind.SERVICE, "gone") in sink.restarts
    assert len(sink.syncs) == 3


def test_an_expired_continue_token_falls_back_to_a_full_list(
    server: FakeApiServer, follow: Follow
) -> None:
    server.put_many([objects.service(f"s{number}") for number in range(6)])
    server.behaviour.compact_between_pages = True
    sink = follow(watch_list=False, page_size=2)
    assert len(sink.names()) == 6
    queries = [r.query for r in server.received if r.kind == "Service" and r.verb == "list"]
    assert [("limit" in query, "continue" in query) for query in queries] == [
        (True, False),
        (True, True),
        (False, False),
    ]


def test_a_silent_watch_is_restarted(server: FakeApiServer, follow: Follow) -> None:
    server.put(objects.service("web"))
    sink = follow(ClientSettings(master=server.url, idle_seconds=0.3))
    server.behaviour.stall = True
    server.put(objects.service("api"))
    sink.wait(lambda: (Kind.SERVICE, "idle") in sink.restarts)
    server.behaviour.stall = False
    sink.wait(lambda: sink.names() == {"web", "api"})
    assert sink.deletes == []


def test_bookmarks_keep_a_quiet_connection_alive(server: FakeApiServer, follow: Follow) -> None:
    server.put_many([objects.service("web"), objects.endpoint_slice()])
    server.behaviour.bookmark_seconds = 0.05
    sink = follow(ClientSettings(master=server.url, idle_seconds=0.5))
    watches = server.count("Service", "watch")
    time.sleep(0.8)  # longer than the limit: no restart may happen in that time
    assert sink.restarts == []
    assert server.count("Service", "watch") == watches


def test_after_the_initial_events_the_read_timeout_is_that_of_a_watch(
    server: FakeApiServer, follow: Follow
) -> None:
    server.put_many([objects.service("web"), objects.endpoint_slice()])
    sink = follow(ClientSettings(master=server.url, initial_seconds=0.2))
    time.sleep(0.5)  # longer than the limit: no restart may happen in that time
    assert sink.restarts == []
    assert server.count("Service", "watch") == 1


def test_an_initial_stream_without_end_falls_back_to_a_list(
    server: FakeApiServer, follow: Follow
) -> None:
    server.behaviour.ignore_watch_list = True
    server.put(objects.service("web"))
    sink = follow(ClientSettings(master=server.url, initial_seconds=0.2))
    assert sink.names() == {"web"}
    assert server.count("Service", "list") == 1


def test_watches_that_end_immediately_are_restarted_with_backoff(
    server: FakeApiServer, follow: Follow
) -> None:
    server.behaviour.watch_seconds = 0.001
    follow()
    time.sleep(0.7)  # the rate of requests is measured over this time
    assert server.count("Service", "watch") < 20


def test_an_outage_deletes_nothing_and_updates_resume_afterwards(
    server: FakeApiServer, follow: Follow
) -> None:
    server.put(objects.service("web"))
    sink = follow()
    server.outage()
    sink.wait(lambda: len([1 for _, reason in sink.restarts if reason == "cut"]) >= 4)
    assert sink.names() == {"web"}
    server.put(objects.service("api"))
    server.restore()
    sink.wait(lambda: sink.names() == {"web", "api"})
    assert sink.deletes == []
    assert len(sink.updates) == 2


def test_a_server_that_starts_later_is_used(server: FakeApiServer, follow: Follow) -> None:
    server.put(objects.service("web"))
    server.outage()
    sink = follow(synced=False)
    server.restore()
    sink.wait_synced()
    assert sink.names() == {"web"}


def test_requests_to_failing_servers_are_retried(server: FakeApiServer, follow: Follow) -> None:
    server.put(objects.service("web"))
    server.behaviour.status = 503
    sink = follow(synced=False)
    eventually(lambda: server.count("Service", "watch") >= 2)
    assert sink.syncs == []
    server.behaviour.status = 0
    sink.wait_synced()
    assert sink.names() == {"web"}


def test_watches_that_end_regularly_are_not_logged(server: FakeApiServer, follow: Follow) -> None:
    server.behaviour.watch_seconds = 0.1
    server.put_many([objects.service("web"), objects.endpoint_slice()])
    with structlog.testing.capture_logs() as logs:
        sink = follow()
        eventually(lambda: server.count("Service", "watch") >= 4)
    server.put(objects.service("api"))
    sink.wait(lambda: sink.names() == {"web", "api"})
    assert sink.restarts == []
    assert [entry for entry in logs if entry["log_level"] == "warning"] == []


def test_a_failing_sink_receives_everything_again(server: FakeApiServer, follow: Follow) -> None:
    server.put(objects.service("web"))
    sink = follow()
    with structlog.testing.capture_logs() as logs:
        sink.fail_next_update = RuntimeError("full")
        server.put(objects.service("api"))
        sink.wait(lambda: sink.names() == {"web", "api"})
    assert any(entry["event"] == "watch.crashed" for entry in logs)
    assert sink.deletes == []


@pytest.mark.parametrize("fault", ["stall", "outage", "slow"])
def test_stop_is_quick_in_every_state_of_the_server(server: FakeApiServer, fault: str) -> None:
    source = KubernetesSource(ClientSettings(master=server.url), "node-1")
    if fault == "stall":
        server.behaviour.stall = True
    elif fault == "slow":
        server.behaviour.delay = 1.5
    else:
        server.outage()
    source.start(RecordingSink())
    if fault != "outage":
        eventually(lambda: len(server.received) == 3)
    began = time.monotonic()
    source.stop()
    assert time.monotonic() - began < 1.0
    assert following_threads() == []
