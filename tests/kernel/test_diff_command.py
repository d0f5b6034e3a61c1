"""``svcproxy diff`` as a process, on a real kernel: words, documents, exit codes.

The admin socket is real. Behind it is no daemon that would repair the damage at once, but a state
whose rules were written once.
"""

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import pytest

from svcproxy.admin.core.protocol import PROTOCOL, FamilyStatus, Repair, Repairs, Status
from svcproxy.admin.pages import Answer, Query, failure
from svcproxy.admin.server import AdminServer
from svcproxy.backends.base import Backend, Desired
from svcproxy.backends.core.node_settings import settings_for
from svcproxy.backends.iptables.backend import IptablesBackend
from svcproxy.backends.nftables.backend import NftablesBackend
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.cli import parse
from svcproxy.explain.core.view import desired_state
from svcproxy.model.names import IPFamily, Kind, NamespacedName, Protocol
from svcproxy.model.objects import (
    ApiObject,
    EndpointSlice,
    Node,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from testbed.netns import NetNS
from testbed.waiting import eventually

pytestmark = pytest.mark.kernel

FLAGS = {"cluster-cidr": "10.244.0.0/16", "hostname-override": "node1"}
HOSTILE = "\x1b[2Jevil\n\x07"


def objects() -> list[ApiObject]:
    found: list[ApiObject] = [Node(name="node1", addresses=("192.168.50.1",))]
    for number in (1, 2):
        name = NamespacedName("default", f"web{number}")
        spec = ServicePortSpec(name="http", protocol=Protocol.TCP, port=80, node_port=0)
        service = Service(name=name, ports=(spec,), cluster_ips=(f"10.96.0.{number}",))
        ends = tuple(
            SliceEndpoint(address=f"10.244.{number}.{n}", node_name="node1") for n in (1, 2)
        )
        ports = (SlicePort("http", Protocol.TCP, 8080),)
        found += [service, EndpointSlice(name, name, IPFamily.IPV4, ports, ends)]
    return found


class Served:
    """A namespace with rules, and an admin socket that answers for them."""

    def __init__(self, space: NetNS, socket: Path, mode: str) -> None:
        self.space = space
        self.socket = socket
        self.mode = mode
        self.objects = objects()
        self.repairs: list[Repair] = []
        self.pending = 0
        self.held: dict[str, str] = {}
        flags = [f"--{name}={value}" for name, value in FLAGS.items()]
        proxy = "nftables" if mode == "nftables" else "iptables"
        self.config = parse([*flags, f"--proxy-mode={proxy}", "--manifests=/none"], {})
        self.state, _ = desired_state(IPFamily.IPV4, "node1", self.config, self.objects)
        settings = settings_for(self.config, IPFamily.IPV4, self.state.node)
        if mode == "nftables":
            backend: Any = NftablesBackend(IPFamily.IPV4, settings)
        else:
            backend = IptablesBackend(Iptables(Variant(mode), IPFamily.IPV4), settings)
        self.backend: Backend[Any, Any] = backend
        self.settings = settings

    def resync(self) -> None:
        def sync() -> None:
            desired = Desired(self.state.ports, self.settings)
            self.backend.apply(self.backend.plan(desired, self.backend.read()))

        self.space.call(sync)

    def respond(self, path: str, query: Query) -> Answer:
        match path:
            case "/v1/status":
                return answered(self.status())
            case "/v1/objects":
                kind = Kind(query["kind"]).value
                found = [each for each in self.objects if type(each).__name__ == kind]
                return answered(found, b"\n")
            case "/v1/repairs":
                later = tuple(r for r in self.repairs if r.number > int(query["after"]))
                return answered(Repairs(len(self.repairs), later))
            case _:
                return failure(HTTPStatus.NOT_FOUND)

    def status(self) -> Status:
        own: Any = self.backend
        settings = msgspec.to_builtins(own._planner.settings)
        about = FamilyStatus(synced=1.0, pending=self.pending, held=self.held, settings=settings)
        return Status(
            PROTOCOL,
            "1",
            1,
            "node1",
            self.config.proxy_mode,
            1.0,
            2.0,
            flags=FLAGS | {"proxy-mode": self.config.proxy_mode},
            families={IPFamily.IPV4: about},
            iptables_variant="" if self.mode == "nftables" else self.mode,
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "svcproxy", "diff", "--socket", str(self.socket), *arguments]

    def diff(self, *arguments: str) -> tuple[int, str]:
        done = self.space.run(*self.command(*arguments), check=False, timeout=120)
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout

    def damage(self) -> None:
        if self.mode == "nftables":
            key = "10.96.0.1 . tcp . 80 . 1"
            self.space.run("nft", f"delete element ip svcproxy all2 {{ {key} }}")
            return
        chain = next(c for c in self.chains() if c.startswith("KUBE-SVC-"))
        self.space.run(f"iptables-{self.mode}", "-t", "nat", "-F", chain)

    def chains(self) -> list[str]:
        saved = self.space.run(f"iptables-{self.mode}-save", "-t", "nat").stdout
        line = next(each for each in saved.splitlines() if "default/web1:http cluster IP" in each)
        return [line.rpartition("-j ")[2]]


def differences(document: Any) -> list[Any]:
    return [each for about in document["families"] for each in about["differences"]]


def answered(value: object, end: bytes = b"") -> Answer:
    return Answer(HTTPStatus.OK, "application/json", iter((msgspec.json.encode(value) + end,)))


ANY = pytest.mark.parametrize("served", ["nftables"], indirect=True)
"""For what does not depend on the mode."""


@pytest.fixture(params=["nftables", "nft", "legacy"])
def served(space: NetNS, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    made = Served(space, tmp_path / "admin.sock", request.param)
    made.space.call(made.backend.probe)
    made.resync()
    server = AdminServer(str(made.socket), made.respond)
    server.start()
    with contextlib.closing(made.backend) if made.mode == "nftables" else contextlib.nullcontext():  # type: ignore[type-var]
        eventually(made.socket.exists)
        yield made
        server.stop()


def test_the_same_is_said_in_a_few_lines(served: Served) -> None:
    code, text = served.diff()
    first, second, last = text.splitlines()
    assert code == 0
    assert re.fullmatch(r"node1  (nftables|iptables)  IPv4    up to date, kernel agrees", first)
    assert re.fullmatch(r"IPv4  \d+ (elements|rules), \d+ chains in the kernel", second)
    assert last == "no repairs since the daemon started"


def test_damage_is_told_with_its_service(served: Served) -> None:
    served.damage()
    code, text = served.diff()
    assert code == 1
    assert "kernel differs: 1 difference" in text
    assert "default/web1:http" in text
    assert "default/web2" not in text
    assert re.search(r"^      desired .*10\.244\.1\.\d", text, re.MULTILINE)
    served.resync()
    assert served.diff()[0] == 0


@ANY
def test_the_document(served: Served) -> None:
    served.damage()
    served.repairs.append(
        Repair(1, 1.5e9, IPFamily.IPV4, {"element_added": 2}, HOSTILE, 4711, 0.012, reported=True)
    )
    code, text = served.diff("-o", "json")
    document = json.loads(text)
    assert code == 1
    assert (document["kind"], document["apiVersion"]) == ("Diff", "svcproxy.io/v1")
    (about,) = document["families"]
    (found,) = about["differences"]
    assert about["family"] == "IPv4"
    assert (found["difference"], found["servicePorts"]) == ("missing", ["default/web1:http"])
    (repair,) = document["repairs"]
    assert (repair["process"], repair["pid"], repair["seconds"]) == (HOSTILE, 4711, 0.012)


@ANY
def test_repairs_are_escaped_and_limited(served: Served) -> None:
    for number in range(1, 13):
        served.repairs.append(
            Repair(number, 1.5e9, IPFamily.IPV4, {"chain_written": number}, HOSTILE, number)
        )
    code, text = served.diff("-n", "2")
    assert code == 0
    assert "\x1b" not in text
    assert "\x07" not in text
    lines = text.splitlines()[-2:]
    assert [("11 chains written" in lines[0]), ("12 chains written" in lines[1])] == [True, True]
    assert r"made by \x1b[2Jevil\n\x07 (pid 12)" in lines[1]
    assert "2017-" in lines[0]


@ANY
def test_a_service_that_is_held_back_is_no_difference(served: Served) -> None:
    served.damage()
    served.held = {"default/web1:http": "refused"}
    code, text = served.diff()
    assert code == 0
    assert "held back by the daemon, see svcproxy show: default/web1:http" in text


@ANY
def test_a_pending_change_is_said(served: Served) -> None:
    served.pending = 3
    served.damage()
    code, text = served.diff()
    assert code == 1
    assert "3 objects pending" in text


@ANY
def test_a_difference_that_a_sync_removes_meanwhile_is_none(served: Served) -> None:
    """The kernel is repaired between the two readings."""
    served.damage()
    asked = []
    respond = served.respond

    def repairing(path: str, query: Query) -> Answer:
        asked.append(path)
        if asked.count("/v1/status") == 2 and path == "/v1/status":
            served.resync()
        return respond(path, query)

    other = AdminServer(f"{served.socket}2", repairing)
    other.start()
    try:
        eventually(Path(f"{served.socket}2").exists)
        code, text = served.diff("--socket", f"{served.socket}2")
    finally:
        other.stop()
    assert code == 0, text


@ANY
def test_watching_follows_damage_and_repairs(served: Served) -> None:
    command = served.command("--watch", "--interval", "5", "-o", "json")
    process = served.space.call(
        lambda: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    )
    assert process.stdout is not None
    try:
        assert differences(json.loads(process.stdout.readline())) == []
        served.damage()
        (found,) = differences(json.loads(process.stdout.readline()))
        assert found["servicePorts"] == ["default/web1:http"]
        served.resync()
        served.repairs.append(Repair(1, 1.5e9, IPFamily.IPV4, {"chain_written": 1}, "nft", 4711))
        document = json.loads(process.stdout.readline())
        assert differences(document) == []
        assert [each["process"] for each in document["repairs"]] == ["nft"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()


@ANY
def test_watching_ends_with_the_daemon(served: Served) -> None:
    socket = f"{served.socket}2"
    server = AdminServer(socket, served.respond)
    server.start()
    eventually(Path(socket).exists)
    command = served.command("--watch", "--interval", "5", "--socket", socket)
    process = served.space.call(
        lambda: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    server.stop()
    _, error = process.communicate(timeout=120)
    assert "kernel agrees" in first
    assert process.returncode == 4
    assert error.startswith("svcproxy: no daemon")


def test_without_a_daemon(space: NetNS, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "svcproxy", "diff", "--socket", str(tmp_path / "none")]
    done = space.run(*command, check=False)
    assert done.returncode == 4
    assert re.fullmatch(r"svcproxy: no daemon: there is no .*\n", done.stderr)
