"""nftables mode notices immediately when other programs change its table, and repairs it."""

import time
from collections.abc import Iterator
from functools import partial

import pytest

from testbed import manifests
from testbed.cluster import Cluster
from testbed.daemon import Daemon
from testbed.manifests import ManifestFolder
from testbed.outcomes import Answer
from testbed.waiting import eventually

pytestmark = pytest.mark.kernel

VIPS = {4: "10.96.0.10", 6: "fd00:10:96::10"}
TABLES = {4: "ip", 6: "ip6"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=1, pods=2) as built:
        built.serve(tcp=(8080,))
        yield built


@pytest.fixture(scope="module")
def folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ManifestFolder:
    made = ManifestFolder(tmp_path_factory.mktemp("manifests"))
    ports = [manifests.port(80, name="http", target=8080)]
    web = manifests.service("web", VIPS.values(), ports)
    pieces = [
        manifests.endpoint_slice(web, [p.ip(f) for p in cluster.pods], suffix=f"v{f}")
        for f in (4, 6)
    ]
    made.put(web, *pieces)
    return made


@pytest.fixture(scope="module")
def daemon(cluster: Cluster, folder: ManifestFolder) -> Iterator[Daemon]:
    flags = {"proxy-mode": "nftables", "iptables-sync-period": "1h"}
    with Daemon(cluster.nodes[0], folder.path, flags=flags) as running:
        yield running


def repairs(daemon: Daemon) -> float:
    return sum(s.value for s in daemon.metrics().matching("svcproxy_drift_repairs_total"))


def external_changes(daemon: Daemon) -> int:
    """How many changes of its table by other processes the daemon has logged."""
    return sum("changed_by_others" in line for line in daemon.logs())


def listed(cluster: Cluster, family: int) -> str:
    text = cluster.nodes[0].netns.run("nft", "-s", "list", "table", TABLES[family], "svcproxy")
    return text.stdout


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    "damage",
    [
        "delete table {table} svcproxy",
        "flush ruleset",
        "flush chain {table} svcproxy services",
        "delete element {table} svcproxy cluster-ips {{ {vip} . tcp . 80 }}",
        "add element {table} svcproxy rejected {{ {vip} . tcp . 80 }}",
        "insert rule {table} svcproxy services return",
        "add rule {table} svcproxy filter-forward ct status dnat drop",
    ],
)
@pytest.mark.behaviour("nftables mode: Repair")
def test_damage_is_repaired_within_a_second(
    cluster: Cluster, daemon: Daemon, family: int, damage: str
) -> None:
    daemon.wait_idle(1.1)  # longer than the minimum interval between syncs
    before = repairs(daemon)
    whole = sorted(listed(cluster, family).split())
    load = cluster.client.traffic.load("tcp", VIPS[family], 80, rate=300, timeout=0.2)
    command = damage.format(table=TABLES[family], vip=VIPS[family])
    cluster.nodes[0].netns.run("nft", *command.split(" ", 2))
    done = time.monotonic()
    eventually(lambda: repairs(daemon) > before, "a repair", timeout=2.0)
    time.sleep(max(0.0, done + 1.3 - time.monotonic()))  # the load measures until 1.3 s
    result = load.stop()
    late = [s for s in result.samples if s.at > done + 1.0]
    assert late
    assert all(isinstance(s.outcome, Answer) for s in late)
    assert result.between(done + 0.3).ok, "traffic flows"
    failed = [s.at - done for s in result.failures]
    assert max(failed, default=0.0) < 1.0
    assert sorted(listed(cluster, family).split()) == whole
    assert daemon.wait_log("kernel.changed_by_others process=nft")


@pytest.mark.behaviour("nftables mode: Own transactions")
def test_own_changes_are_no_damage(
    cluster: Cluster, daemon: Daemon, folder: ManifestFolder
) -> None:
    before, reported = repairs(daemon), external_changes(daemon)
    ports = [manifests.port(81, name="http", target=8080)]
    for number in range(20, 25):
        other = manifests.service(f"other{number}", [f"10.96.0.{number}"], ports)
        folder.put(other, manifests.endpoint_slice(other, [cluster.pods[0].ipv4]))
        eventually(lambda n=number: f"10.96.0.{n}" in listed(cluster, 4))  # type: ignore[misc]
    assert repairs(daemon) == before
    assert external_changes(daemon) == reported


@pytest.mark.behaviour("nftables mode: Tables of other programs")
def test_tables_of_other_programs_are_ignored(cluster: Cluster, daemon: Daemon) -> None:
    nft = partial(cluster.nodes[0].netns.run, "nft")
    before, repaired = external_changes(daemon), repairs(daemon)
    nft("add", "table", "ip", "another-program")
    nft("add", "chain", "ip", "another-program", "services")
    # The kernel's events arrive in order: once this change is repaired, those above were seen.
    nft("delete", "table", "ip", "svcproxy")
    eventually(lambda: repairs(daemon) > repaired, "a repair", timeout=2.0)
    assert external_changes(daemon) == before + 1
    assert "chain services" in nft("list", "table", "ip", "another-program").stdout
    nft("delete", "table", "ip", "another-program")


@pytest.mark.behaviour("nftables mode: SIGTERM")
def test_the_tables_stay_when_the_daemon_is_terminated(cluster: Cluster, daemon: Daemon) -> None:
    before = [listed(cluster, family) for family in VIPS]
    load = cluster.client.traffic.load("tcp", VIPS[4], 80, rate=300, timeout=0.2)
    assert daemon.stop() < 2
    assert [listed(cluster, family) for family in VIPS] == before
    daemon.start()
    daemon.wait_ready()
    assert not load.stop().failures
    assert [listed(cluster, family) for family in VIPS] == before
