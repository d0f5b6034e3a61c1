import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from svcproxy.kube.api import KubernetesSource
from svcproxy.kube.credentials import ConnectionSettings
from testbed.apiserver.server import FakeApiServer
from tests.fakes import objects
from tests.fakes.sink import RecordingSink

Follow = Callable[..., RecordingSink]
TLS = Path(__file__).parent.parent / "fakes" / "tls"


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    with FakeApiServer() as server:
        yield server


@pytest.fixture
def tls_server() -> Iterator[FakeApiServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    context.load_verify_locations(TLS / "ca.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    with FakeApiServer(tls=context) as server:
        server.put(objects.service("web"))
        yield server


@pytest.fixture
def follow(server: FakeApiServer) -> Iterator[Follow]:
    """Start sources that follow the server into sinks; they are stopped at the end."""
    sources: list[KubernetesSource] = []

    def start(
        settings: ConnectionSettings | None = None, *, synced: bool = True, **options: object
    ) -> RecordingSink:
        sink = RecordingSink()
        settings = settings or ConnectionSettings(master=server.url)
        source = KubernetesSource(settings, "node-1", **options)  # type: ignore[arg-type]
        sources.append(source)
        source.start(sink)
        if synced:
            sink.wait_synced()
        return sink

    yield start
    for source in sources:
        source.stop()
