"""Faults of the process: killed at any moment, suspended, or short of resources."""

import contextlib
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest

from chaos import faults, hostile
from testbed.waiting import eventually
from tests.chaos import steps
from tests.chaos.conftest import FAR, Limits, Scene, made

pytestmark = pytest.mark.kernel

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
CGROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def chance() -> random.Random:
    return random.Random(12)


def test_kills_at_random_moments_under_churn(
    variant: str, chance: random.Random, request: pytest.FixtureRequest
) -> None:
    """With so many Services that only a part of them changes during a start."""
    with made(variant, {}, services=300) as scene:
        scene.properties = request.node.user_properties
        steps.kills_under_churn(scene, chance, kills=20)


@pytest.mark.quick
@pytest.mark.nftables_only
def test_suspended_for_a_while(scene: Scene) -> None:
    _suspended(scene, 5)


def test_suspended_for_a_minute(scene: Scene) -> None:
    _suspended(scene, 60)


def _suspended(scene: Scene, seconds: float) -> None:
    with scene.trouble(f"SIGSTOP for {seconds:g} s under churn"), steps.churn(scene):
        scene.world.daemon.signal(signal.SIGSTOP)
        time.sleep(seconds)  # the duration of the fault
        scene.world.daemon.signal(signal.SIGCONT)


def test_64_descriptors(scene: Scene) -> None:
    steps.few_descriptors(scene)


def test_abuse_of_the_health_port(scene: Scene, chance: random.Random) -> None:
    limits = Limits(lines=50, uncounted="sync.done")  # of the churn, a line for each sync
    with scene.trouble("HTTP abuse: 500 bad requests", limits) as row, steps.churn(scene):
        for _ in range(5):
            faults.FAULTS_BY_NAME["http-abuse"].strike(scene.world, chance)
        row.note = f"/healthz {scene.world.daemon.healthz()[0]}"
        assert scene.world.daemon.healthz()[0] == 200


def _flood_with_big_objects(scene: Scene) -> list[tuple[str, str]]:
    obj, encode = hostile.objects("10.96.0.21")["huge"]
    names = []
    for number in range(60):
        meta = {**obj["metadata"], "name": f"huge{number}"}
        scene.world.server.store.put({**obj, "metadata": meta}, encode)
        names.append((str(meta["namespace"]), str(meta["name"])))
    return names


def _short_of_memory(scene: Scene, scenario: str) -> None:
    """Serve a list of 54 MB: the daemon survives, or exits with an error and recovers by restart."""
    world = scene.world
    ended: list[int | None] = []
    with scene.trouble(scenario, Limits(lines=1000, megabytes=400, tracebacks=True)) as row:
        names = _flood_with_big_objects(scene)
        world.server.behaviour.watch_list = False  # one list, not a stream of objects
        world.server.store.trim(0)
        world.server.cut()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if not world.daemon.running:
                ended.append(world.daemon.returncode)
                if len(ended) < 3:
                    world.daemon.start()
                else:
                    break
            time.sleep(0.2)
        world.server.behaviour.watch_list = True
        for namespace, name in names:
            world.server.delete("Service", namespace, name)
        if not world.daemon.running:
            world.start_daemon()
        row.note = f"ended with {ended}" if ended else "lived"
    assert all(ended), ended  # not with status 0


def test_limited_address_space(scene: Scene) -> None:
    """After a MemoryError no thread may be missing."""
    text = Path("/proc", str(scene.world.daemon.pid), "status").read_text(encoding="utf-8")
    size = next(int(line.split()[1]) * 1024 for line in text.splitlines() if "VmSize" in line)
    limit = size + (30 << 20)
    resource.prlimit(scene.world.daemon.pid, resource.RLIMIT_AS, (limit, limit))
    try:
        _short_of_memory(scene, "RLIMIT_AS, 30 MB more than used")
    finally:
        scene.world.daemon.kill()
        scene.world.start_daemon()


@pytest.mark.skipif(not CGROUPS.is_dir(), reason="no memory controller of cgroup version 1")
def test_limited_memory(scene: Scene) -> None:
    """The kernel kills it when it exceeds its container's limit."""
    group = CGROUPS / f"svp-chaos-{os.getpid()}"
    group.mkdir()
    try:
        limit = int((scene.megabytes() + 40) * (1 << 20))
        (group / "memory.limit_in_bytes").write_text(str(limit), encoding="ascii")
        script = f'echo $$ >{group}/cgroup.procs && exec "$@"'
        with scene.started_with("sh", "-c", script, "sh"):
            _short_of_memory(scene, "memory limit of the container, 40 MB more than used")
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(encoding="ascii"))
        group.rmdir()


@pytest.mark.quick
@pytest.mark.nftables_only
def test_a_full_pipe_for_the_log(scene: Scene, tmp_path: Path) -> None:
    _with_a_full_pipe(scene, tmp_path)


@pytest.mark.iptables_only
def test_a_full_pipe_for_the_log_in_iptables_mode(scene: Scene, tmp_path: Path) -> None:
    _with_a_full_pipe(scene, tmp_path)


def _with_a_full_pipe(scene: Scene, folder: Path) -> None:
    """The reader of the log has stopped reading: the daemon still programs changes."""
    pipe = folder / "log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        script = f'exec "$@" 2>{pipe}'
        with scene.started_with("sh", "-c", script, "sh"), scene.trouble("stderr is a full pipe"):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(reader, b"x" * 4096)
            for _ in range(5):
                scene.world.server.cut()  # there is something to say
                scene.world.probe.move(FAR)
    finally:
        os.close(reader)


@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime (apt-get install libfaketime)")
@pytest.mark.nftables_only
def test_jumps_of_the_clock(scene: Scene, tmp_path: Path) -> None:
    """The wall clock jumps by hours and days, as on nodes whose clock is set late.

    Only in nftables mode: with libfaketime, Python sometimes cannot start programs (EINVAL).
    """
    clock = tmp_path / "clock"
    clock.write_text("+0\n", encoding="ascii")
    settings = (
        f"LD_PRELOAD={FAKETIME}",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
        "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "DONT_FAKE_MONOTONIC=1",
    )
    with (
        scene.started_with("env", *settings),
        scene.trouble("clock jumps: +1 h, -1 d, +30 d, back") as row,
    ):
        slowest = 0.0
        for jump in ("+3600", "-86400", "+2592000", "+0"):
            clock.write_text(f"{jump}\n", encoding="ascii")
            scene.world.server.cut()
            slowest = max(slowest, scene.world.probe.move(FAR))
            assert scene.world.daemon.healthz()[0] == 200
        row.note = f"changes within {slowest:.1f} s"


def test_without_any_program(scene: Scene, tmp_path: Path) -> None:
    """All programs disappear while it runs; nftables mode needs none."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for place in map(Path, ("/usr/sbin", "/sbin", "/usr/bin", "/bin")):
        for program in place.iterdir():
            if program.name.startswith(("iptables", "ip6tables", "ipset", "modprobe", "env")):
                with contextlib.suppress(FileExistsError):
                    (folder / program.name).symlink_to(program)
    with (
        scene.started_with("env", f"PATH={folder}"),
        scene.trouble("programs vanish for 20 s") as row,
    ):
        folder.rename(tmp_path / "away")
        if scene.variant == "nftables":
            scene.world.probe.move(FAR)
            row.note = "changes go on"
        else:
            with contextlib.suppress(TimeoutError):
                scene.world.probe.move(5.0)
                row.note = "changes go on"
            time.sleep(15)  # with the 5 s above: the duration of the fault
        (tmp_path / "away").rename(folder)


def test_a_read_only_proc_sys(scene: Scene) -> None:
    """As in an unprivileged container."""
    script = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
    with (
        scene.started_with("unshare", "-m", "sh", "-c", script, "sh"),
        scene.trouble("/proc/sys is read-only"),
        steps.churn(scene),
    ):
        time.sleep(3)  # the duration of the churn
