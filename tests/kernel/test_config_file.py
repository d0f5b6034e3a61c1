"""The daemon with a configuration file, as in a kubeadm cluster, and changes of that file."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed import manifests
from testbed.cluster import Cluster
from testbed.daemon import Daemon
from testbed.manifests import ManifestFolder
from testbed.outcomes import Answer
from testbed.waiting import eventually

pytestmark = pytest.mark.kernel

# kubeadm's file, except two settings that affect the machine and not only a namespace
KUBEADM = (
    (Path(__file__).parents[1] / "unit/config/files/kubeadm.yaml")
    .read_text(encoding="utf-8")
    .replace("maxPerCore: null", "maxPerCore: 0")
    .replace("oomScoreAdj: null", "oomScoreAdj: 0")
)
VIP = "10.96.0.10"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=1, pods=1) as built:
        built.serve(tcp=(8080,))
        yield built


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A folder as the kubelet mounts a ConfigMap, with kubeadm's file in it."""
    folder = tmp_path / "kube-proxy"
    folder.mkdir()
    (folder / "config.conf").symlink_to("..data/config.conf")
    swap(folder / "config.conf", KUBEADM)
    return folder / "config.conf"


@pytest.fixture
def unstarted(cluster: Cluster, volume: Path, tmp_path: Path) -> Daemon:
    folder = ManifestFolder(tmp_path / "manifests")
    web = manifests.service("web", [VIP], [manifests.port(80, name="http", target=8080)])
    folder.put(web)
    folder.put(manifests.endpoint_slice(web, [pod.ip(4) for pod in cluster.nodes[0].pods]))
    node = cluster.nodes[0]
    made = Daemon(node, folder.path)
    # kubeadm's command line, with manifests as the source
    made.flags = {
        "config": str(volume),
        "hostname-override": node.name,
        "manifests": str(folder.path),
    }
    return made


@pytest.fixture
def daemon(unstarted: Daemon) -> Iterator[Daemon]:
    with unstarted as started:
        yield started


def swap(path: Path, text: str) -> None:
    """Change a mounted ConfigMap: ``..data`` becomes a link to another folder."""
    volume = path.parent
    data = volume / f"..{len(list(volume.iterdir()))}"
    data.mkdir()
    (data / path.name).write_text(text)
    link = volume / "..data_tmp"
    link.symlink_to(data.name)
    link.rename(volume / "..data")


def write(path: Path, text: str) -> None:
    path.write_text(text)


def rename(path: Path, text: str) -> None:
    other = path.with_name("other")
    other.write_text(text)
    other.rename(path)


@pytest.mark.parametrize("change", [write, rename, swap])
def test_another_file_ends_the_daemon_and_leaves_the_rules(
    cluster: Cluster, daemon: Daemon, volume: Path, change: Callable[[Path, str], None]
) -> None:
    change(volume, KUBEADM.replace("verbosity: 0", "verbosity: 4"))
    assert eventually(lambda: daemon.returncode is not None, "the daemon has ended", timeout=5.0)
    assert daemon.returncode == 1
    assert str(volume) in daemon.wait_log("config.changed")
    outcome = cluster.nodes[0].traffic.connect("tcp", VIP, 80)
    assert isinstance(outcome, Answer), outcome


def test_a_file_that_says_the_same_or_nothing_usable_changes_nothing(
    daemon: Daemon, volume: Path
) -> None:
    os.utime(volume)
    swap(volume, KUBEADM)
    swap(volume, KUBEADM.replace('mode: ""', "mode: kernelspace"))
    line = daemon.wait_log("config.unusable")
    assert f"{volume}: mode=kernelspace: unknown" in line
    swap(volume, "")
    daemon.wait_log("it has no fields")
    assert daemon.running
    assert not any("config.changed" in line for line in daemon.logs())
    daemon.stop()


def test_ranges_for_node_ports_that_hold_no_address_of_the_node(
    unstarted: Daemon, volume: Path
) -> None:
    ranges = "nodePortAddresses: [198.51.100.0/24]"
    swap(volume, KUBEADM.replace("nodePortAddresses: null", ranges))
    with unstarted as daemon:
        assert "ranges=198.51.100.0/24" in daemon.wait_log("node_ports.nowhere")
        assert isinstance(daemon.node.traffic.connect("tcp", VIP, 80), Answer)
