"""``svcproxy trace`` against a running daemon: its text, exit codes, and a kernel that differs."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import CompletedProcess
from typing import Any

import pytest

from svcproxy.admin.client import AdminClient
from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.explain.core.story_types import Ending
from svcproxy.explain.core.trace_arguments import family_of, parse_origin, parse_target
from svcproxy.explain.core.trace_document import Trace
from svcproxy.explain.core.view import NodeView
from svcproxy.explain.trace_packet import Asked, trace_packet
from svcproxy.explain.views import view_of_daemon
from testbed.outcomes import Answer
from testbed.waiting import PATIENCE
from tests.kernel.conftest import Offer, Stage, all_at, ask

pytestmark = pytest.mark.kernel


def run(stage: Stage, *arguments: str) -> CompletedProcess[str]:
    socket = f"--socket={stage.daemon.admin_socket}"
    command = [sys.executable, "-m", "svcproxy", "trace", *arguments, socket]
    return stage.node.netns.run(*command, check=False, timeout=30.0 * PATIENCE)


def view_of(stage: Stage) -> NodeView:
    client = AdminClient(str(stage.daemon.admin_socket))
    return stage.node.netns.call(lambda: view_of_daemon(client))


def predict(stage: Stage, view: NodeView, source: str, target: str) -> Trace:
    origin, to = parse_origin(source), parse_target(target)
    asked = Asked(origin, to, family_of(origin, to, None))
    return stage.node.netns.call(lambda: trace_packet(view, asked).document)


@pytest.fixture
def offer(stage: Stage) -> Iterator[Offer]:
    made = stage.offer(4, all_at([stage.here[0], stage.there[0]], 4), name="web")
    yield made
    made.remove()


def test_the_steps_and_the_route_to_each_endpoint(stage: Stage, offer: Offer) -> None:
    asking = stage.here[1]
    done = run(stage, asking.ipv4, f"default/web:{offer.ports[0][1]}")
    assert done.returncode == ExitCode.OK, done
    first, *_, last = done.stdout.splitlines()
    assert first.startswith(f"{stage.node.name}  ")
    assert "up to date" in first
    assert last == "DELIVERED"
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert f"{stage.here[0].ipv4}:8080 this node dev br0" in lines
    assert f"{stage.there[0].ipv4}:8080 via {stage.other.ipv4} dev eth0" in lines
    assert any(f"{asking.ipv4} -> {offer.vip}:80/tcp on br0 from a pod" in each for each in lines)


def test_the_exit_code_says_what_becomes_of_the_packet(stage: Stage, offer: Offer) -> None:
    idle = stage.offer(4, name="idle")
    refused = run(stage, "outside", "default/idle:80")
    assert refused.returncode == ExitCode.DIFFERENT, refused
    assert refused.stdout.splitlines()[-1] == "REFUSED: no endpoint on any node"
    other = run(stage, "node", "192.0.2.1:80", "-o", "json")
    assert other.returncode == ExitCode.NOT_FOUND, other
    document: dict[str, Any] = json.loads(other.stdout)
    assert document["verdict"] == "not a service"
    assert document["packet"]["source"] == stage.node.ipv4
    unknown = run(stage, "outside", f"default/{offer.service['metadata']['name']}s:80")
    assert unknown.returncode == ExitCode.NOT_FOUND, unknown
    assert "did you mean default/web" in unknown.stderr
    idle.remove()


def test_an_existing_connection_decides_instead_of_rules(stage: Stage, offer: Offer) -> None:
    client, target = stage.client, f"{offer.vip}:80"
    with client.traffic.hold("tcp", offer.vip, 80) as held:
        assert isinstance(held.first, Answer)
        server = stage.cluster.host(held.first.server).ipv4
        view = view_of(stage)
        (known,) = predict(stage, view, client.ipv4, target).connections
        assert known.endpoint == f"{server}:8080"
        found = predict(stage, view, f"{client.ipv4}:{known.source_port}", target)
        assert (found.verdict, found.existing) == (Ending.DELIVERED, True)
        assert not predict(stage, view, f"{client.ipv4}:1", target).existing


def test_session_affinity_decides_instead_of_chance(stage: Stage, offer: Offer) -> None:
    offer.change(sessionAffinity="ClientIP")
    ((server, _),) = ask(stage.client, "tcp", offer.vip, 80, n=3)
    found = predict(stage, view_of(stage), stage.client.ipv4, f"{offer.vip}:80")
    assert found.kernel is not None
    assert not found.kernel.disagreements
    assert found.kernel.affinity == f"{stage.cluster.host(server).ipv4}:8080"
    assert len(found.endpoints) == 2


@contextmanager
def _stopped(stage: Stage) -> Iterator[None]:
    """Stop the daemon within the context, so that it repairs nothing."""
    stage.daemon.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        stage.daemon.signal(signal.SIGCONT)


def test_a_kernel_that_differs_is_reported(stage: Stage, offer: Offer) -> None:
    view, target = view_of(stage), f"{offer.vip}:80"
    with _stopped(stage):
        damage(stage)
        found = predict(stage, view, stage.client.ipv4, target)
    assert found.verdict is Ending.DELIVERED  # what should happen
    assert found.desired.agrees
    assert found.kernel_differs
    assert found.node.families[0].kernel_differences


def damage(stage: Stage) -> None:
    """Let rules forget cluster IPs."""
    if stage.variant == "nftables":
        stage.node.netns.run("nft", "flush", "set", "ip", "svcproxy", "cluster-ips")
    elif stage.variant == "ipvs":
        stage.node.netns.run("ipvsadm", "-C")
    else:
        stage.iptables(4, "-t", "nat", "-F", "KUBE-SVC-CLUSTER-IPS")
