"""Faults of the API server, the daemon, the node, and clients of the daemon's ports."""

import contextlib
import random
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chaos.world import World
from testbed import netns
from testbed.daemon import HEALTHZ_PORT

IDLE = 90.0
"""Seconds after which the daemon gives up a silent watch (``ClientSettings.idle_seconds``)."""
GARBAGE = (
    b"{}",
    b"<html><body>502 Bad Gateway</body></html>",
    b'{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}',
    b'{"status":"maintenance"}',
    b"",
)


@dataclass(frozen=True)
class Fault:
    """A fault to inject.

    Attributes:
        name: its name.
        strike: injects the fault, removes it again, and returns.
        weight: how often it is chosen, relative to the others.
        damages: whether it damages rules, so that connections may fail until the repair.
        kills: whether it ends the daemon.
        seconds: about how long it takes.
        modes: the variants to which it applies; empty for all.
    """

    name: str
    strike: Callable[[World, random.Random], None]
    weight: int = 4
    damages: bool = False
    kills: bool = False
    seconds: float = 5.0
    modes: tuple[str, ...] = ()


# --- The API server ------------------------------------------------------------------------------


def _restart(world: World, chance: random.Random) -> None:
    world.server.outage()
    world.stopping.wait(chance.uniform(0.2, 5.0))
    world.node.netns.call(world.server.restore)


def _cut(world: World, _chance: random.Random) -> None:
    world.server.cut()


def _gone(world: World, chance: random.Random) -> None:
    """End all watches; their resource versions are too old when they reconnect."""
    world.server.outage()
    world.stopping.wait(chance.uniform(0.5, 2.0))
    world.server.store.trim(0)
    world.server.behaviour.gone_as_event = chance.random() < 0.5
    world.node.netns.call(world.server.restore)


def _gone_storm(world: World, chance: random.Random) -> None:
    """Answer 410 (Gone) several times in a row."""
    for _ in range(8):
        world.server.store.trim(0)
        world.server.cut()
        world.stopping.wait(chance.uniform(0.1, 0.6))


def _stall(world: World, chance: random.Random) -> None:
    with _behaving(world, stall=True):
        world.stopping.wait(chance.uniform(3.0, 12.0))


def _half_open(world: World, _chance: random.Random) -> None:
    """Make existing connections silent without closing them; new connections work."""
    world.server.mute()


def _slow(world: World, chance: random.Random) -> None:
    with _behaving(world, delay=chance.uniform(1.0, 4.0)):
        world.server.cut()
        world.stopping.wait(10.0)


def _errors(world: World, chance: random.Random) -> None:
    with _behaving(world, status=chance.choice((401, 403, 429, 500, 503))):
        world.server.cut()
        world.stopping.wait(chance.uniform(1.0, 6.0))


def _garbage(world: World, chance: random.Random) -> None:
    # Without WatchList, the garbage is the answer to a list.
    with _behaving(world, body=chance.choice(GARBAGE), watch_list=chance.random() < 0.5):
        world.server.store.trim(0)
        world.server.cut()
        world.stopping.wait(chance.uniform(1.0, 6.0))


def _no_watch_list(world: World, _chance: random.Random) -> None:
    with _behaving(world, watch_list=False):
        world.server.store.trim(0)
        world.server.cut()
        world.stopping.wait(5.0)


@contextlib.contextmanager
def _behaving(world: World, **changed: object) -> Iterator[None]:
    behaviour = world.server.behaviour
    before = {name: getattr(behaviour, name) for name in changed}
    try:
        for name, value in changed.items():
            setattr(behaviour, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(behaviour, name, value)


# --- The daemon ----------------------------------------------------------------------------------


def _kill(world: World, _chance: random.Random) -> None:
    world.end_daemon("SIGKILL", world.daemon.kill)
    world.start_daemon()


def _terminate(world: World, _chance: random.Random) -> None:
    world.end_daemon("SIGTERM", lambda: world.daemon.stop(timeout=30.0))
    world.start_daemon()


def _suspend(world: World, chance: random.Random) -> None:
    world.daemon.signal(signal.SIGSTOP)
    try:
        world.stopping.wait(chance.uniform(1.0, 12.0))
    finally:
        world.daemon.signal(signal.SIGCONT)


# --- The node ------------------------------------------------------------------------------------


def _event_flood(world: World, _chance: random.Random) -> None:
    """Cause tens of thousands of nftables events of another table within two seconds."""
    rules = "\n".join(
        f"add rule ip flood c ip saddr 10.99.{n // 250}.{n % 250} accept" for n in range(4000)
    )
    script = f"add table ip flood\nadd chain ip flood c\n{rules}\n"
    for _ in range(3):
        world.node.netns.run("nft", "-f", "-", stdin=script)
        world.node.netns.run("nft", "delete", "table", "ip", "flood")


def _addresses(world: World, _chance: random.Random) -> None:
    """Add and remove addresses of the node."""
    lines = [f"10.98.{n // 250}.{n % 250 + 1}/32" for n in range(300)]
    netns.ip_batch((f"addr add {line} dev lo" for line in lines), world.node.netns.name)
    world.stopping.wait(2.0)
    netns.ip_batch((f"addr del {line} dev lo" for line in lines), world.node.netns.name)


def _flows(world: World, _chance: random.Random) -> None:
    """Create thousands of UDP flows, each with a conntrack entry."""
    service = next((s for s in world.population.slots if s.udp and 4 in s.families), None)
    address = service.vip(4) if service is not None else "10.96.0.21"
    load = world.cluster.client.traffic.load("udp", address, 53, rate=800, duration=4, timeout=1.0)
    load.wait()


# --- The daemon's ports --------------------------------------------------------------------------


REQUESTS = (
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
    b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 10_000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    b"\x00" * 4096,
    b"GET /healthz HTTP/9.9\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
)
"""Bad requests: too long, with too many headers, malformed, and one without an end."""


def _http_abuse(world: World, chance: random.Random) -> None:
    _send_all(world, [chance.choice(REQUESTS) for _ in range(100)], hold=3.0)


def _idle_connections(world: World, _chance: random.Random) -> None:
    _send_all(world, [b""] * 300, hold=5.0)


def _send_all(world: World, requests: list[bytes], hold: float) -> None:
    address = (world.node.ipv4, HEALTHZ_PORT)

    def send() -> list[socket.socket]:
        opened = []
        for request in requests:
            with contextlib.suppress(OSError):
                opened.append(sock := socket.create_connection(address, timeout=2.0))
                sock.sendall(request)
        return opened

    opened = world.cluster.client.netns.call(send)
    world.stopping.wait(hold)
    for sock in opened:
        sock.close()


FAULTS = (
    Fault("api-restart", _restart, weight=6),
    Fault("api-cut", _cut, weight=6, seconds=0),
    Fault("api-gone", _gone, weight=6),
    Fault("api-410-storm", _gone_storm),
    Fault("api-stall", _stall, seconds=8),
    Fault("api-half-open", _half_open, weight=1, seconds=IDLE),
    Fault("api-slow", _slow, seconds=10),
    Fault("api-errors", _errors),
    Fault("api-garbage", _garbage),
    Fault("api-no-watch-list", _no_watch_list),
    Fault("kill", _kill, weight=8, kills=True),
    Fault("terminate", _terminate, weight=4, kills=True),
    Fault("suspend", _suspend, weight=6, seconds=7),
    Fault("event-flood", _event_flood),
    Fault("addresses", _addresses, seconds=3),
    Fault("flows", _flows),
    Fault("http-abuse", _http_abuse),
    Fault("idle-connections", _idle_connections),
)

FAULTS_BY_NAME = {fault.name: fault for fault in FAULTS}
