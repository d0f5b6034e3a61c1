"""Repeated failures create no reference cycles: the garbage collector runs rarely."""

import gc
import socket
from collections.abc import Iterator

import pytest

from svcproxy.kube.client import Client, TransportError
from svcproxy.kube.core.outputs import Malformed
from svcproxy.kube.core.reflector import Reflector
from svcproxy.kube.credentials import ClientSettings
from svcproxy.model.names import Kind

ATTEMPTS = 50


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_refused_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client = Client(ClientSettings(master=f"http://127.0.0.1:{port}"))
    gc.collect()
    for _ in range(ATTEMPTS):
        with pytest.raises(TransportError, match="refused") as caught:
            client.get("/api", {}, stream=False, idle_seconds=1.0)
        del caught
    assert gc.collect() < ATTEMPTS


def test_malformed_objects() -> None:
    reflector = Reflector(Kind.SERVICE)
    reflector.next_request()
    line = b'{"type":"ADDED","object":{"metadata":{"name":"web","resourceVersion":"%d"},"spec":7}}'
    gc.collect()
    for version in range(ATTEMPTS):
        output = reflector.watch_lines([line % version])
        assert [type(effect) for effect in output.effects] == [Malformed]
    del output
    assert gc.collect() < ATTEMPTS
