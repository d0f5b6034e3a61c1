import json
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svcproxy.kube.api import KubernetesSource
from svcproxy.kube.credentials import ClientSettings
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
    """Start sources that deliver the server's objects to sinks; they are stopped at the end."""
    sources: list[KubernetesSource] = []

    def start(
        settings: ClientSettings | None = None, *, synced: bool = True, **options: object
    ) -> RecordingSink:
        sink = RecordingSink()
        settings = settings or ClientSettings(master=server.url, empty_list_retry_seconds=0.05)
        source = KubernetesSource(settings, "node-1", **options)  # type: ignore[arg-type]
        sources.append(source)
        source.start(sink)
        if synced:
            sink.wait_synced()
        return sink

    yield start
    for source in sources:
        source.stop()


def kubeconfig(server: FakeApiServer, folder: Path, user: dict[str, Any]) -> ClientSettings:
    path = server.write_kubeconfig(folder / "kubeconfig", user=user)
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"]["certificate-authority"] = str(TLS / "ca.pem")
    path.write_text(json.dumps(config))
    return ClientSettings(kubeconfig=str(path))


def plugin(folder: Path, *, token_from: Path, command: str | None = None) -> dict[str, Any]:
    """Write a credential plugin that prints a file, and a kubeconfig that uses it."""
    script = folder / "plugin"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib, sys\n"
        f"token = pathlib.Path({str(token_from)!r}).read_text()\n"
        "if not token: sys.exit('not logged in')\n"
        "version = 'client.authentication.k8s.io/v1'\n"
        "print(json.dumps({'apiVersion': version, 'kind': 'ExecCredential',"
        " 'status': {'token': token}}))\n"
    )
    script.chmod(0o755)
    exec_ = {"apiVersion": "client.authentication.k8s.io/v1", "command": command or str(script)}
    return {"exec": exec_}
