"""``svcproxy bundle`` with a daemon: it is complete, has no secrets, and no names if they are hashed."""

import base64
import json
import re
import ssl
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from svcproxy.admin.client import AdminClient, AdminError
from testbed.apiserver.server import FakeApiServer
from testbed.netns import NetNS
from testbed.waiting import eventually
from tests.fakes import objects
from tests.http.conftest import TLS, plugin

pytestmark = pytest.mark.kernel

TOKEN, PASSWORD, ENVIRONMENT = "t0ken-4711-do-not-tell", "pa55word-4711", "env-4711-do-not-tell"
ANNOTATION, STDERR = "annotated-4711-password", "stderr-4711-do-not-tell"
KEY = (TLS / "client.pem").read_text()
KEY_LINES = [line for line in KEY.splitlines() if len(line) == 64]
SECRETS = (TOKEN, PASSWORD, ENVIRONMENT, ANNOTATION, STDERR, *KEY_LINES[:20])
NAMES = ("web", "shop-4711", "web-slice-4711", "port-4711", "node-1", "zone-4711")


@pytest.fixture
def api(space: NetNS) -> Iterator[FakeApiServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    context.load_verify_locations(TLS / "ca.pem")
    server = FakeApiServer(tls=context)
    space.run("ip", "link", "set", "lo", "up")
    port = {"name": "port-4711", "port": 80, "protocol": "TCP"}
    service = objects.service("web", namespace="shop-4711", ports=[port])
    found = objects.endpoint_slice("web-slice-4711", addresses=("10.244.0.7",), ports=[port])
    found["metadata"]["namespace"] = "shop-4711"
    node = objects.node("node-1")
    node["metadata"]["labels"] = {"topology.kubernetes.io/zone": "zone-4711"}
    for obj in (service, found, node):
        obj["metadata"]["annotations"] = {
            "kubectl.kubernetes.io/last-applied-configuration": f'{{"password":"{ANNOTATION}"}}',
            "example.com/token": ANNOTATION,
        }
    server.put_many([service, found, node])
    space.call(server.start)
    yield server
    server.stop()


def kubeconfig(api: FakeApiServer, folder: Path, user: dict[str, Any], url: str = "") -> Path:
    path = api.write_kubeconfig(folder / "kubeconfig", user=user)
    config = json.loads(path.read_text())
    cluster = config["clusters"][0]["cluster"]
    cluster["certificate-authority"] = str(TLS / "ca.pem")
    cluster["server"] = url or cluster["server"]
    path.write_text(json.dumps(config))
    return path


@contextmanager
def daemon(space: NetNS, folder: Path, config: Path) -> Iterator[str]:
    """Run a daemon; yield its socket."""
    socket = str(folder / "admin" / "admin.sock")
    command = [sys.executable, "-m", "svcproxy", f"--kubeconfig={config}", "--proxy-mode=nftables"]
    command += ["--hostname-override=node-1", f"--svcproxy-admin-socket={socket}", "-v=4"]
    command += ["--conntrack-max-per-core=0", "--oom-score-adj=0"]
    with (folder / "daemon.log").open("wb") as log:
        process = space.popen(command, output=log.fileno())
        try:
            eventually(lambda: answers(socket), "an answer at the socket", timeout=30)
            yield socket
        finally:
            process.kill()
            process.wait()


def answers(socket: str) -> bool:
    try:
        AdminClient(socket).status()
    except AdminError:
        return False
    return True


def synced(socket: str) -> bool:
    families = AdminClient(socket).status().families
    return bool(families) and all(about.synced and not about.pending for about in families.values())


def bundle(space: NetNS, socket: str, folder: Path, *more: str) -> dict[str, str]:
    """Write a bundle; return the texts of its files by name, and the list of names as one."""
    path = folder / "bundle.tar.gz"
    command = [sys.executable, "-m", "svcproxy", "bundle", f"--file={path}", f"--socket={socket}"]
    done = space.call(
        lambda: subprocess.run(
            [*command, *more], capture_output=True, text=True, check=True, timeout=120
        )
    )
    found = {"stdout": done.stdout}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read().decode()
            found["folder"] = member.name.partition("/")[0]
    return found


def assert_no_secrets(files: dict[str, str]) -> None:
    forms = {form for secret in SECRETS for form in (secret, encoded(secret))}
    leaks = [(name, form) for name, text in files.items() for form in forms if form in text]
    assert not leaks


def encoded(secret: str) -> str:
    """The part of a secret's base64 form that does not depend on what follows it."""
    return base64.b64encode(secret.encode()).decode()[: len(secret) // 3 * 4]


def test_a_bundle_has_everything_but_secrets(
    space: NetNS, api: FakeApiServer, tmp_path: Path
) -> None:
    api.behaviour.token = TOKEN
    data = base64.b64encode(KEY.encode()).decode()
    user = {"token": TOKEN, "client-certificate-data": data, "client-key-data": data}
    with daemon(space, tmp_path, kubeconfig(api, tmp_path, user)) as socket:
        eventually(lambda: synced(socket), "a sync", timeout=30)
        files = bundle(space, socket, tmp_path)
    assert_no_secrets(files)
    assert files.keys() >= {
        "version.json",
        "status.json",
        "kernel.txt",
        "log.txt",
        "metrics.txt",
        "repairs.json",
        *(f"objects/{kind}.jsonl" for kind in ("Service", "EndpointSlice", "Node", "ServiceCIDR")),
        *(f"desired/{family}-nft.txt" for family in ("IPv4", "IPv6")),
        "kernel/nft.txt",
        "kernel/read-IPv4-nft.txt",
        "diff.json",
    }
    assert "errors.txt" not in files
    assert json.loads(files["diff.json"])["node"]["families"][0]["kernelAgrees"] is True
    assert json.loads(files["status.json"])["flags"]["proxy-mode"] == "nftables"
    assert "web" in files["objects/Service.jsonl"]
    assert files["kernel/read-IPv4-nft.txt"] == files["desired/IPv4-nft.txt"]
    for part in ("desired/IPv4-nft.txt", "kernel/nft.txt"):
        assert 'comment "shop-4711/web:port-4711"' in files[part]
    assert "sync.done" in files["log.txt"]
    assert "kubeproxy_sync_proxy_rules_duration_seconds_count" in files["metrics.txt"]


def test_the_daemons_objects_are_rendered_and_completed(
    space: NetNS, api: FakeApiServer, tmp_path: Path
) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "svcproxy", *arguments, f"--socket={socket}"]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    with daemon(space, tmp_path, kubeconfig(api, tmp_path, {})) as socket:
        eventually(lambda: synced(socket), "a sync", timeout=30)
        files = bundle(space, socket, tmp_path)
        desired = files["desired/IPv4-nft.txt"] + files["desired/IPv6-nft.txt"]
        assert run("render", "--tool=nft") == desired
        others = run("render", "--mode=all", "shop-4711/web")
        assert run("completion", "services") == "shop-4711/web\n"
    assert '--comment "shop-4711/web:port-4711 cluster IP"' in others
    assert "-A -t 10.96.0.10:80 -s rr" in others


def test_a_password_in_the_url_is_not_in_a_bundle(
    space: NetNS, api: FakeApiServer, tmp_path: Path
) -> None:
    url = api.url.replace("://", f"://admin:{PASSWORD}@")
    user = {"username": "admin", "password": PASSWORD, "token": TOKEN}
    with daemon(space, tmp_path, kubeconfig(api, tmp_path, user, url)) as socket:
        assert_no_secrets(bundle(space, socket, tmp_path))


def test_a_credential_plugin_is_not_in_a_bundle(
    space: NetNS, api: FakeApiServer, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    user = plugin(tmp_path, token_from=token)
    user["exec"]["env"] = [{"name": "CLOUD_PASSWORD", "value": ENVIRONMENT}]
    script = tmp_path / "plugin"
    script.write_text(
        script.read_text().replace(
            "'not logged in'", f"'password: {STDERR} ' + __import__('os').environ['CLOUD_PASSWORD']"
        )
    )
    api.behaviour.token = TOKEN
    with daemon(space, tmp_path, kubeconfig(api, tmp_path, user)) as socket:
        eventually(lambda: synced(socket), "a sync", timeout=30)
        assert_no_secrets(bundle(space, socket, tmp_path))
        token.write_text("")  # from now on the plugin fails, and says why
        api.behaviour.token = "another"
        api.cut()
        eventually(lambda: "credentials" in AdminClient(socket).log(), timeout=30)
        assert_no_secrets(bundle(space, socket, tmp_path))


def test_hashed_names_are_in_no_file(space: NetNS, api: FakeApiServer, tmp_path: Path) -> None:
    with daemon(space, tmp_path, kubeconfig(api, tmp_path, {"token": TOKEN})) as socket:
        eventually(lambda: synced(socket), "a sync", timeout=30)
        files = bundle(space, socket, tmp_path, "--hash-names")
    leaks = [
        (part, name, text[max(0, text.find(name) - 80) : text.find(name) + 80])
        for part, text in files.items()
        for name in NAMES
        if re.search(rf"(?<![\w-]){name}(?![\w-])", text.replace(str(tmp_path), ""))
    ]
    assert not leaks
    (comment,) = set(re.findall(r'comment "(\w+/\w+:\w+)"', files["desired/IPv4-nft.txt"]))
    assert comment in files["kernel/nft.txt"]
    namespace, name = comment.partition(":")[0].split("/")
    assert f'["{namespace}","{name}"]' in files["objects/Service.jsonl"]
