"""The kubeconfig's settings for the server: certificates, TLS name, proxy."""

import base64
import json
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from svcproxy.kube.credentials import ClientSettings
from testbed.apiserver.server import FakeApiServer
from tests.fakes.sink import eventually
from tests.fakes.tunnel import Tunnel
from tests.http.conftest import TLS, Follow, kubeconfig, plugin

CLIENT = str(TLS / "client.pem")
LIBRARY = {"kubernetes", "pydantic", "aiohttp", "requests", "oauthlib"}
SCRIPT = f"""
import sys
from pathlib import Path
import svcproxy.daemon, svcproxy.kube.api, svcproxy.kube.events
from svcproxy.kube.client import Client
from svcproxy.kube.credentials import ClientSettings

settings = ClientSettings(kubeconfig=sys.argv[1], service_account=Path(sys.argv[2]))
client = Client(settings)
with client.get("/api/v1/services", {{}}, stream=False, idle_seconds=10) as answer:
    print(answer.status, *sorted({LIBRARY!r} & set(sys.modules)))
"""


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def with_cluster(settings: ClientSettings, **changes: Any) -> ClientSettings:
    """Change the cluster of a kubeconfig; ``None`` removes a field."""
    path = Path(settings.kubeconfig)
    config = json.loads(path.read_text())
    cluster = config["clusters"][0]["cluster"]
    cluster |= {name.replace("_", "-"): value for name, value in changes.items()}
    path.write_text(json.dumps(config))
    return settings


def service_account(
    server: FakeApiServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> ClientSettings:
    (folder / "token").write_text("secret")
    shutil.copy(TLS / "ca.pem", folder / "ca.crt")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", server.host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    return ClientSettings(service_account=folder)


@pytest.mark.parametrize("means", ["token", "certificate", "service account", "plugin"])
def test_only_plugins_load_the_kubernetes_library(
    tls_server: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, means: str
) -> None:
    (tmp_path / "given").write_text("secret")
    if means == "certificate":
        assert tls_server.tls is not None
        tls_server.tls.verify_mode = ssl.CERT_REQUIRED
    else:
        tls_server.behaviour.token = "secret"
    users: dict[str, dict[str, Any]] = {
        "token": {"token": "secret"},
        "certificate": {"client-certificate": CLIENT, "client-key": CLIENT},
        "plugin": plugin(tmp_path, token_from=tmp_path / "given"),
    }
    if means in users:
        settings = kubeconfig(tls_server, tmp_path, users[means])
    else:
        settings = service_account(tls_server, tmp_path, monkeypatch)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, settings.kubeconfig, str(settings.service_account)],
        check=True,
        capture_output=True,
        text=True,
    )
    status, *loaded = done.stdout.split()
    assert status == "200"
    assert ("kubernetes" in loaded) == (means == "plugin")
    assert bool(loaded) == (means == "plugin")


def test_certificates_inside_the_kubeconfig(
    tls_server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    assert tls_server.tls is not None
    tls_server.tls.verify_mode = ssl.CERT_REQUIRED
    client = encoded(TLS / "client.pem")
    user = {"client-certificate-data": client, "client-key-data": client}
    settings = kubeconfig(tls_server, tmp_path, user)
    # Data take precedence over a file.
    with_cluster(
        settings,
        certificate_authority=CLIENT,
        certificate_authority_data=encoded(TLS / "ca.pem"),
    )
    sink = follow(settings)
    tls_server.cut()  # new connections need them again
    tls_server.delete("Service", "default", "web")
    sink.wait(lambda: sink.names() == set())


def test_a_new_ca_certificate_is_used_for_the_next_connection(
    tls_server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    shutil.copy(CLIENT, tmp_path / "ca.pem")
    settings = kubeconfig(tls_server, tmp_path, {})
    with_cluster(settings, certificate_authority="./ca.pem")
    with structlog.testing.capture_logs() as logs:
        sink = follow(settings, synced=False)
        eventually(lambda: any("CERTIFICATE_VERIFY" in str(entry.get("reason")) for entry in logs))
    assert sink.syncs == []
    shutil.copy(TLS / "ca.pem", tmp_path / "ca.pem")
    sink.wait_synced()


def test_tls_server_name_is_checked_instead_of_the_host(
    tls_server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    settings = kubeconfig(tls_server, tmp_path, {})
    url = tls_server.url.replace("127.0.0.1", "localhost")
    with_cluster(settings, server=url, tls_server_name="fake")
    assert follow(settings).names() == {"web"}


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_insecure_skip_tls_verify(
    tls_server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    settings = kubeconfig(tls_server, tmp_path, {})
    with_cluster(settings, certificate_authority="", insecure_skip_tls_verify=True)
    assert follow(settings).names() == {"web"}


def test_basic_authentication(server: FakeApiServer, follow: Follow, tmp_path: Path) -> None:
    user = {"username": "jo", "password": "s:e"}
    path = server.write_kubeconfig(tmp_path / "kubeconfig", user=user)
    follow(ClientSettings(kubeconfig=str(path)))
    sent = {request.headers.get("authorization") for request in server.received}
    assert sent == {f"Basic {base64.b64encode(b'jo:s:e').decode()}"}


@pytest.mark.parametrize("named_in", ["kubeconfig", "environment"])
def test_an_http_proxy(
    tls_server: FakeApiServer,
    follow: Follow,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named_in: str,
) -> None:
    tls_server.behaviour.token = "secret"
    settings = kubeconfig(tls_server, tmp_path, {"token": "secret"})
    with Tunnel() as tunnel:
        if named_in == "kubeconfig":
            with_cluster(settings, proxy_url=f"http://jo:s%40e@{tunnel.place}")
        else:
            monkeypatch.setenv("HTTPS_PROXY", tunnel.place)
        assert follow(settings).names() == {"web"}
        assert tunnel.asked
        login = f"Basic {base64.b64encode(b'jo:s@e').decode()}"
        for head in tunnel.asked:
            assert head.startswith(f"CONNECT {tls_server.host}:{tls_server.port} ")
            assert (login in head) == (named_in == "kubeconfig")
            assert "secret" not in head
