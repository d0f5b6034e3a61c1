"""All objects of a healthy API server arrive, whichever list protocol it supports."""

import threading
import time

import pytest

from svcproxy import __version__
from svcproxy.kube.api import KubernetesSource
from svcproxy.kube.credentials import ClientSettings
from svcproxy.model.names import Kind, NamespacedName
from testbed.apiserver.server import FakeApiServer
from testbed.waiting import eventually
from tests.fakes import objects
from tests.fakes.sink import RecordingSink
from tests.http.conftest import Follow


@pytest.fixture(params=["stream", "list", "refuses streams", "ignores streams"])
def dialect(request: pytest.FixtureRequest, server: FakeApiServer) -> dict[str, bool]:
    """Return the source's options for each way of getting the initial state."""
    if request.param == "refuses streams":
        server.behaviour.watch_list = False
    if request.param == "ignores streams":
        server.behaviour.ignore_watch_list = True
        server.behaviour.bookmark_seconds = 0.05
    return {"watch_list": request.param != "list"}


def test_all_objects_are_delivered_before_synced_and_changes_after(
    server: FakeApiServer, follow: Follow, dialect: dict[str, bool]
) -> None:
    server.put(objects.service("web"))
    server.put(objects.endpoint_slice("web-1", addresses=("10.0.0.1",)))
    server.put(objects.node("node-1"))
    server.put(objects.node("node-2"))
    sink = follow(**dialect)
    assert sink.names() == {"web"}
    assert sink.names(Kind.ENDPOINT_SLICE) == {"web-1"}
    assert sink.names(Kind.NODE) == {"node-1"}
    assert len(sink.syncs) == 3
    server.put(objects.service("api", namespace="other"))
    server.delete("EndpointSlice", "default", "web-1")
    sink.wait(lambda: sink.names() == {"web", "api"} and not sink.names(Kind.ENDPOINT_SLICE))
    assert sink.restarts == []
    assert sink.problems == []


def test_an_empty_cluster_is_synced(follow: Follow, dialect: dict[str, bool]) -> None:
    assert follow(**dialect).objects == {}


def test_long_lists_are_requested_in_pages(server: FakeApiServer, follow: Follow) -> None:
    server.put_many([objects.service(f"s{number:02}") for number in range(25)])
    sink = follow(watch_list=False, page_size=10)
    assert len(sink.names()) == 25
    assert server.count("Service", "list") == 3
    assert server.count("Service", "watch") <= 1


def test_lists_are_compressed_and_watches_are_not(server: FakeApiServer, follow: Follow) -> None:
    server.put_many(
        [
            objects.endpoint_slice(f"s{number}", addresses=tuple(f"10.0.0.{i}" for i in range(99)))
            for number in range(50)
        ]
    )
    sink = follow(watch_list=False)
    assert len(sink.names(Kind.ENDPOINT_SLICE)) == 50
    encodings = {(r.verb, r.headers["accept-encoding"]) for r in server.received}
    assert encodings <= {("list", "gzip"), ("watch", "identity")}


def test_the_selectors_are_those_of_kube_proxy(server: FakeApiServer, follow: Follow) -> None:
    other = objects.service("other-proxy")
    other["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "x"}
    headless = objects.endpoint_slice("headless")
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = ""
    server.put_many([other, headless, objects.service("none", clusterIP="None")])
    sink = follow()
    assert sink.objects == {}
    selectors = {
        (r.kind, r.query.get("labelSelector"), r.query.get("fieldSelector"))
        for r in server.received
    }
    assert selectors == {
        ("Service", "!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None"),
        ("EndpointSlice", "!service.kubernetes.io/headless", None),
        ("Node", None, "metadata.name=node-1"),
    }
    assert {r.headers["user-agent"] for r in server.received} == {f"svcproxy/{__version__}"}
    assert {r.headers["accept"] for r in server.received} == {"application/json"}


@pytest.mark.parametrize("watch_list", [True, False])
def test_an_unsupported_field_selector_is_dropped(
    server: FakeApiServer, follow: Follow, *, watch_list: bool
) -> None:
    server.behaviour.field_selectors = False
    server.put(objects.service("web"))
    server.put(objects.service("none", clusterIP="None"))
    assert follow(watch_list=watch_list).names() == {"web"}


def test_a_service_assigned_to_another_proxy_is_deleted(
    server: FakeApiServer, follow: Follow
) -> None:
    server.put(objects.service("web"))
    sink = follow()
    given = objects.service("web")
    given["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "x"}
    server.put(given)
    sink.wait(lambda: sink.names() == set())


def test_a_service_that_becomes_an_external_name_is_deleted(
    server: FakeApiServer, follow: Follow
) -> None:
    server.put(objects.service("web"))
    sink = follow()
    server.put(objects.service("web", type="ExternalName"))
    sink.wait(lambda: sink.deletes == [(Kind.SERVICE, NamespacedName("default", "web"))])


@pytest.mark.parametrize("watch_list", [True, False])
def test_a_malformed_object_is_reported_once_and_its_repair_is_delivered(
    server: FakeApiServer, follow: Follow, *, watch_list: bool
) -> None:
    server.put(objects.service("good"))
    server.put(objects.service("bad", ports=[{"port": "http"}]))
    sink = follow(watch_list=watch_list)
    assert sink.names() == {"good"}
    server.put(objects.service("good", ports=[{"port": 0}]))
    sink.wait(lambda: len(sink.problems) == 2)
    assert sorted(map(str, sink.problems)) == [
        "Service default/bad: spec.ports[0].port: expected int, got str",
        "Service default/good: spec.ports[0].port: 0 is not a port",
    ]
    assert sink.names() == {"good"}
    server.compact()
    server.cut()
    server.put(objects.service("bad"))
    sink.wait(lambda: sink.names() == {"good", "bad"})
    assert len(sink.problems) == 2
    assert sink.deletes == []


def test_stop_is_quick_during_idle_watches(server: FakeApiServer) -> None:
    source = KubernetesSource(ClientSettings(master=server.url), "node-1")
    sink = RecordingSink()
    source.start(sink)
    sink.wait_synced()
    source.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("watch-")]


def test_stop_before_start_and_twice_is_harmless(server: FakeApiServer) -> None:
    source = KubernetesSource(ClientSettings(master=server.url), "node-1")
    source.stop()
    source.start(RecordingSink())
    source.stop()
    source.stop()


def test_every_request_is_reported_for_metrics(server: FakeApiServer, follow: Follow) -> None:
    reported: list[tuple[str, str, str, float]] = []
    settings = ClientSettings(
        master=server.url,
        backoff_seconds=0.05,
        on_request=lambda *request: reported.append(request),
    )
    follow(settings)
    host = f"{server.host}:{server.port}"
    assert {request[:3] for request in reported} == {("GET", host, "200")}
    assert all(0 <= seconds < 10 for *_, seconds in reported)
    server.behaviour.status = 500
    server.cut()
    eventually(lambda: ("GET", host, "500") in {request[:3] for request in reported}, "a refusal")
    server.outage()
    eventually(lambda: ("GET", host, "<error>") in {request[:3] for request in reported}, "silence")


def test_a_password_in_the_url_is_not_reported(server: FakeApiServer, follow: Follow) -> None:
    reported: set[str] = set()
    url = server.url.replace("://", "://admin:secret@")
    follow(ClientSettings(master=url, on_request=lambda _method, host, *_: reported.add(host)))
    assert reported == {f"{server.host}:{server.port}"}


def test_how_far_each_watch_is(server: FakeApiServer, dialect: dict[str, bool]) -> None:
    sink = RecordingSink()
    settings = ClientSettings(master=server.url, empty_list_retry_seconds=0.05)
    source = KubernetesSource(settings, "node-1", watch_list=dialect["watch_list"])
    assert source.watches() == {}
    server.put(objects.service("web"))
    before = time.time()
    source.start(sink)
    try:
        sink.wait_synced()
        listed = source.watches()[Kind.SERVICE]
        assert listed.synced
        assert before <= listed.heard <= time.time()
        version = str(server.put(objects.service("api")))
        eventually(lambda: source.watches()[Kind.SERVICE].resource_version == version)
        assert int(listed.resource_version) < int(version)
    finally:
        source.stop()
