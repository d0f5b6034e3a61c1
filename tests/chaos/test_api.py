"""The daemon with a broken or hostile API server, or with packet loss."""

import gzip
import random
import time
from collections.abc import Iterator

import pytest

from chaos import faults, hostile
from chaos.services import TARGETS
from testbed import manifests as m
from testbed.outcomes import Answer
from testbed.waiting import eventually
from tests.chaos.conftest import FAR, Limits, Scene

pytestmark = pytest.mark.kernel

VARIANTS = ("nftables",)
"""These faults do not depend on the mode."""


@pytest.fixture
def chance() -> random.Random:
    return random.Random(12)


@pytest.fixture(autouse=True)
def _well_behaved(scene: Scene) -> Iterator[None]:
    yield
    behaviour = scene.world.server.behaviour
    behaviour.body, behaviour.status, behaviour.delay, behaviour.stall = None, 0, 0.0, False
    behaviour.body_headers, behaviour.watch_list = b"", True
    scene.world.server.unmute()


# These run first: after broken answers the daemon waits up to 30 s before its next request for a
# kind, as client-go does, and does not see new Services until then.
HOSTILE = hostile.objects("10.96.0.21")
_QUICK = {"deep", "bytes"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.quick] if n in _QUICK else []) for n in HOSTILE]
)
def test_a_hostile_object_affects_only_itself(scene: Scene, name: str) -> None:
    """It arrives in a watch, in a list, and at the start; no other object is affected."""
    world, (obj, encode) = scene.world, HOSTILE[name]
    limits = Limits(lines=100, megabytes=60)
    try:
        with scene.trouble(f"hostile object: {name}", limits):
            world.server.store.put(obj, encode)
            _assert_new_services_are_served(scene, "by-watch", 71)
            world.server.store.trim(0)
            world.server.cut()
            _assert_new_services_are_served(scene, "by-list", 72)
            world.end_daemon("SIGTERM", world.daemon.stop)
            world.start_daemon()
            _assert_new_services_are_served(scene, "after-start", 73)
    finally:
        meta = obj["metadata"]
        world.server.delete(obj["kind"], meta.get("namespace", ""), meta.get("name", ""))


def _assert_new_services_are_served(scene: Scene, name: str, number: int) -> None:
    """A new Service that follows the hostile object in the stream works immediately."""
    world, pod = scene.world, scene.world.cluster.pods[0]
    service = m.service(name, [f"10.96.0.{number}"], [m.port(80, name="http", target=TARGETS[0])])
    piece = m.endpoint_slice(service, [pod.ipv4])
    world.server.put_many([service, piece])
    traffic = world.cluster.client.traffic
    try:
        eventually(
            lambda: isinstance(
                traffic.connect("tcp", f"10.96.0.{number}", 80, timeout=0.5), Answer
            ),
            f"Service {name}",
            timeout=FAR / 2,
        )
    finally:
        for obj in (service, piece):
            world.server.delete(obj["kind"], "default", obj["metadata"]["name"])


def test_half_open_watches_are_closed(scene: Scene) -> None:
    """Without FIN or RST, the daemon notices because bookmarks are missing."""
    limits = Limits(recovered=faults.IDLE + 60)
    with scene.trouble("half-open watches", limits) as row:
        scene.world.server.mute()
        row.note = f"silence is noticed after {faults.IDLE:.0f} s"


def test_a_stalled_server(scene: Scene) -> None:
    with scene.trouble("API server stalls for 20 s"):
        scene.world.server.behaviour.stall = True
        time.sleep(20)  # the duration of the fault
        scene.world.server.behaviour.stall = False


def test_slow_lists(scene: Scene) -> None:
    with scene.trouble("lists take 10 s"):
        scene.world.server.behaviour.delay = 10.0
        scene.world.server.store.trim(0)
        scene.world.server.cut()
        time.sleep(12)  # until the lists have arrived
        scene.world.server.behaviour.delay = 0.0


@pytest.mark.quick
def test_a_storm_of_410s(scene: Scene) -> None:
    with scene.trouble("30 x 410 Gone in a row") as row:
        for _ in range(30):
            scene.world.server.store.trim(0)
            scene.world.server.cut()
            time.sleep(0.1)
        row.note = f"{scene.world.server.count('Service', 'watch')} watches of Services"


def test_restarts_of_the_server(scene: Scene, chance: random.Random) -> None:
    with scene.trouble("10 restarts of the API server"):
        for _ in range(10):
            scene.world.server.outage()
            time.sleep(chance.uniform(0.1, 2.0))
            scene.world.node.netns.call(scene.world.server.restore)
            time.sleep(chance.uniform(0.1, 1.0))


def _answering(scene: Scene, body: bytes, *, status: int = 0) -> None:
    """Answer every request with this for some seconds, and make the daemon send requests."""
    behaviour = scene.world.server.behaviour
    if status:
        behaviour.status = status
    else:
        behaviour.body = body
    scene.world.server.store.trim(0)
    scene.world.server.cut()
    asked = len(scene.world.server.received)
    eventually(lambda: len(scene.world.server.received) > asked + 4, "requests", timeout=FAR)
    time.sleep(3)  # let the daemon act on the last answers
    behaviour.body, behaviour.status = None, 0


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_errors(scene: Scene, status: int) -> None:
    with scene.trouble(f"every answer is a {status}"):
        _answering(scene, b"", status=status)


_GARBAGE_NAMES = ["{}", "html", "podlist", "maintenance", "empty"]


@pytest.mark.parametrize("verb", ["watch", "list"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b, id=n, marks=[pytest.mark.quick] if n == "{}" else [])
        for b, n in zip(faults.GARBAGE, _GARBAGE_NAMES, strict=True)
    ],
)
def test_garbage(scene: Scene, body: bytes, verb: str) -> None:
    """No garbage counts as a complete and empty list; rules stay as they are."""
    with scene.trouble(f"every answer to a {verb} is {body[:24]!r}"):
        scene.world.server.behaviour.watch_list = verb == "watch"
        _answering(scene, body)
        scene.world.server.behaviour.watch_list = True


def test_garbage_while_the_daemon_starts(scene: Scene) -> None:
    """A start against a server that answers garbage removes nothing."""
    world = scene.world
    with scene.trouble("start against an API server that answers {}"):
        world.end_daemon("SIGTERM", world.daemon.stop)
        world.server.behaviour.body = b"{}"
        world.server.behaviour.watch_list = False
        asked = len(world.server.received)
        world.daemon.start()
        eventually(lambda: len(world.server.received) > asked + 4, "requests", timeout=FAR)
        time.sleep(3)  # let the daemon act on the last answers
        world.server.behaviour.body = None
        world.server.behaviour.watch_list = True
        world.daemon.wait_ready(FAR)


def test_a_gzip_bomb(scene: Scene) -> None:
    """A megabyte on the wire that decompresses to one gigabyte."""
    bomb = gzip.compress(b" " * (1 << 30), 9)
    limits = Limits(recovered=90, megabytes=300)
    with scene.trouble("gzip bomb (1 GB)", limits) as row:
        server = scene.world.server
        server.behaviour.watch_list = False
        server.behaviour.body = bomb
        server.behaviour.body_headers = b"Content-Encoding: gzip\r\n"
        server.store.trim(0)
        server.cut()
        asked = len(server.received)
        peak = 0.0
        until = time.monotonic() + FAR
        while len(server.received) < asked + 4 and time.monotonic() < until:
            peak = max(peak, scene.megabytes())
            time.sleep(0.05)
        for _ in range(100):
            peak = max(peak, scene.megabytes())
            time.sleep(0.05)
        server.behaviour.body, server.behaviour.body_headers = None, b""
        server.behaviour.watch_list = True
        row.note = f"peak {peak:.0f} MB"
    assert peak < 600
