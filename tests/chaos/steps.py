"""Steps that scenarios of several modes share."""

import contextlib
import fcntl
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from chaos import faults
from chaos.verdict import operations
from tests.chaos.conftest import FAR, Limits, Scene

_RATE = 20.0


@contextlib.contextmanager
def churn(scene: Scene, rate: float = _RATE) -> Iterator[None]:
    """Change Services continuously, ``rate`` times a second."""
    stop, world = threading.Event(), scene.world

    def run() -> None:
        while not stop.wait(1 / rate):
            world.apply(world.population.change(world.churn_chance))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def assert_nothing_left_to_write(scene: Scene) -> None:
    """A restarted daemon finds the kernel in the desired state and writes nothing."""
    world = scene.world
    world.probe.move(FAR)
    world.daemon.wait_idle(2.0)
    world.end_daemon("SIGTERM", lambda: world.daemon.stop(timeout=30))
    world.start_daemon()
    written = operations(world.daemon.metrics())
    assert not written, (written, world.daemon.logs()[-40:])


def kills_under_churn(scene: Scene, chance: random.Random, kills: int, rate: float = _RATE) -> None:
    """Each start converges, and writes only what changed meanwhile."""
    world = scene.world
    from_scratch = sum(operations(world.generations[0].metrics).values())
    assert from_scratch
    written = []
    with scene.trouble(f"{kills} SIGKILLs under churn", Limits(lines=6000)) as row:
        with churn(scene, rate):
            for number in range(kills):
                world.daemon.kill()
                time.sleep(chance.uniform(0.0, 0.5))
                world.start_daemon()
                written.append(sum(operations(world.daemon.metrics()).values()))
                if number % 2:  # kill it during its start
                    world.daemon.kill()
                    world.daemon.start()
                time.sleep(chance.uniform(0.0, 1.5))
            world.daemon.kill()
            world.start_daemon()
        row.note = f"first syncs wrote at most {max(written)} of {from_scratch} operations"
    assert_nothing_left_to_write(scene)
    assert max(written) < from_scratch / 2, (written, from_scratch)


def few_descriptors(scene: Scene) -> None:
    """Clients cannot take the descriptors that the daemon needs for syncs and the API."""
    with (
        scene.started_with("prlimit", "--nofile=64:64"),
        scene.trouble("RLIMIT_NOFILE 64, 300 idle connections", Limits(lines=400)),
        churn(scene),
    ):
        scene.world.server.cut()
        clients = threading.Thread(
            target=lambda: faults.FAULTS_BY_NAME["idle-connections"].strike(
                scene.world, random.Random(1)
            )
        )
        clients.start()
        scene.world.probe.move(FAR)
        clients.join()


def lock_held(scene: Scene, folder: Path) -> None:
    """Changes wait for the lock and are written soon after; the nft variant needs no lock."""
    path = folder / "xtables.lock"  # not the default one, which the whole machine uses
    with (
        scene.started_with("env", f"XTABLES_LOCKFILE={path}"),
        scene.trouble("xtables lock held for 60 s") as row,
        path.open("a") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(10):
            scene.world.apply(scene.world.population.change(scene.world.churn_chance))
        with contextlib.suppress(TimeoutError):
            scene.world.probe.move(10.0)
            row.note = "changes go on"
        time.sleep(50)  # with the 10 s above: the duration of the fault
