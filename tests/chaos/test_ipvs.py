"""IPVS mode with damage by other root processes, and missing kernel modules (User Mode Linux)."""

import contextlib
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import damage_ipvs
from testbed.daemon import Daemon
from testbed.netns import NetNS
from testbed.waiting import eventually
from tests.chaos import steps
from tests.chaos.conftest import FAR, Limits, Scene, made

pytestmark = pytest.mark.kernel

VARIANTS = ("ipvs",)
PERIOD = 10.0
_BUSY = 30.0
"""Seconds that a repair may take in a guest, in addition to the period."""


@pytest.fixture(scope="module")
def flags() -> dict[str, str]:
    return {"ipvs-sync-period": f"{PERIOD:g}s"}


@pytest.fixture
def chance() -> random.Random:
    return random.Random(12)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(f.name, marks=[pytest.mark.quick] if f.name == "virtual-server" else [])
        for f in damage_ipvs.DAMAGE
    ],
)
def test_damage_is_repaired(scene: Scene, chance: random.Random, name: str) -> None:
    """The kernel does not report such changes: the periodic audit finds them."""
    fault = next(f for f in damage_ipvs.DAMAGE if f.name == name)
    limits = Limits(failing=PERIOD + _BUSY)
    with scene.trouble(f"{name}, 5 times", limits):
        for _ in range(5):
            fault.strike(scene.world, chance)
            time.sleep(chance.uniform(0.0, 0.5))
        eventually(scene.served, "service", timeout=FAR)
    time.sleep(PERIOD + 5)  # one pass of the audit repairs damage that affected no connection
    steps.assert_nothing_left_to_write(scene)


def test_kills_at_random_moments_under_churn(scene: Scene, chance: random.Random) -> None:
    steps.kills_under_churn(scene, chance, kills=6, rate=1.0)  # a start takes seconds here


def test_64_descriptors(scene: Scene) -> None:
    steps.few_descriptors(scene)


def test_the_lock_of_xtables_held_for_a_minute(scene: Scene, tmp_path: Path) -> None:
    steps.lock_held(scene, tmp_path)


@contextlib.contextmanager
def _without_modules(*names: str) -> Iterator[None]:
    """Unload these modules and prevent the guest's kernel from loading them."""
    program = Path("/proc/sys/kernel/modprobe")
    before = program.read_text(encoding="ascii")
    program.write_text("/bin/false", encoding="ascii")
    subprocess.run(["modprobe", "-r", *names], check=True)
    try:
        yield
    finally:
        program.write_text(before, encoding="ascii")
        subprocess.run(["modprobe", "-a", *names], check=True)


def _flush_rules(space: NetNS) -> None:
    """Remove all rules, because they prevent unloading of modules."""
    for program in ("iptables-legacy", "ip6tables-legacy"):
        for table in ("nat", "filter"):
            space.run(program, "-w", "5", "-t", table, "-F")
            space.run(program, "-w", "5", "-t", table, "-X")


def test_a_start_without_a_module(scene: Scene) -> None:
    """It exits with an error that names the module, and starts once the module can be loaded."""
    world = scene.world
    with scene.trouble("start without xt_set", Limits(failing=FAR)) as row:
        world.end_daemon("SIGTERM", lambda: world.daemon.stop(timeout=30))
        _flush_rules(world.node.netns)
        with _without_modules("xt_set"):
            for _ in range(3):
                world.daemon.start()
                eventually(lambda: not world.daemon.running, "the end", timeout=30)
                assert world.daemon.returncode == 1
                assert "modprobe -a xt_set" in world.daemon.logs()[-1]
            row.note = "ends with status 1, names the module"
        world.start_daemon()


def test_a_start_without_nf_tables(scene: Scene) -> None:
    """The guest's kernel has no nf_tables for IP: the daemon reports that and changes nothing."""
    world = scene.world
    second = Daemon(
        world.node,
        flags={
            **world.daemon.flags,
            "proxy-mode": "nftables",
            "metrics-bind-address": "127.0.0.1:11249",
            "healthz-bind-address": "0.0.0.0:11256",
        },
    )
    try:
        with scene.trouble("start in nftables mode without nf_tables") as row:
            second.start()
            eventually(lambda: not second.running, "the end", timeout=30)
            assert second.returncode == 1
            assert "this kernel cannot run nftables mode" in second.logs()[-1]
            row.note = "ends with status 1 and says why; the other mode's rules stay"
    finally:
        second.close()


@pytest.mark.uml
def test_iptables_mode_without_a_match(request: pytest.FixtureRequest) -> None:
    """Services that need the module wait for it; other Services are served meanwhile."""
    with made("legacy", {}, services=10) as scene:
        scene.properties = request.node.user_properties
        world = scene.world
        limits = Limits(failing=FAR)
        with scene.trouble("iptables mode without xt_statistic", limits) as row:
            world.end_daemon("SIGTERM", lambda: world.daemon.stop(timeout=30))
            _flush_rules(world.node.netns)
            with _without_modules("xt_statistic"):
                world.daemon.start()
                row.note = f"one endpoint: served after {world.probe.move(2 * FAR):.1f} s"
                assert world.daemon.running
