import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed import netns
from testbed.cluster import Cluster, cleanup_stale
from testbed.netns import NetNS, NetnsError

pytestmark = pytest.mark.kernel


def test_a_cluster_is_created_and_removed_quickly_and_completely() -> None:
    began = time.monotonic()
    with Cluster(nodes=2, pods=3) as cluster:
        built = time.monotonic()
        assert len(netns.existing(cluster.prefix)) == 10
        sleeper = cluster.pods[0].netns.popen(["sleep", "100"])
        closing = time.monotonic()
    closed = time.monotonic()
    assert not netns.existing(f"{cluster.prefix}-")
    assert sleeper.wait(1) == -9
    assert built - began < 1
    assert closed - closing < 0.5


def test_an_exception_removes_everything() -> None:
    cluster = Cluster()

    def fail() -> None:
        with cluster:
            cluster.serve()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not netns.existing(f"{cluster.prefix}-")


def test_a_failed_build_removes_everything() -> None:
    cluster = Cluster(nodes=1, pods=1)
    cluster.pods[0].ipv4 = "300.1.1.1"
    with pytest.raises(NetnsError, match=r"300\.1\.1\.1"):
        cluster.__enter__()
    assert not netns.existing(f"{cluster.prefix}-")


def test_namespaces_of_dead_processes_are_removed() -> None:
    code = (
        "import os\n"
        "from testbed.cluster import Cluster\n"
        "cluster = Cluster(nodes=1, pods=0).__enter__()\n"
        "sleeper = cluster.client.netns.popen(['sleep', '100'], output=-3)\n"
        "print(cluster.prefix, sleeper.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    prefix, sleeper = done.stdout.split()
    assert netns.existing(f"{prefix}-")
    assert f"{prefix}-client" in cleanup_stale()
    assert not netns.existing(f"{prefix}-")
    deadline = time.monotonic() + 1
    while "sleep" in Path(f"/proc/{sleeper}/cmdline").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_clusters_of_living_processes_stay(cluster: Cluster) -> None:
    before = netns.existing(f"{cluster.prefix}-")
    cleanup_stale()
    assert netns.existing(f"{cluster.prefix}-") == before


def test_callables_run_inside_the_namespace_only(cluster: Cluster) -> None:
    space = cluster.pods[0].netns
    outside = Path("/proc/thread-self/ns/net").readlink()
    inside = space.call(lambda: Path("/proc/thread-self/ns/net").readlink())
    assert inside != outside
    assert Path("/proc/thread-self/ns/net").readlink() == outside
    assert "10.244.1.2" in space.run("ip", "-4", "addr", "show").stdout


def test_errors_are_raised_in_the_caller(cluster: Cluster) -> None:
    space = cluster.pods[0].netns
    with pytest.raises(ZeroDivisionError):
        space.call(lambda: 1 / 0)
    with pytest.raises(NetnsError, match="no-such-device"):
        space.run("ip", "link", "show", "no-such-device")
    assert space.run("false", check=False).returncode == 1
    with pytest.raises(FileNotFoundError):
        NetNS("svp-no-such").run("true")


def test_two_clusters_are_independent(cluster: Cluster) -> None:
    with Cluster(nodes=1, pods=1) as other:
        other.serve(tcp=[7000])
        outcome = cluster.client.traffic.connect("tcp", other.pods[0].ipv4, 7000)
        assert outcome.label == "refused"
        assert other.client.traffic.connect("tcp", other.pods[0].ipv4, 7000).label == "pod1a"


def test_sizes_are_checked() -> None:
    for nodes, pods in ((0, 1), (1, 27)):
        with pytest.raises(ValueError, match="nodes"):
            Cluster(nodes, pods)
