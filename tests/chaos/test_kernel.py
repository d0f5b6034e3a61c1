"""The daemon with damage by other root processes, and with a kernel at its limits."""

import contextlib
import random
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos import damage, faults
from chaos.verdict import operations
from testbed import netns
from testbed.daemon import Daemon
from testbed.kube_proxy import KubeProxyRules, Offered
from testbed.metrics import Metrics
from testbed.waiting import eventually
from tests.chaos import steps
from tests.chaos.conftest import FAR, Limits, Scene

pytestmark = pytest.mark.kernel

PERIOD = 10.0


@pytest.fixture(scope="module")
def flags() -> dict[str, str]:
    return {"iptables-sync-period": f"{PERIOD:g}s"}


@pytest.fixture
def chance() -> random.Random:
    return random.Random(12)


def _repairs(scene: Scene) -> float:
    return scene.world.daemon.metrics().value("svcproxy_drift_repairs_total")


def _struck(scene: Scene, chance: random.Random, name: str, times: int) -> None:
    """Cause one kind of damage several times, and check that Services recover in time."""
    fault = next(
        f for f in damage.DAMAGE if f.name == name and (not f.modes or scene.variant in f.modes)
    )
    # The kernel does not report changes of legacy rules: periodic resyncs find them.
    bound = PERIOD if scene.variant == "legacy" else 1.0
    with scene.trouble(f"{name}, {times} times", Limits(failing=bound + 30)) as row:
        before = _repairs(scene)
        for _ in range(times):
            fault.strike(scene.world, chance)
            time.sleep(chance.uniform(0.0, 0.5))
        eventually(scene.served, "service", timeout=FAR)
        row.note = f"{_repairs(scene) - before:.0f} repairs"


NFTABLES = [f.name for f in damage.DAMAGE if "nftables" in f.modes]
IPTABLES = [f.name for f in damage.DAMAGE if "legacy" in f.modes]


@pytest.mark.nftables_only
@pytest.mark.parametrize("name", NFTABLES)
def test_damage_to_the_table_is_repaired(scene: Scene, chance: random.Random, name: str) -> None:
    _struck(scene, chance, name, times=10)
    steps.assert_nothing_left_to_write(scene)


@pytest.mark.iptables_only
@pytest.mark.parametrize("name", IPTABLES)
def test_damage_to_the_chains_is_repaired(scene: Scene, chance: random.Random, name: str) -> None:
    _struck(scene, chance, name, times=10)
    # The next resync repairs the damage that affected no connection; it may be skipped if the
    # kernel reports no change, so there is no event to wait for.
    time.sleep(PERIOD + 5)
    steps.assert_nothing_left_to_write(scene)


@pytest.mark.iptables_only
def test_the_lock_of_xtables_held_for_a_minute(scene: Scene, tmp_path: Path) -> None:
    steps.lock_held(scene, tmp_path)


def _netlink(*messages: bytes) -> None:
    """Send messages to conntrack in this thread's namespace, and read the answers."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        sock.bind((0, 0))
        for message in messages:
            sock.send(message)
            with contextlib.suppress(BlockingIOError):
                while sock.recv(1 << 20, socket.MSG_DONTWAIT):
                    pass


def _attribute(kind: int, data: bytes) -> bytes:
    length = len(data) + 4
    return struct.pack("HH", length, kind) + data + b"\0" * (-length % 4)


def _flow(number: int, seconds: int) -> bytes:
    """Return a request that creates an assured UDP flow in the conntrack table."""
    nested = 0x8000
    source, target = struct.pack("!I", (10 << 24 | 77 << 16) + number // 60000), b"\x0a\x4d\xff\x01"
    port, other = struct.pack("!H", 1024 + number % 60000), struct.pack("!H", 9999)

    def half(a: bytes, b: bytes, p: bytes, q: bytes) -> bytes:
        ip = _attribute(1 | nested, _attribute(1, a) + _attribute(2, b))
        proto = _attribute(2 | nested, _attribute(1, b"\x11") + _attribute(2, p) + _attribute(3, q))
        return ip + proto

    body = (
        struct.pack("BBH", socket.AF_INET, 0, 0)
        + _attribute(1 | nested, half(source, target, port, other))
        + _attribute(2 | nested, half(target, source, other, port))
        + _attribute(3, struct.pack("!I", 0x0E))  # seen reply, assured, confirmed
        + _attribute(7, struct.pack("!I", seconds))
    )
    head = struct.pack("IHHII", len(body) + 16, 1 << 8, 0x1 | 0x400, number, 0)
    return head + body


def test_a_full_conntrack_table(scene: Scene) -> None:
    """New connections fail while the table is full, with any proxy; the daemon keeps working."""
    world = scene.world
    folder = Path("/proc/sys/net/netfilter")
    most = int((folder / "nf_conntrack_max").read_text(encoding="ascii"))

    def count() -> int:
        return int(world.node.netns.call((folder / "nf_conntrack_count").read_text))

    if most > 300_000:
        pytest.skip(f"it would take {most} flows")

    def fill() -> None:
        for first in range(0, most + 2000, 200):
            _netlink(b"".join(_flow(n, 40) for n in range(first, first + 200)))

    with scene.trouble("conntrack table full for about 40 s", Limits(failing=90, lines=500)) as row:
        world.node.netns.call(fill)
        row.note = f"{count()} of {most} entries"
        assert count() >= 0.98 * most
        world.apply(world.population.change(world.churn_chance))
        eventually(lambda: count() < most / 2, "the end of the flows", timeout=FAR)


def test_more_events_than_the_daemon_can_handle(scene: Scene, chance: random.Random) -> None:
    """It is suspended while the kernel sends tens of thousands of events (ENOBUFS)."""
    with scene.trouble("event flood while suspended (ENOBUFS)", Limits(failing=60)):
        scene.world.daemon.signal(signal.SIGSTOP)
        try:
            for _ in range(10):
                faults.FAULTS_BY_NAME["event-flood"].strike(scene.world, chance)
            name = "delete-table" if scene.variant == "nftables" else "flush-tables"
            for family_chance in (random.Random(1), random.Random(2)):
                next(f for f in damage.DAMAGE if f.name == name).strike(scene.world, family_chance)
        finally:
            scene.world.daemon.signal(signal.SIGCONT)
        eventually(scene.served, "service", timeout=FAR)


@pytest.mark.nftables_only
def test_changing_addresses_of_the_node(scene: Scene, chance: random.Random) -> None:
    with scene.trouble("300 node addresses come and go, 5 times"):
        for _ in range(5):
            faults.FAULTS_BY_NAME["addresses"].strike(scene.world, chance)


def test_two_daemons_at_once(scene: Scene) -> None:
    """As in a rolling update: both have the same desired state, so neither undoes changes."""
    world = scene.world
    flags = {
        **world.daemon.flags,
        "metrics-bind-address": "127.0.0.1:11249",
        "healthz-bind-address": "0.0.0.0:11256",
    }
    second = Daemon(world.node, flags=flags)
    with scene.trouble("two daemons for 20 s", Limits(lines=400)) as row:
        before = _operations(world.daemon.metrics())
        try:
            second.start()
            second.wait_log("source.synced", timeout=FAR)
            until = time.monotonic() + 20
            changes = 0
            while time.monotonic() < until:
                world.apply(world.population.change(world.churn_chance))
                changes += 1
                time.sleep(0.5)
            written = _operations(world.daemon.metrics()) - before
            row.note = f"{changes} changes, {written} operations of the first"
        finally:
            second.close()
    steps.assert_nothing_left_to_write(scene)


def _operations(metrics: Metrics) -> int:
    return sum(operations(metrics).values())


@contextlib.contextmanager
def _again_and_again(action: Callable[[], None], every: float) -> Iterator[None]:
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every):
            with contextlib.suppress(subprocess.SubprocessError, netns.NetnsError, OSError):
                action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


@pytest.mark.nftables_only
def test_beside_a_running_kube_proxy_of_another_mode(scene: Scene) -> None:
    """kube-proxy (iptables mode) writes its rules every 2 s, for other Services."""
    offered = [
        Offered("theirs", "10.96.250.1", 80, 32500, [scene.world.cluster.pods[0].ipv4], 8080)
    ]
    rules = KubeProxyRules(scene.world.node.netns, "nft", offered)
    with (
        scene.trouble("beside kube-proxy in iptables mode for 20 s", Limits(lines=400)),
        _again_and_again(rules.install, 2.0),
    ):
        for _ in range(20):
            scene.world.apply(scene.world.population.change(scene.world.churn_chance))
            time.sleep(1.0)


@pytest.mark.iptables_only
def test_beside_a_running_kube_proxy_of_the_same_mode(scene: Scene) -> None:
    """kube-proxy serves the same stable Services and overwrites rules; Services must recover."""
    offered = [
        Offered(
            "stable21", "10.96.0.21", 80, 32521, [p.ipv4 for p in scene.world.cluster.pods], 8080
        )
    ]
    rules = KubeProxyRules(scene.world.node.netns, scene.variant, offered)
    bound = PERIOD if scene.variant == "legacy" else 2.0
    limits = Limits(failing=bound + 60, lines=600, recovered=FAR)
    with (
        scene.trouble("beside kube-proxy in iptables mode for 20 s", limits),
        _again_and_again(rules.install, 3.0),
    ):
        time.sleep(20)
    _end_of_kube_proxy(scene)


def _end_of_kube_proxy(scene: Scene) -> None:
    eventually(scene.served, "service", timeout=FAR)
