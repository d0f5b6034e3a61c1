"""One hostile object or answer of the API server affects no other object: lists and watches."""

import json
import socket
from typing import Any

import pytest
import structlog.testing

from svcproxy import limits
from svcproxy.kube.credentials import ClientSettings
from svcproxy.model.names import Kind
from svcproxy.model.objects import EndpointSlice
from svcproxy.refusals import REFUSALS
from testbed.apiserver.server import FakeApiServer
from tests.fakes import objects
from tests.fakes.sink import eventually
from tests.http.conftest import Follow


def with_managed(obj: dict[str, Any], fields: bytes) -> bytes:
    metadata = {**obj["metadata"], "resourceVersion": "@VERSION@", "managedFields": ["@FIELDS@"]}
    managed = b'{"manager":"x","fieldsV1":' + fields + b"}"
    return json.dumps({**obj, "metadata": metadata}).encode().replace(b'"@FIELDS@"', managed)


HOSTILE = {
    "deep": b'{"f:a":' * 1500 + b"{}" + b"}" * 1500,
    "very deep": b"[" * 100_000 + b"]" * 100_000,
    "lone surrogate": rb'"\ud800"',
    "invalid UTF-8": b'"\xff\xfe"',
    "huge integer": b"9" * 5000,
}


@pytest.mark.parametrize("watch_list", [True, False])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_field_that_is_not_read_has_no_effect(
    server: FakeApiServer, follow: Follow, what: str, *, watch_list: bool
) -> None:
    bad = objects.service("bad")
    server.put(objects.service("a"))
    server.put(bad, with_managed(bad, HOSTILE[what]))
    server.put(objects.service("z"))
    sink = follow(watch_list=watch_list)
    assert sink.names() == {"a", "bad", "z"}
    eventually(lambda: server.count("Service", "watch"))
    watches = server.count("Service", "watch")
    server.put(objects.service("bad", ports=[{"port": 81}]))
    server.put(bad, with_managed(bad, HOSTILE[what]))
    server.put(objects.service("later"))
    sink.wait(lambda: "later" in sink.names())
    assert sink.problems == []
    assert server.count("Service", "watch") == watches


@pytest.mark.parametrize("watch_list", [True, False])
@pytest.mark.parametrize("label", [rb'"\ud800"', b'"\xff"', b"[" * 2000 + b"]" * 2000, b'"\x01"'])
def test_a_hostile_field_that_is_read_affects_only_its_object(
    server: FakeApiServer, follow: Follow, label: bytes, *, watch_list: bool
) -> None:
    bad = objects.service("bad")
    bad["metadata"]["labels"] = {"x": "@LABEL@"}
    bad["metadata"]["resourceVersion"] = "@VERSION@"
    body = json.dumps(bad).encode().replace(b'"@LABEL@"', label)
    server.put(objects.service("a"))
    server.put(bad, body)
    server.put(objects.service("z"))
    sink = follow(watch_list=watch_list)
    assert sink.names() >= {"a", "z"}
    server.put(bad, body)
    eventually(lambda: server.count("Service", "watch"))
    watches = server.count("Service", "watch")
    server.put(objects.service("later"))
    sink.wait(lambda: "later" in sink.names())
    assert server.count("Service", "watch") == watches
    repaired = label.startswith(b'"') and label != b'"\x01"'
    assert ("bad" in sink.names()) is repaired
    assert len(sink.problems) == (0 if repaired else 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b'{"status":"maintenance"}',
        b'{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[]}',
        b'{"kind":"ServiceList","apiVersion":"v1","metadata":{},"items":[]}',
        b'{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"9"}}',
        b"[]",
        b"null",
    ],
)
@pytest.mark.parametrize("watch_list", [True, False])
def test_an_answer_of_another_kind_is_not_taken_for_a_list(
    server: FakeApiServer, follow: Follow, answer: bytes, *, watch_list: bool
) -> None:
    server.put(objects.service("web"))
    server.behaviour.answers["Service"] = answer
    sink = follow(watch_list=watch_list, synced=False)
    sink.wait(lambda: {Kind.NODE, Kind.ENDPOINT_SLICE} <= set(sink.syncs))
    eventually(lambda: len([1 for r in server.received if r.kind == "Service"]) >= 4)
    assert Kind.SERVICE not in sink.syncs
    server.behaviour.answers.clear()
    sink.wait_synced(20)
    assert sink.names() == {"web"}


@pytest.mark.parametrize("watch_list", [True, False])
def test_an_empty_list_is_requested_again(
    server: FakeApiServer, follow: Follow, *, watch_list: bool
) -> None:
    server.put(objects.service("web"))
    sink = follow(watch_list=watch_list)
    stored = dict(server.store.tables["Service"].objects)
    server.outage()
    server.store.tables["Service"].objects.clear()
    server.store.advance()
    lists = server.count("Service", "list")
    with structlog.testing.capture_logs() as logs:
        server.restore()
        eventually(lambda: any(entry["event"] == "list.empty" for entry in logs))
        server.store.tables["Service"].objects.update(stored)
        eventually(lambda: server.count("Service", "list") > lists)
        server.put(objects.service("later"))
        sink.wait(lambda: "later" in sink.names())
    assert sink.deletes == []


def test_a_second_empty_list_is_accepted(server: FakeApiServer, follow: Follow) -> None:
    server.put(objects.service("web"))
    sink = follow(ClientSettings(master=server.url, empty_list_retry_seconds=0.05))
    server.outage()
    server.delete("Service", "default", "web")
    server.compact()
    server.restore()
    sink.wait(lambda: sink.names() == set())


@pytest.mark.parametrize("watch_list", [True, False])
def test_a_first_empty_list_does_not_count_as_synced(
    server: FakeApiServer, follow: Follow, *, watch_list: bool
) -> None:
    settings = ClientSettings(master=server.url, empty_list_retry_seconds=60)
    sink = follow(settings, watch_list=watch_list, synced=False)
    sink.wait(lambda: Kind.NODE in sink.syncs)
    eventually(lambda: any(r.kind == "Service" for r in server.received))
    assert Kind.SERVICE not in sink.syncs


@pytest.mark.parametrize("watch_list", [True, False])
def test_a_reused_resource_version_with_other_content_is_delivered(
    server: FakeApiServer, follow: Follow, *, watch_list: bool
) -> None:
    server.put(objects.service("web"))
    server.put(objects.endpoint_slice(addresses=("10.0.0.1",)))
    sink = follow(watch_list=watch_list)

    def address() -> str:
        (piece,) = (obj for obj in sink.objects.values() if isinstance(obj, EndpointSlice))
        return piece.endpoints[0].address

    for octet in (2, 3, 4):
        server.outage()
        server.store.rewrite(objects.endpoint_slice(addresses=(f"10.0.0.{octet}",)))
        server.store.advance()
        server.restore()
        sink.wait(lambda octet=octet: address() == f"10.0.0.{octet}", 20)  # type: ignore[misc]


@pytest.mark.parametrize("watch_list", [True, False])
def test_an_oversized_watch_event_affects_only_its_object(
    server: FakeApiServer, follow: Follow, monkeypatch: pytest.MonkeyPatch, *, watch_list: bool
) -> None:
    monkeypatch.setattr(limits, "WATCH_LINE_BYTES", 50_000)
    before = REFUSALS.totals()["watch", "line_bytes"]
    long = objects.service("long")
    long["metadata"]["annotations"] = {"a": "x" * 300_000}
    server.put(objects.service("a"))
    server.put(objects.service("long"))
    sink = follow(watch_list=watch_list)
    eventually(lambda: server.count("Service", "watch"))
    watches = server.count("Service", "watch")
    server.put(long)
    server.put(objects.service("b"))
    sink.wait(lambda: "b" in sink.names())
    server.put(long)
    server.put(objects.service("c"))
    sink.wait(lambda: "c" in sink.names())
    assert sink.names() == {"a", "b", "c", "long"}
    assert [str(problem.name) for problem in sink.problems] == ["default/long"]
    assert "longer than 50000 bytes" in sink.problems[0].reason
    assert REFUSALS.totals()["watch", "line_bytes"] == before + 2
    assert server.count("Service", "watch") == watches
    if watch_list:  # in a stream of initial events as well: the last valid state stays
        server.outage()
        server.store.advance()
        server.restore()
        server.put(objects.service("d"))
        sink.wait(lambda: "d" in sink.names())
        assert "long" in sink.names()
    server.delete("Service", "default", "long")
    sink.wait(lambda: "long" not in sink.names())


def test_a_gzip_bomb_is_not_decompressed(
    server: FakeApiServer, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIST_PAGE_BYTES", 1 << 20)
    server.put(objects.service("web"))
    server.put(objects.endpoint_slice())
    server.behaviour.padding = 64 << 20
    before = REFUSALS.totals()["api_response", "body_bytes"]
    with structlog.testing.capture_logs() as logs:
        sink = follow(watch_list=False, synced=False)
        eventually(
            lambda: any("larger than 1048576 bytes" in entry.get("reason", "") for entry in logs)
        )
        server.behaviour.padding = 0
        sink.wait_synced(20)
    assert sink.names() == {"web"}
    assert REFUSALS.totals()["api_response", "body_bytes"] > before


def test_oversized_pages_are_requested_with_fewer_objects(
    server: FakeApiServer, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIST_PAGE_BYTES", 50_000)
    for number in range(20):
        obj = objects.service(f"s{number:02}")
        obj["metadata"]["annotations"] = {"a": "x" * 12_000}
        server.put(obj)
    sink = follow(watch_list=False, page_size=16)
    assert len(sink.names()) == 20
    sizes = [
        int(r.query["limit"]) for r in server.received if (r.kind, r.verb) == ("Service", "list")
    ]
    assert sizes[:3] == [16, 8, 4]


def test_a_list_that_arrives_too_slowly_is_abandoned(
    server: FakeApiServer, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIST_SECONDS", 0.2)
    server.put(objects.service("web"))
    server.put(objects.endpoint_slice())
    server.behaviour.trickle = 0.02
    with structlog.testing.capture_logs() as logs:
        sink = follow(watch_list=False, synced=False)
        eventually(lambda: any("took longer" in entry.get("reason", "") for entry in logs), 20)
        server.behaviour.trickle = 0
        sink.wait_synced(20)
    assert sink.names() == {"web"}


def test_a_response_head_that_arrives_too_slowly_is_abandoned(
    follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RESPONSE_HEAD_SECONDS", 0.2)
    before = REFUSALS.totals()["api_response", "head_seconds"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        follow(ClientSettings(master=url), synced=False)
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")

            def given_up() -> bool:
                try:
                    connection.sendall(b"x")
                except OSError:
                    return True
                return False

            eventually(given_up)
        assert REFUSALS.totals()["api_response", "head_seconds"] > before
