"""Every kind of credentials, against a server that checks them."""

import ssl
import threading
from pathlib import Path

import pytest
import structlog.testing

from svcproxy.kube.api import KubernetesSource
from svcproxy.kube.credentials import ClientSettings
from testbed.apiserver.server import FakeApiServer
from tests.fakes import objects
from tests.fakes.sink import RecordingSink, eventually
from tests.http.conftest import TLS, Follow, kubeconfig, plugin


def test_a_token_in_the_kubeconfig(
    tls_server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    tls_server.behaviour.token = "secret"
    assert follow(kubeconfig(tls_server, tmp_path, {"token": "secret"})).names() == {"web"}


def test_the_kubeconfig_of_the_fake_server_works(
    server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    server.behaviour.token = "secret"
    path = server.write_kubeconfig(tmp_path / "kubeconfig")
    follow(ClientSettings(kubeconfig=str(path)))


def test_a_new_token_in_the_kubeconfig_is_used_after_a_401(
    server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    server.behaviour.token = "old"
    path = server.write_kubeconfig(tmp_path / "kubeconfig")
    sink = follow(ClientSettings(kubeconfig=str(path), backoff_seconds=0.3))
    server.behaviour.token = "new"
    path.write_text("half written: [")
    server.cut()
    server.put(objects.service("web"))
    with structlog.testing.capture_logs() as logs:
        eventually(lambda: any(entry["event"] == "credentials.failed" for entry in logs))
    server.write_kubeconfig(path)
    sink.wait(lambda: sink.names() == {"web"})
    assert sink.deletes == []


def test_a_token_file_is_read_for_every_request(
    server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    server.behaviour.token = "first"
    # A relative path is relative to the kubeconfig.
    path = server.write_kubeconfig(tmp_path / "kubeconfig", user={"tokenFile": "token"})
    sink = follow(ClientSettings(kubeconfig=str(path)))
    token.write_text("second\n")
    server.behaviour.token = "second"
    server.cut()
    server.put(objects.service("web"))
    sink.wait(lambda: sink.names() == {"web"})

    def last_tokens() -> set[str]:
        """Return the token of the last request for each kind."""
        last = {r.kind: r.headers["authorization"] for r in list(server.received)}
        return set(last.values())

    eventually(lambda: last_tokens() == {"Bearer second"})


def test_requests_resume_when_a_missing_token_file_is_back(
    server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    server.behaviour.token = "first"
    path = server.write_kubeconfig(tmp_path / "kubeconfig", user={"tokenFile": str(token)})
    with structlog.testing.capture_logs() as logs:
        sink = follow(ClientSettings(kubeconfig=str(path)))
        token.unlink()
        server.cut()
        eventually(lambda: any("token file" in str(entry.get("reason")) for entry in logs))
    token.write_text("first")
    server.put(objects.service("web"))
    sink.wait(lambda: sink.names() == {"web"})


def test_a_token_file_takes_precedence_over_a_token(
    server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("right")
    server.behaviour.token = "right"
    user = {"token": "wrong", "tokenFile": str(tmp_path / "token")}
    path = server.write_kubeconfig(tmp_path / "kubeconfig", user=user)
    follow(ClientSettings(kubeconfig=str(path)))


def test_a_client_certificate(tls_server: FakeApiServer, follow: Follow, tmp_path: Path) -> None:
    context = tls_server.tls
    assert context is not None
    context.verify_mode = ssl.CERT_REQUIRED
    client = str(TLS / "client.pem")
    user = {"client-certificate": client, "client-key": client}
    assert follow(kubeconfig(tls_server, tmp_path, user)).names() == {"web"}


def test_stop_is_quick_with_tls(tls_server: FakeApiServer, tmp_path: Path) -> None:
    source = KubernetesSource(kubeconfig(tls_server, tmp_path, {}), "node-1")
    sink = RecordingSink()
    source.start(sink)
    sink.wait_synced()
    source.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("watch-")]


def test_a_server_with_the_wrong_certificate_is_refused(
    tls_server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    settings = kubeconfig(tls_server, tmp_path, {})
    text = Path(settings.kubeconfig).read_text().replace("ca.pem", "client.pem")
    Path(settings.kubeconfig).write_text(text)
    with structlog.testing.capture_logs() as logs:
        sink = follow(settings, synced=False)
        eventually(lambda: any("CERTIFICATE_VERIFY" in str(entry.get("reason")) for entry in logs))
    assert sink.syncs == []


def test_master_overrides_the_server_of_the_kubeconfig(
    server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    server.behaviour.token = "secret"
    path = server.write_kubeconfig(tmp_path / "kubeconfig")
    path.write_text(path.read_text().replace(server.url, "http://127.0.0.1:1"))
    follow(ClientSettings(kubeconfig=str(path), master=server.url + "/"))


def test_a_credential_plugin_is_run_again_after_a_401(
    server: FakeApiServer, follow: Follow, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    server.behaviour.token = "first"
    user = plugin(tmp_path, token_from=token, command="./plugin")
    path = server.write_kubeconfig(tmp_path / "kubeconfig", user=user)
    sink = follow(ClientSettings(kubeconfig=str(path)))
    token.write_text("second")
    server.behaviour.token = "second"
    server.cut()
    server.put(objects.service("web"))
    sink.wait(lambda: sink.names() == {"web"})


def test_the_service_account_of_a_pod(
    tls_server: FakeApiServer, follow: Follow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "ca.crt").write_bytes((TLS / "ca.pem").read_bytes())
    tls_server.behaviour.token = "first"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", tls_server.host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(tls_server.port))
    sink = follow(ClientSettings(service_account=tmp_path))
    (tmp_path / "token").write_text("second\n")
    tls_server.behaviour.token = "second"
    tls_server.cut()
    tls_server.put(objects.service("api"))
    sink.wait(lambda: sink.names() == {"web", "api"})
