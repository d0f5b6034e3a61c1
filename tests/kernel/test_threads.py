"""The real daemon with threads that fail or hang, and with a log that is not read."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from testbed import manifests
from testbed.cluster import Cluster
from testbed.daemon import Daemon
from testbed.manifests import ManifestFolder
from testbed.outcomes import Answer
from testbed.waiting import PATIENCE, eventually
from tests.kernel.conftest import mode_flags

pytestmark = pytest.mark.kernel

RUNNER = """
import importlib, sys, time
from pathlib import Path
from svcproxy import cli, limits

place, fault, trigger = sys.argv[1:4]
del sys.argv[1:4]
limits.THREAD_SYNC_SECONDS = limits.THREAD_STEP_SECONDS = limits.THREAD_SCAN_SECONDS = 1.5
cli.load_daemon()
module, owner, name = place.split(":")
module = importlib.import_module(module)
owner = getattr(module, owner) if owner else module
inner = getattr(owner, name)

class Mute:
    def __getattr__(self, _):
        raise MemoryError("the handler has no memory either")

def faulty(*args, **kwargs):
    if Path(trigger).exists():
        if fault == "hang":
            time.sleep(1000)
        for each in (module, importlib.import_module("svcproxy.sync.report")):
            for log in ("log", "_log"):
                if hasattr(each, log):
                    setattr(each, log, Mute())
        raise MemoryError("injected")
    return inner(*args, **kwargs)

setattr(owner, name, faulty)
sys.exit(cli.main())
"""
POISONED = """
import sys
from svcproxy import cli
cli.load_daemon()
from svcproxy.backends.iptables.core.planner import Planner as Iptables
from svcproxy.backends.nftables.core.plan import Planner as Nftables

def poisoned(owner, name):
    inner = getattr(owner, name)
    def checked(self, first, *rest):
        ports = getattr(first, "ports", first)
        for key, port in ports.items():
            if key.name == "poison" and port is not None and port.frontends[0].port == 81:
                raise KeyError("a defect that one object brings out")
        return inner(self, first, *rest)
    setattr(owner, name, checked)

for owner in (Iptables, Nftables):
    poisoned(owner, "plan")
    poisoned(owner, "plan_changes")
sys.exit(cli.main())
"""
THREADS = [
    ("sync-IPv4", "svcproxy.sync.loop:FamilyLoop:_sync"),
    ("manifests", "svcproxy.kube.manifests:ManifestSource:_scan"),
    ("nftables-watcher", "svcproxy.netlink.listener:Listener:received"),
]
WEB = manifests.service("web", ["10.96.0.10"], [manifests.port(80, target=8080)])


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=1, pods=1) as built:
        built.serve(tcp=(8080,))
        yield built


@pytest.fixture
def folder(cluster: Cluster) -> Iterator[ManifestFolder]:
    with tempfile.TemporaryDirectory() as path:
        made = ManifestFolder(Path(path))
        made.put(WEB, manifests.endpoint_slice(WEB, [cluster.nodes[0].pods[0].ipv4]))
        yield made


def is_served(cluster: Cluster, address: str = "10.96.0.10") -> bool:
    return isinstance(cluster.nodes[0].traffic.connect("tcp", address, 80), Answer)


def put_another(cluster: Cluster, folder: ManifestFolder, number: int) -> str:
    """Create another Service; return its address."""
    address = f"10.96.1.{number}"
    made = manifests.service(f"more{number}", [address], [manifests.port(80, target=8080)])
    folder.put(made, manifests.endpoint_slice(made, [cluster.nodes[0].pods[0].ipv4]))
    return address


def faulty(
    cluster: Cluster, folder: ManifestFolder, place: str, fault: str, trigger: Path
) -> Daemon:
    daemon = Daemon(cluster.nodes[0], folder.path, flags=mode_flags("nftables"))
    daemon.program = (sys.executable, "-c", RUNNER, place, fault, str(trigger))
    return daemon


@pytest.mark.parametrize(("thread", "place"), THREADS)
@pytest.mark.behaviour("The kernel: A thread fails")
def test_a_thread_that_fails_ends_the_process_and_leaves_the_rules(
    cluster: Cluster, folder: ManifestFolder, tmp_path: Path, thread: str, place: str
) -> None:
    trigger = tmp_path / "now"
    with faulty(cluster, folder, place, "die", trigger) as daemon:
        assert is_served(cluster)
        trigger.touch()
        put_another(cluster, folder, 1)
        cluster.nodes[0].netns.run("nft", "add", "table", "ip", "foreign")
        assert eventually(lambda: daemon.returncode, "its end", timeout=30.0 * PATIENCE) == 1
        assert any(f"fatal: thread {thread}" in line for line in daemon.logs())
        assert is_served(cluster)


@pytest.mark.parametrize(("thread", "place"), THREADS)
@pytest.mark.behaviour("The kernel: A thread hangs")
def test_livez_names_a_thread_that_hangs(
    cluster: Cluster, folder: ManifestFolder, tmp_path: Path, thread: str, place: str
) -> None:
    trigger = tmp_path / "now"
    with faulty(cluster, folder, place, "hang", trigger) as daemon:
        assert daemon.healthz("/livez")[0] == 200
        trigger.touch()
        put_another(cluster, folder, 1)
        cluster.nodes[0].netns.run("nft", "add", "table", "ip", "foreign")
        eventually(lambda: daemon.healthz("/livez")[0] == 503, timeout=30.0 * PATIENCE)
        assert thread in json.loads(daemon.healthz("/livez")[1])["stalledThreads"]
        (stalled,) = daemon.metrics()["svcproxy_stalled_threads"]
        assert stalled.value >= 1
        assert daemon.stop(10.0 * PATIENCE) < 8.0 * PATIENCE
        assert is_served(cluster)


@pytest.mark.parametrize("mode", ["nftables", "nft"])
@pytest.mark.behaviour("The kernel: A defect in svcproxy")
def test_a_service_that_brings_out_a_defect_costs_only_itself(
    cluster: Cluster, folder: ManifestFolder, mode: str
) -> None:
    daemon = Daemon(cluster.nodes[0], folder.path, flags=mode_flags(mode))
    daemon.program = (sys.executable, "-c", POISONED)
    pod = cluster.nodes[0].pods[0].ipv4
    with daemon:
        good = manifests.service("poison", ["10.96.2.1"], [manifests.port(80, target=8080)])
        folder.put(good, manifests.endpoint_slice(good, [pod]))
        eventually(partial(is_served, cluster, "10.96.2.1"), timeout=20.0 * PATIENCE)
        bad = manifests.service("poison", ["10.96.2.1"], [manifests.port(81, target=8080)])
        folder.put(bad)
        daemon.wait_log("service_port=default/poison", timeout=20.0 * PATIENCE)
        for number in range(1, 4):
            address = put_another(cluster, folder, number)
            eventually(partial(is_served, cluster, address), timeout=20.0 * PATIENCE)
        assert is_served(cluster, "10.96.2.1"), "the last good state of the Service"
        assert daemon.healthz("/livez")[0] == 200
        daemon.kill()
        daemon.start()
        daemon.wait_ready()
        assert is_served(cluster, "10.96.1.3")
        daemon.stop(10.0 * PATIENCE)


def fill(pipe: int) -> None:
    while True:
        try:
            os.write(pipe, b"x" * 512)
        except BlockingIOError:
            return


@pytest.mark.behaviour("The kernel: Blocked log output")
def test_an_unread_log_stops_nothing(
    cluster: Cluster, folder: ManifestFolder, tmp_path: Path
) -> None:
    fifo = tmp_path / "stderr"
    os.mkfifo(fifo)
    # A separate open file: non-blocking here, but blocking for the daemon.
    pipe = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    daemon = Daemon(cluster.nodes[0], folder.path, flags=mode_flags("nftables"))
    daemon.program = ("/bin/sh", "-c", 'exec "$@" 2>"$0"', str(fifo), *daemon.program)
    with daemon:
        fill(pipe)
        for number in range(1, 4):
            address = put_another(cluster, folder, number)
            eventually(partial(is_served, cluster, address), timeout=20.0 * PATIENCE)
        folder.write("broken.yaml", "{")
        assert daemon.healthz("/livez")[0] == 200
        said = b""
        while said.count(b" sync.done ") < 3:
            try:
                said += os.read(pipe, 65536)
            except BlockingIOError:
                eventually(lambda: daemon.running)
        fill(pipe)
        assert daemon.stop(10.0 * PATIENCE) < 5.0 * PATIENCE
        assert is_served(cluster, "10.96.1.3")
    os.close(pipe)
