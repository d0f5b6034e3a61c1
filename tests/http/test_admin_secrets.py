"""What a daemon tells about itself contains no credentials, even refused ones."""

import subprocess
import sys
from pathlib import Path

import msgspec

from svcproxy.admin.client import AdminClient, AdminError
from svcproxy.model.names import Kind
from testbed.apiserver.server import FakeApiServer
from testbed.waiting import eventually
from tests.fakes import objects
from tests.http.conftest import plugin

SECRETS = ("s3cr3t-one", "s3cr3t-two", "s3cr3t-password")

DAEMON = """
import sys
from svcproxy.config import Config
from svcproxy.daemon import run
from svcproxy.modes import mode_spec

config = Config(
    kubeconfig=sys.argv[1],
    master=sys.argv[2],
    hostname_override="node-1",
    metrics_bind_address=None,
    healthz_bind_address=None,
    admin_socket=sys.argv[3],
    verbosity=9,
)
sys.exit(run(config, spec=mode_spec("recording")))
"""


def everything(client: AdminClient) -> str:
    """All answers of the daemon as text; empty if it does not answer yet."""
    try:
        found = [client.log(), client.metrics(), str(msgspec.to_builtins(client.status()))]
        found += [str(obj) for kind in Kind for obj in client.objects(kind)]
        found.append(str(client.repairs()))
    except AdminError:
        return ""
    return "\n".join(found)


def test_no_answer_has_a_token_or_password(server: FakeApiServer, tmp_path: Path) -> None:
    """Tokens that work, that are refused, and that a credential plugin prints and complains about."""
    token = tmp_path / "token"
    token.write_text(SECRETS[0])
    server.behaviour.token = SECRETS[0]
    server.put(objects.service("web"))
    path = server.write_kubeconfig(
        tmp_path / "kubeconfig", user={"exec": plugin(tmp_path, token_from=token)["exec"]}
    )
    master = server.url.replace("://", f"://admin:{SECRETS[2]}@")
    socket = tmp_path / "admin.sock"
    client = AdminClient(str(socket))
    command = [sys.executable, "-c", DAEMON, str(path), master, str(socket)]
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(command, stderr=log)
    try:
        eventually(lambda: "default" in everything(client), timeout=30)
        server.behaviour.token = SECRETS[1]  # what the daemon has is refused from now on
        server.cut()
        eventually(lambda: "watch.interrupted" in everything(client), timeout=30)
        token.write_text("")  # the plugin fails
        eventually(lambda: "credentials.failed" in everything(client), timeout=30)
        said = everything(client) + (tmp_path / "log").read_text()
    finally:
        daemon.kill()
        daemon.wait()
    assert [secret for secret in SECRETS if secret in said] == []
