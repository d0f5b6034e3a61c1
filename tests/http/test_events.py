import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from structlog.testing import capture_logs

from svcproxy.kube.credentials import ClientSettings
from svcproxy.kube.event_recorder import EventRecorder, LoggingRecorder
from svcproxy.kube.events import EventLimits, KubernetesEvents
from svcproxy.model.names import NamespacedName

WEB = NamespacedName("shop", "web")
UID = "6f1c2f6e-0000-4000-8000-000000000001"
FAST = EventLimits(first_pause=0.001)


@dataclass
class Api:
    """An API server that has one Service and accepts Events."""

    url: str = ""
    uid: str | None = UID
    events: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    tokens: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)  # for the next POSTs, then 201
    open_gate: threading.Event = field(default_factory=threading.Event)

    def take(self, path: str, event: dict[str, Any]) -> int:
        self.open_gate.wait(10)
        self.paths.append(path)
        status = self.answers.pop(0) if self.answers else 201
        if status == 201:
            self.events.append(event)
        return status

    def services(self, path: str) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(path)
        assert parts.path == "/api/v1/namespaces/shop/services"
        assert parse_qs(parts.query)["fieldSelector"] == ["metadata.name=web"]
        if self.uid is None:
            return 403, {"kind": "Status"}
        items = [{"metadata": {"name": "web", "uid": self.uid}}] if self.uid else []
        metadata = {"resourceVersion": "7"}
        head = {"kind": "ServiceList", "apiVersion": "v1", "metadata": metadata}
        return 200, {**head, "items": items}


@pytest.fixture
def api() -> Iterator[Api]:
    state = Api()
    state.open_gate.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            self._reply(*state.services(self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/json"
            state.agents.add(self.headers["User-Agent"])
            state.tokens.append(self.headers.get("Authorization", ""))
            event = json.loads(body)
            self._reply(state.take(self.path, event), event)

        def _reply(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield state
    state.open_gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make(api: Api) -> Iterator[Callable[..., KubernetesEvents]]:
    made: list[KubernetesEvents] = []

    def make(node: str = "n1", limits: EventLimits = FAST, **more: Any) -> KubernetesEvents:
        settings = more.pop("settings", ClientSettings(master=api.url))
        recorder = KubernetesEvents(settings, node, limits=limits, **more)
        made.append(recorder)
        return recorder

    yield make
    for recorder in made:
        recorder.stop()


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.005)


Make = Callable[..., KubernetesEvents]


def test_an_event_about_a_service(api: Api, make: Make) -> None:
    make().service(WEB, "AddressConflict", "203.0.113.5 80/TCP is taken", action="Claim")
    wait_for(lambda: api.events)
    event = api.events[0]
    assert api.paths == ["/apis/events.k8s.io/v1/namespaces/shop/events"]
    name = event["metadata"].pop("name")
    assert name.startswith("web.")
    assert len(name) == len("web.") + 16
    assert event.pop("eventTime").endswith("Z")
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": "shop"},
        "reportingController": "kube-proxy",
        "reportingInstance": "svcproxy-n1",
        "action": "Claim",
        "reason": "AddressConflict",
        "regarding": {
            "apiVersion": "v1",
            "kind": "Service",
            "namespace": "shop",
            "name": "web",
            "uid": UID,
        },
        "note": "203.0.113.5 80/TCP is taken",
        "type": "Warning",
    }
    assert next(iter(api.agents)).startswith("svcproxy/")


def test_an_event_about_the_node(api: Api, make: Make) -> None:
    make().node("Starting", "")
    wait_for(lambda: api.events)
    event = api.events[0]
    assert api.paths == ["/apis/events.k8s.io/v1/namespaces/default/events"]
    assert event["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"}
    assert (event["action"], event["type"]) == ("StartKubeProxy", "Normal")


@pytest.mark.parametrize("uid", ["", None])
def test_an_event_is_sent_without_a_uid_if_the_lookup_fails(
    api: Api, make: Make, uid: str | None
) -> None:
    api.uid = uid
    make().service(WEB, "R", "note")
    wait_for(lambda: api.events)
    assert "uid" not in api.events[0]["regarding"]


def test_the_same_event_is_sent_once_in_five_minutes(api: Api, make: Make) -> None:
    clock = Clock()
    recorder = make(clock=clock)
    recorder.service(WEB, "R", "note")
    clock.now += 299
    recorder.service(WEB, "R", "note")
    recorder.service(WEB, "R", "another note")
    recorder.service(WEB, "R2", "note")
    wait_for(lambda: len(api.events) == 3)
    clock.now += 2
    recorder.service(WEB, "R", "note")
    wait_for(lambda: len(api.paths) == 4)


def test_the_number_of_remembered_events_is_bounded(api: Api, make: Make) -> None:
    recorder = make(limits=EventLimits(remembered=2))
    for note in ("1", "2", "3", "3", "1"):
        recorder.service(WEB, "R", note)
    wait_for(lambda: len(api.events) == 4)
    assert [e["note"] for e in api.events] == ["1", "2", "3", "1"]


def test_equal_events_of_two_nodes_have_the_same_name(api: Api, make: Make) -> None:
    for node in ("n1", "n2"):
        make(node, EventLimits(dedup_seconds=1e6)).service(WEB, "R", "note")
    make("n3").service(WEB, "R", "another note")
    wait_for(lambda: len(api.events) == 3)
    names = [e["metadata"]["name"] for e in api.events]
    assert len(set(names)) == 2


def test_a_conflict_counts_as_sent(api: Api, make: Make) -> None:
    api.answers = [409]
    recorder = make()
    recorder.service(WEB, "R", "note")
    recorder.service(WEB, "R", "next")
    wait_for(lambda: api.events)
    recorder.service(WEB, "R", "note")
    recorder.service(WEB, "R", "last")
    wait_for(lambda: len(api.events) == 2)
    assert [e["note"] for e in api.events] == ["next", "last"]
    assert recorder.dropped == 0


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_temporary_failures_are_retried(api: Api, make: Make, status: int) -> None:
    api.answers = [status, status]
    make().service(WEB, "R", "note")
    wait_for(lambda: api.events)
    assert len(api.paths) == 3


def test_new_credentials_are_used_after_a_401(api: Api, make: Make, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"

    def write(token: str) -> None:
        config = {
            "clusters": [{"name": "c", "cluster": {"server": api.url}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        kubeconfig.write_text(json.dumps(config))

    write("old")
    api.answers = [401]
    api.open_gate.clear()
    make(settings=ClientSettings(kubeconfig=str(kubeconfig))).service(WEB, "R", "note")
    wait_for(lambda: api.tokens)
    write("new")
    api.open_gate.set()
    wait_for(lambda: api.events)
    assert api.tokens == ["Bearer old", "Bearer new"]


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_a_permanent_refusal_is_not_retried(api: Api, make: Make, status: int) -> None:
    api.answers = [status]
    recorder = make()
    with capture_logs() as lines:
        recorder.service(WEB, "R", "refused")
        recorder.service(WEB, "R", "next")
        wait_for(lambda: api.events)
    assert [e["note"] for e in api.events] == ["next"]
    assert recorder.dropped == 1
    assert [(e["log_level"], e["error"]) for e in lines] == [("debug", f"HTTP {status}")]


def test_a_dropped_event_may_be_recorded_again(api: Api, make: Make) -> None:
    api.answers = [403]
    recorder = make()
    recorder.service(WEB, "R", "note")
    wait_for(lambda: recorder.dropped)
    recorder.service(WEB, "R", "note")
    wait_for(lambda: api.events)


def test_an_unreachable_api_server_drops_the_event(make: Make) -> None:
    settings = ClientSettings(master="http://127.0.0.1:1")
    recorder = make(settings=settings)
    with capture_logs() as lines:
        recorder.service(WEB, "R", "note")
        wait_for(lambda: recorder.dropped == 1)
    assert {line["log_level"] for line in lines} == {"debug"}


def test_unusable_settings_only_drop_the_event(make: Make, tmp_path: Path) -> None:
    recorder = make(settings=ClientSettings(kubeconfig=str(tmp_path / "none")))
    recorder.node("Starting", "")
    wait_for(lambda: recorder.dropped == 1)


def test_a_full_queue_drops_the_oldest_event(api: Api, make: Make) -> None:
    api.open_gate.clear()
    recorder = make(limits=EventLimits(queue=3))
    recorder.service(WEB, "R", "first")
    wait_for(lambda: api.tokens)  # it is under way
    begun = time.monotonic()
    for number in range(10):
        recorder.service(WEB, "R", str(number))
    assert time.monotonic() - begun < 0.5
    assert recorder.dropped == 7
    api.open_gate.set()
    wait_for(lambda: len(api.events) == 4)
    assert [e["note"] for e in api.events] == ["first", "7", "8", "9"]


def test_the_rate_is_limited(api: Api, make: Make) -> None:
    recorder = make(limits=EventLimits(burst=2, interval=0.1))
    begun = time.monotonic()
    for number in range(5):
        recorder.service(WEB, "R", str(number))
    wait_for(lambda: len(api.events) == 5)
    assert time.monotonic() - begun >= 0.28


def test_texts_are_truncated_to_the_limits_of_the_api(api: Api, make: Make) -> None:
    make("n" * 253).node("R" * 200, "ü" * 600, action="A" * 200)
    wait_for(lambda: api.events)
    event = api.events[0]
    assert event["note"] == "ü" * 512
    assert [len(event[k]) for k in ("reason", "action", "reportingInstance")] == [128] * 3
    assert len(event["metadata"]["name"]) == 253


def test_stop_aborts_a_request_in_flight(api: Api, make: Make) -> None:
    api.open_gate.clear()
    recorder = make()
    recorder.service(WEB, "R", "note")
    wait_for(lambda: api.tokens)
    begun = time.monotonic()
    recorder.stop()
    assert time.monotonic() - begun < 0.9
    assert "events" not in {thread.name for thread in threading.enumerate()}
    recorder.service(WEB, "R", "too late")
    recorder.stop()


def test_stop_ends_a_backoff_wait(api: Api, make: Make) -> None:
    recorder = make(limits=EventLimits(burst=1, interval=60))
    recorder.service(WEB, "R", "1")
    recorder.service(WEB, "R", "2")
    wait_for(lambda: api.events)
    begun = time.monotonic()
    recorder.stop()
    assert time.monotonic() - begun < 0.9
    assert len(api.events) == 1


def test_stop_without_any_event(make: Make) -> None:
    make().stop()


def test_without_an_api_server_events_are_logged() -> None:
    recorder: EventRecorder = LoggingRecorder()
    with capture_logs() as lines:
        recorder.service(WEB, "R", "note", action="Listen")
        recorder.node("Starting", "")
        recorder.stop()
    assert [(e["kind"], e["name"], e["reason"], e["type"], e["action"]) for e in lines] == [
        ("Service", "shop/web", "R", "Warning", "Listen"),
        ("Node", "", "Starting", "Normal", "StartKubeProxy"),
    ]
