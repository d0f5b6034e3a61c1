"""``kubectl svcproxy`` in a cluster of three real daemons.

The program ``kubectl`` of the test runs the real commands in the namespaces of the nodes.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from svcproxy import __version__
from svcproxy.admin.client import AdminClient
from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.model.names import Kind
from svcproxy.model.objects import EndpointSlice
from testbed import manifests as m
from testbed.apiserver.server import FakeApiServer
from testbed.cluster import Cluster, Host
from testbed.daemon import Daemon
from testbed.waiting import eventually

pytestmark = pytest.mark.kernel

KUBECTL = Path(__file__).parent.parent / "fakes" / "kubectl"
FLAGS = {
    # Legacy tables send no events: damage stays until the next comparison.
    "svcproxy-iptables-variant": "legacy",
    "iptables-sync-period": "10m",
    "manifests": None,
}
VIP = "10.96.0.10"


class Nodes:
    """Three nodes with a daemon each, and ``kubectl``."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.cluster = stack.enter_context(Cluster(nodes=3, pods=1))
        client = self.cluster.client
        self.api = client.netns.call(lambda: FakeApiServer(host=client.ipv4).start())
        stack.callback(self.api.stop)
        for node in self.cluster.nodes:
            self.api.put(m.node(node.name, addresses=[node.ipv4, node.ipv6]))
        ports = [m.port(80, name="http", target=8080, node_port=30080)]
        policy = {"type": "NodePort", "externalTrafficPolicy": "Local"}
        self.service = m.service("web", [VIP], ports, **policy)
        self.api.put(self.service)
        self.serve(self.cluster.pods[:2])
        flags = {**FLAGS, "master": self.api.url}
        self.daemons = [Daemon(node, flags=flags) for node in self.cluster.nodes]
        for daemon in self.daemons:
            stack.enter_context(daemon)
        self._file, self.log = folder / "cluster.json", folder / "kubectl.log"
        self._write()

    def serve(self, pods: list[Any]) -> None:
        """Let these pods be the endpoints of the Service."""
        endpoints = [m.endpoint(pod.ipv4, node=pod.node) for pod in pods]
        self.version = self.api.put(m.endpoint_slice(self.service, endpoints))

    def _write(self) -> None:
        pods = [
            {
                "metadata": {"name": f"svcproxy-{daemon.node.name}"},
                "spec": {
                    "nodeName": daemon.node.name,
                    "containers": [{"name": "svcproxy", "image": "registry/svcproxy:0.1.0"}],
                },
                "status": {"phase": "Running"},
            }
            for daemon in self.daemons
        ]
        places = {
            f"svcproxy-{daemon.node.name}": {
                "netns": daemon.node.netns.name,
                "flags": [f"--socket={daemon.admin_socket}"],
            }
            for daemon in self.daemons
        }
        program = [sys.executable, "-m", "svcproxy"]
        found = {"pods": pods, "exec": places, "svcproxy": program, "log": str(self.log)}
        self._file.write_text(json.dumps(found))

    def known(self, node: int) -> int:
        """Return the number of endpoints that a daemon knows."""
        client = AdminClient(str(self.daemons[node].admin_socket))
        slices = [s for s in client.objects(Kind.ENDPOINT_SLICE) if isinstance(s, EndpointSlice)]
        return sum(len(each.endpoints) for each in slices)

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run ``kubectl svcproxy``."""
        path = f"{KUBECTL}:{os.environ['PATH']}"
        command = [
            sys.executable,
            "-c",
            "import sys; from svcproxy.kubectl.main import main; sys.exit(main())",
        ]
        return subprocess.run(
            [*command, *arguments],
            env={**os.environ, "PATH": path, "SVCPROXY_TEST_CLUSTER": str(self._file)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def lines(self, code: ExitCode, *arguments: str) -> list[str]:
        """Run ``kubectl svcproxy``, which must end with this code; return the lines of its output."""
        done = self.run(*arguments)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert not done.stderr
        return done.stdout.splitlines()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(tmp_path_factory.mktemp("cluster"), stack)


@contextmanager
def without_api(nodes: Nodes, node: Host) -> Iterator[None]:
    """Drop all packets of the API server to a node."""
    client, route = nodes.cluster.client.netns, ("blackhole", f"{node.ipv4}/32")
    client.run("ip", "route", "add", *route)
    try:
        yield
    finally:
        client.run("ip", "route", "del", *route)


def test_nodes_that_agree_are_one_line(nodes: Nodes) -> None:
    assert nodes.lines(ExitCode.OK, "diff") == ["all 3 nodes agree"]


def test_a_node_that_is_cut_off_is_behind(nodes: Nodes) -> None:
    node2 = nodes.cluster.nodes[1]
    before = nodes.version
    with without_api(nodes, node2):
        nodes.serve(nodes.cluster.pods)
        eventually(lambda: (nodes.known(0), nodes.known(2)) == (3, 3), "the change", timeout=30)
        line, rest = nodes.lines(ExitCode.DIFFERENT, "diff")
        assert line.startswith(f"node2 is behind: 1 EndpointSlices at rv {before}, the others have")
        assert f"at {nodes.version}" in line
        assert "last word from the API server" in line
        assert rest == "node1, node3 agree"
        lines = nodes.lines(ExitCode.DIFFERENT, "show", "default/web")
        assert any("node2 knows 2 endpoints, node1, node3 knows 3" in line for line in lines)
        assert any("node2" in line and "not known (node2)" in line for line in lines)
    nodes.serve(nodes.cluster.pods[:2])
    eventually(
        lambda: nodes.lines(ExitCode.OK, "diff") == ["all 3 nodes agree"], "agreement", timeout=90
    )


def test_a_node_with_damaged_rules_is_named(nodes: Nodes) -> None:
    netns = nodes.cluster.nodes[2].netns
    saved = netns.run("iptables-legacy-save", "-t", "nat").stdout
    (rule,) = [line for line in saved.splitlines() if f"-d {VIP}/32" in line]
    netns.run("iptables-legacy", "-t", "nat", "-D", *_words(rule)[1:])
    try:
        line, rest = nodes.lines(ExitCode.DIFFERENT, "diff")
        assert line.startswith(
            "node3 IPv4: kernel differs: 1 different (chain KUBE-SVC-CLUSTER-IPS of table nat)"
        )
        assert rest == "node1, node2 agree"
        found = json.loads(nodes.run("diff", "-o", "json").stdout)
        assert found["kind"] == "ClusterDiff"
        wrong = {each["node"] for each in found["nodes"] if each["problems"]}
        assert wrong == {"node3"}
    finally:
        netns.call(
            lambda: subprocess.run(["iptables-legacy-restore"], input=saved, text=True, check=True)
        )
    assert nodes.lines(ExitCode.OK, "diff") == ["all 3 nodes agree"]


def _words(rule: str) -> list[str]:
    return shlex.split(rule)


def test_a_daemon_that_does_not_answer_is_named(nodes: Nodes) -> None:
    nodes.daemons[0].signal(signal.SIGSTOP)
    try:
        lines = nodes.lines(ExitCode.NO_DAEMON, "diff", "--timeout=3")
        assert lines[0] == "node1 does not answer: no answer within 3 s"
        assert lines[-1] == "node2, node3 agree"
    finally:
        nodes.daemons[0].signal(signal.SIGCONT)


def test_a_service_is_shown_for_all_nodes(nodes: Nodes) -> None:
    lines = nodes.lines(ExitCode.OK, "show", "default/web")
    assert lines[0].split() == ["SERVICE", "FRONTEND", "POLICY", "ENDPOINTS", "NODES"]
    by_address = {line.split()[1]: line for line in lines[1:3]}
    assert "Cluster  2 of 2       all nodes agree" in by_address[f"{VIP}:80/tcp"]
    assert "Local    0 to 1 of 2  no endpoint on node3 (policy Local)" in by_address["node"]
    pod = nodes.cluster.pods[0]
    assert any(
        f"{pod.ipv4}:8080" in line and "on node1  used by all 3 nodes" in line for line in lines
    )
    assert len(nodes.lines(ExitCode.OK, "show")) == 3


def test_an_unknown_service_is_not_found(nodes: Nodes) -> None:
    lines = nodes.lines(ExitCode.NOT_FOUND, "show", "default/wbe")
    assert len(lines) == 3
    assert all("default/wbe" in line for line in lines)


def test_connections_are_added_up(nodes: Nodes) -> None:
    nodes.cluster.serve()
    loads = [node.traffic.load("tcp", VIP, 80, rate=20) for node in nodes.cluster.nodes[:2]]
    lines = nodes.lines(ExitCode.OK, "top", "--interval=2")
    for load in loads:
        load.stop()
    assert lines[0].split()[:3] == ["SERVICE", "FRONTEND", "NEW/S"]
    (row,) = [line.split() for line in lines[1:] if f"{VIP}:80/tcp" in line]
    assert 20 < float(row[2]) <= 60


def test_a_packet_is_traced_on_every_node(nodes: Nodes) -> None:
    lines = nodes.lines(ExitCode.OK, "trace", "node", "default/web:80")
    assert lines[-2:] == ["--- summary", "all 3 nodes: DELIVERED"]
    one = nodes.lines(ExitCode.OK, "trace", "node", "default/web:80", "--node=node2")
    assert one[0].startswith("node2")


def test_the_users_own_context_and_kubeconfig_are_used(nodes: Nodes) -> None:
    nodes.log.unlink(missing_ok=True)
    nodes.run("show", "--context=prod", "--kubeconfig=/home/me/config")
    calls = [json.loads(line) for line in nodes.log.read_text().splitlines()]
    assert len(calls) == 4
    for call in calls:
        assert call[:2] == ["--context=prod", "--kubeconfig=/home/me/config"]


@pytest.mark.parametrize(
    ("arguments", "code", "remedy"),
    [
        (["diff", "--selector=a=b"], ExitCode.NO_DAEMON, "--selector"),
        (["diff", "--node=node9"], ExitCode.NOT_FOUND, "node9"),
        (["nosuch"], ExitCode.USAGE, "--help"),
        (["diff", "--parallel=0"], ExitCode.USAGE, "--parallel"),
    ],
)
def test_a_mistake_is_one_line(
    nodes: Nodes, arguments: list[str], code: ExitCode, remedy: str
) -> None:
    done = nodes.run(*arguments)
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert remedy in line


def test_status_has_a_digest_of_each_kind(nodes: Nodes) -> None:
    socket = nodes.daemons[0].admin_socket
    command = [sys.executable, "-m", "svcproxy", "status", f"--socket={socket}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text.startswith(f"node1  iptables  svcproxy {__version__}, started ")
    assert "IPv4  up to date" in text
    document = json.loads(
        subprocess.run([*command, "-o", "json"], capture_output=True, check=True).stdout
    )
    watches = {each["kind"]: each for each in document["watches"]}
    assert watches["EndpointSlice"]["objects"] == 1
    assert int(watches["EndpointSlice"]["resourceVersion"]) >= nodes.version
