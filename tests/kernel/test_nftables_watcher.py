"""The watcher reports all changes of other programs, with the process, and no own changes."""

import contextlib
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from svcproxy.backends.base import Desired, ExternalChange
from svcproxy.backends.nf_tables_watcher import LOST, NftablesWatcher
from svcproxy.backends.nftables.backend import NftablesBackend
from svcproxy.backends.settings import Settings
from svcproxy.backends.xtables.commands import untracked
from svcproxy.model.names import IPFamily
from svcproxy.state.desired import Changes
from testbed import netns
from testbed.netns import NetNS
from testbed.waiting import eventually
from tests.unit.nftables.services import service_port

pytestmark = pytest.mark.kernel

V4 = IPFamily.IPV4


class Scene:
    """A network namespace with svcproxy's table, and a watcher."""

    def __init__(self, space: NetNS) -> None:
        self.space = space
        self.seen: list[tuple[str, int]] = []
        self._numbers = itertools.count(1)
        self.backend = NftablesBackend(V4, Settings(V4))
        space.call(self.backend.probe)
        self.put()
        self.watcher: NftablesWatcher | None = None

    def see(self, change: ExternalChange) -> None:
        self.seen.append((change.process, change.pid))

    def put(self) -> None:
        port = service_port(V4)
        plan = self.backend.plan(Desired({port.name: port}, Settings(V4)), self.backend.read())
        self.backend.apply(plan)

    def watch(self, **more: object) -> NftablesWatcher:
        given = {"own_ports": [self.backend.port_id], **more}

        def make() -> NftablesWatcher:
            return NftablesWatcher(self.see, **given)  # type: ignore[arg-type]

        self.watcher = self.space.call(make)
        self.watcher.start()
        return self.watcher

    def nft(self, command: str) -> int:
        """Run nft; return its process ID."""
        process = self.space.popen(["nft", *command.split()], output=subprocess.DEVNULL)
        assert process.wait() == 0
        return process.pid

    def change(self, table: str = "ip svcproxy") -> int:
        """Have nft change a table; return its process ID."""
        return self.nft(f"add chain {table} mine{next(self._numbers)}")

    def settled(self) -> list[tuple[str, int]]:
        """Return the reported changes, after a last one that marks their end."""
        last = self.change()
        eventually(lambda: ("nft", last) in self.seen, "the last event")
        found = self.seen[: self.seen.index(("nft", last))]
        self.seen.clear()
        return found

    def close(self) -> None:
        if self.watcher is not None:
            self.watcher.stop()
        self.backend.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    space = NetNS(f"svp-watch-{id(object())}")
    netns.ip_batch([f"netns add {space.name}"])
    with contextlib.closing(Scene(space)) as made:
        yield made
    netns.remove([space.name])


@pytest.mark.parametrize(
    "damage",
    [
        "delete table ip svcproxy",
        "flush ruleset",
        "flush table ip svcproxy",
        "flush chain ip svcproxy services",
        "flush set ip svcproxy cluster-ips",
        "delete element ip svcproxy cluster-ips { 10.96.0.10 . tcp . 80 }",
        "add element ip svcproxy rejected { 10.96.0.11 . tcp . 80 }",
        "add rule ip svcproxy services drop",
        "add chain ip svcproxy mine",
        "add set ip svcproxy mine { type inet_proto ; }",
    ],
)
def test_every_kind_of_change_is_seen_once(scene: Scene, damage: str) -> None:
    scene.watch()
    culprit = scene.nft(damage)
    eventually(lambda: scene.seen, "an event", timeout=1.0)
    if "delete table" in damage or "ruleset" in damage:
        assert scene.seen == [("nft", culprit)]
    else:
        assert scene.settled() == [("nft", culprit)]


def test_changes_before_the_start_are_seen(scene: Scene) -> None:
    watcher = scene.space.call(lambda: NftablesWatcher(scene.see))
    scene.watcher = watcher
    scene.change()
    watcher.start()
    eventually(lambda: scene.seen, "an event", timeout=1.0)


def test_our_own_changes_are_not_seen(scene: Scene) -> None:
    scene.watch()
    port = service_port(V4, (1, 2, 9))
    plan = scene.backend.plan_changes(Changes({port.name: port}), Settings(V4))
    assert plan is not None
    assert scene.backend.apply(plan).operations
    scene.backend.clean_up()
    scene.put()
    assert scene.settled() == []


def test_a_large_own_transaction_overflows_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svcproxy.netlink.listener.NETLINK_EVENT_BUFFER_BYTES", 1 << 16)
    scene.watch()
    ports = [service_port(V4, name=f"s{n}", vip=f"10.97.{n // 250}.{n % 250}") for n in range(2000)]
    plan = scene.backend.plan_changes(Changes({port.name: port for port in ports}), Settings(V4))
    assert plan is not None
    assert scene.backend.apply(plan).operations["element_added"] == 2000 * 5
    assert scene.settled() == []


def test_other_tables_are_not_seen(scene: Scene) -> None:
    scene.watch()
    for command in ("add table ip other", "add chain ip other x", "add table ip6 svcproxy"):
        scene.nft(command)
    assert len(scene.settled()) == 1, "only that of the table in the other family"
    scene.watcher.stop()  # type: ignore[union-attr]
    scene.watch(families=[V4])
    scene.change("ip6 svcproxy")
    assert scene.settled() == []


def test_lost_events_are_reported(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svcproxy.netlink.listener.NETLINK_EVENT_BUFFER_BYTES", 2304)
    blocked = threading.Event()
    seen: list[str] = []

    def on_external_change(change: ExternalChange) -> None:
        seen.append(change.process)
        blocked.wait(5.0)

    scene.watcher = scene.space.call(lambda: NftablesWatcher(on_external_change))
    scene.watcher.start()
    scene.change()
    eventually(lambda: seen, "the first event")
    for _ in range(20):
        scene.change()
    blocked.set()
    eventually(lambda: LOST in seen, "the loss")
    scene.change()
    eventually(lambda: seen[-1] == "nft", "the watcher continues")


def test_a_failing_listener_does_not_end_the_watch(scene: Scene) -> None:
    def fail(change: ExternalChange) -> None:
        scene.see(change)
        raise RuntimeError("not now")

    scene.watcher = scene.space.call(lambda: NftablesWatcher(fail))
    scene.watcher.start()
    for count in (1, 2):
        scene.change()
        eventually(lambda n=count: len(scene.seen) == n, "an event")  # type: ignore[misc]


# --- iptables' nft variant ---------------------------------------------------------------------


def in_nat(table: str, chain: str, *, deletion: bool) -> bool | None:
    return (not deletion) if table == "nat" else None


def restore(scene: Scene, chain: str, watcher: NftablesWatcher | None = None) -> int:
    """Have iptables make a chain, announced to ``watcher``; return the process ID."""
    process: list[subprocess.Popen[bytes]] = []

    def start() -> int:
        command = ["iptables-nft", "-t", "nat", "-N", chain]
        process.append(scene.space.popen(command, output=subprocess.DEVNULL))
        return process[0].pid

    with watcher.own(start) if watcher else untracked(start):
        assert process[0].wait() == 0
    return process[0].pid


def test_changes_of_own_programs_are_recognised(scene: Scene) -> None:
    watcher = scene.watch(judge=in_nat, own_ports=())
    for number in range(5):
        restore(scene, f"KUBE-{number}", watcher)
    assert scene.seen == []
    culprit = restore(scene, "KUBE-OTHERS")
    eventually(lambda: scene.seen, "a foreign restore")
    assert scene.seen == [("iptables-nft", culprit)]


def test_other_programs_are_seen_while_an_own_program_runs(scene: Scene) -> None:
    watcher = scene.watch(judge=in_nat, own_ports=())
    restore(scene, "KUBE-ONE", watcher)

    def start() -> int:
        return restore(scene, "KUBE-MINE")  # it changes something before its process ID is known

    with watcher.own(start):
        culprit = scene.change("ip nat")
        again = restore(scene, "KUBE-OTHERS")
    assert scene.seen == [("nft", culprit), ("iptables-nft", again)]


def test_certainty_and_family_are_reported(scene: Scene) -> None:
    reported: list[ExternalChange] = []
    scene.watcher = scene.space.call(lambda: NftablesWatcher(reported.append, judge=in_nat))
    scene.watcher.start()
    culprit = restore(scene, "KUBE-ONE")
    removal = scene.nft("delete chain ip nat KUBE-ONE")
    eventually(lambda: len(reported) == 2, "both")
    assert reported == [
        ExternalChange("iptables-nft", culprit, certain=True, families=frozenset((V4,))),
        ExternalChange("nft", removal, certain=False, families=frozenset((V4,))),
    ]


# --- Lifecycle --------------------------------------------------------------------------------------


def test_it_stops_quickly_and_closes_its_sockets() -> None:
    program = (
        "import os, time\n"
        "from svcproxy.backends.nf_tables_watcher import NftablesWatcher\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "for _ in range(20):\n"
        "    watcher = NftablesWatcher(print)\n"
        "    watcher.start()\n"
        "    begin = time.monotonic(); watcher.stop()\n"
        "    assert time.monotonic() - begin < 0.5\n"
        "NftablesWatcher(print).stop()\n"
        "print(len(os.listdir('/proc/self/fd')) - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0"


def test_the_callers_namespace_is_watched(scene: Scene) -> None:
    outside: list[str] = []
    watcher = NftablesWatcher(lambda change: outside.append(change.process))
    watcher.start()
    try:
        scene.watch()
        scene.change()
        eventually(lambda: scene.seen, "an event")
        assert not outside
    finally:
        watcher.stop()
