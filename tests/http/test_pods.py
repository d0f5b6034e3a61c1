"""``svcproxy trace`` asks an API server for a pod, over real HTTP."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from svcproxy.config import Config, from_settings
from svcproxy.explain.core.trace_arguments import QuestionError, UnknownNameError
from svcproxy.explain.pods import Pod, PodForbiddenError, decode_pod, read_pod
from svcproxy.model.names import NamespacedName

NAME = NamespacedName("default", "client")
POD = {
    "kind": "Pod",
    "spec": {"nodeName": "node1", "hostNetwork": True, "containers": []},
    "status": {"podIP": "10.244.1.7", "podIPs": [{"ip": "10.244.1.7"}, {"ip": "fd00::7"}]},
}


class _Handler(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, tuple[int, bytes]]] = {}

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path, (404, b"{}"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def api_server(status: int = 200, body: bytes = b"") -> Iterator[Config]:
    path = "/api/v1/namespaces/default/pods/client"
    handler = type("Handler", (_Handler,), {"answers": {path: (status, body)}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield config(f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()


def config(master: str) -> Config:
    return from_settings({"master": master}).config


def test_a_pod() -> None:
    with api_server(body=json.dumps(POD).encode()) as settings:
        assert read_pod(NAME, settings) == Pod(("10.244.1.7", "fd00::7"), "node1", True)  # noqa: FBT003


def test_an_unknown_pod() -> None:
    with api_server() as settings, pytest.raises(UnknownNameError, match="no pod default/other"):
        read_pod(NamespacedName("default", "other"), settings)


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_may_not_read_pods(status: int) -> None:
    with api_server(status) as settings, pytest.raises(PodForbiddenError, match="give the address"):
        read_pod(NAME, settings)


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b""), (200, b"<html>"), (200, b'{"status": {}}'), (200, b'{"status": {"podIPs": 7}}')],
)
def test_answers_that_are_no_pod(status: int, body: bytes) -> None:
    with api_server(status, body) as settings, pytest.raises(QuestionError):
        read_pod(NAME, settings)


def test_an_api_server_that_does_not_listen() -> None:
    with pytest.raises(QuestionError, match="give the address of pod default/client"):
        read_pod(NAME, config("http://127.0.0.1:9"))


def test_addresses_are_canonical() -> None:
    body = b'{"status": {"podIPs": [{"ip": "FD00:0::7"}, {"ip": "nonsense"}]}}'
    assert decode_pod(body, NAME).addresses == ("fd00::7",)
