"""Killing, stopping and restarting the daemon under load."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import manifests, uml
from testbed.cluster import Cluster
from testbed.daemon import Daemon
from testbed.manifests import ManifestFolder
from testbed.outcomes import Answer
from testbed.waiting import PATIENCE
from tests.kernel.conftest import ALL_VARIANTS, mode_flags, period_flags

pytestmark = pytest.mark.kernel

RATE = 300 / PATIENCE
LOST = 10.0 if uml.inside() else 1.0
"""Seconds after which a connection counts as lost. TCP sends a lost SYN again after one second, but
the guest pauses for seconds when this machine is busy."""


@pytest.fixture(params=ALL_VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=1, pods=3) as built:
        built.serve(tcp=(8080,))
        yield built


@pytest.fixture
def folder(cluster: Cluster) -> Iterator[ManifestFolder]:
    with tempfile.TemporaryDirectory() as path:
        made = ManifestFolder(Path(path))
        web = manifests.service(
            "web",
            ["10.96.0.10", "fd00:10:96::10"],
            [manifests.port(80, name="http", target=8080, node_port=30080)],
            type="NodePort",
        )
        made.put(web)
        for family in (4, 6):
            pods = [p.ip(family) for p in cluster.nodes[0].pods]
            made.put(manifests.endpoint_slice(web, pods, suffix=f"v{family}"))
        yield made


def virtual_servers(cluster: Cluster) -> str:
    """Return the virtual servers of node1, without the numbers of connections."""
    space = cluster.nodes[0].netns
    text = space.call(lambda: Path("/proc/thread-self/net/ip_vs").read_text(encoding="ascii"))
    return "\n".join(" ".join(line.split()[:4]) for line in text.splitlines())


def rules(cluster: Cluster, variant: str) -> str:
    if variant == "ipvs":
        return rules(cluster, "legacy") + virtual_servers(cluster)
    if variant == "nftables":
        return cluster.nodes[0].netns.run("nft", "-s", "list", "ruleset").stdout
    saved = "".join(
        cluster.nodes[0].netns.run(f"{program}-{variant}-save", "-t", table).stdout
        for program in ("iptables", "ip6tables")
        for table in ("nat", "filter")
    )
    return "\n".join(line for line in saved.splitlines() if line.startswith("-A"))


@pytest.mark.parametrize("address", ["10.96.0.10", "fd00:10:96::10"])
def test_no_connection_is_lost_when_the_daemon_is_killed_and_restarted(
    cluster: Cluster, folder: ManifestFolder, variant: str, address: str
) -> None:
    node = cluster.nodes[0]
    flags = {**mode_flags(variant), **period_flags(variant, shortest="0s")}
    with Daemon(node, folder.path, flags=flags) as daemon:
        before = rules(cluster, variant)
        load = cluster.client.traffic.load("tcp", address, 80, rate=RATE, timeout=LOST)
        started = time.monotonic()
        for _ in range(3):
            daemon.kill()
            daemon.start()
            daemon.wait_ready()
        daemon.stop()
        daemon.start()
        daemon.wait_ready()
        # All restarts are done; keep the load a moment longer to detect late effects.
        elapsed = time.monotonic() - started
        time.sleep(max(0.3, 2.0 - elapsed))
        result = load.stop()
        assert not result.failures, result.labels
        assert result.total >= 0.9 * RATE * elapsed, "the load did not reach its rate"
        assert rules(cluster, variant) == before
        operations = [line for line in daemon.logs() if "sync.done" in line]
        # Only the very first sync of each family wrote anything.
        assert sum("_written=" in line or "_added=" in line for line in operations) == 2, operations


def test_sigterm_ends_within_two_seconds_and_leaves_the_rules(
    cluster: Cluster, folder: ManifestFolder, variant: str
) -> None:
    node = cluster.nodes[0]
    with Daemon(node, folder.path, flags=mode_flags(variant)) as daemon:
        assert daemon.stop() < 2 * PATIENCE
        assert daemon.returncode == 0
        answers = cluster.client.traffic.burst("tcp", node.ipv4, 30080, 20)
        assert sum(answers.values()) == 20
        assert all(name.startswith("pod") for name in answers), answers


def test_a_restart_writes_only_changes_made_while_the_daemon_was_down(
    cluster: Cluster, folder: ManifestFolder, variant: str
) -> None:
    word = {"nftables": "element_added", "ipvs": "virtual_server_written"}.get(
        variant, "chain_written"
    )
    node = cluster.nodes[0]
    with Daemon(node, folder.path, flags=mode_flags(variant)) as daemon:
        daemon.stop()
        solo = manifests.service("solo", ["10.96.0.11"], [manifests.port(80, target=8080)])
        folder.put(solo, manifests.endpoint_slice(solo, [node.pods[0].ipv4]))
        daemon.start()
        daemon.wait_ready()
        outcome = cluster.client.traffic.connect("tcp", "10.96.0.11", 80)
        assert isinstance(outcome, Answer)
        assert outcome.server == node.pods[0].name
        written = [line for line in daemon.logs() if f"{word}=" in line]
        # The first two lines are of the first daemon.
        assert len(written) == 3
        assert "family=IPv4" in written[-1]
        if variant == "nftables":
            # The frontend, its address, its one endpoint; and the map for one endpoint.
            assert "element_added=3" in written[-1], written
            assert "table_added" not in written[-1], written
        elif variant == "ipvs":
            assert "virtual_server_written=1" in written[-1], written
            assert "real_server_written=1" in written[-1], written
            assert "rule_written" not in written[-1], written
        else:
            # The tree of cluster IPs and the Service's own chain.
            assert "chain_written=2 rule_written=3" in written[-1], written
