"""The pages of the admin socket, asked with the client of the commands."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from svcproxy import limits
from svcproxy.admin import objects
from svcproxy.admin.client import AdminClient, NoDaemonError, OtherVersionError
from svcproxy.admin.core.protocol import PROTOCOL, FamilyStatus, Status
from svcproxy.admin.journal import Journal
from svcproxy.admin.pacing import Pacer
from svcproxy.admin.pages import AdminPages, Sources
from svcproxy.admin.server import AdminServer
from svcproxy.backends.base import ExternalChange
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.ipvs.core.settings import IpvsSettings, KernelFacts, scheduling
from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.backends.settings import LocalTraffic, Settings
from svcproxy.explain.mode_explainer import mode_explainer
from svcproxy.model.names import IPFamily, Kind, NamespacedName, Protocol
from svcproxy.model.objects import (
    EndpointSlice,
    Node,
    Service,
    ServiceCIDR,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from svcproxy.state.desired import DesiredState
from svcproxy.sync.report import Repaired

STATUS = Status(PROTOCOL, "1.2.3", 7, "node1", "nftables", 1.0, 2.0)


class Daemon:
    """The parts of a daemon that the pages read."""

    def __init__(self) -> None:
        self.states = tuple(DesiredState(family, "node1") for family in IPFamily)
        self.journal = Journal()
        self.status = STATUS

    def take(self, *objects: Service | EndpointSlice | Node | ServiceCIDR) -> None:
        for state in self.states:
            for obj in objects:
                match obj:
                    case Service():
                        state.update_service(obj)
                    case EndpointSlice():
                        state.update_slice(obj)
                    case Node():
                        state.update_node(obj)
                    case ServiceCIDR():
                        state.update_service_cidr(obj)
            state.checkout()


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def client(daemon: Daemon, tmp_path: Path) -> Iterator[AdminClient]:
    sources = Sources(
        lambda: daemon.status, daemon.states, daemon.journal, lambda: b"up 1\n", lambda: b"line\n"
    )
    server = AdminServer(str(tmp_path / "admin.sock"), AdminPages(sources).answer)
    server.start()
    yield AdminClient(str(tmp_path / "admin.sock"))
    server.stop()


def service(name: str, *addresses: str, **more: object) -> Service:
    ports = (ServicePortSpec("http", Protocol.TCP, 80, 0),)
    made = Service(NamespacedName("default", name), ports, addresses)
    return msgspec.structs.replace(made, **more)


def piece(name: str, family: IPFamily, *addresses: str, number: int = 1) -> EndpointSlice:
    return EndpointSlice(
        NamespacedName("default", f"{name}-{family}-{number}"),
        NamespacedName("default", name),
        family,
        (SlicePort("http", Protocol.TCP, 8080),),
        tuple(SliceEndpoint(address) for address in addresses),
    )


def test_objects_of_both_families_come_once(daemon: Daemon, client: AdminClient) -> None:
    services = [
        service("four", "10.96.0.1"),
        service("six", "fd00::1"),
        service("both", "10.96.0.2", "fd00::2"),
    ]
    slices = [
        piece("both", IPFamily.IPV4, "10.244.0.1"),
        piece("both", IPFamily.IPV4, "10.244.0.2", number=2),
        piece("both", IPFamily.IPV6, "fd00:244::1"),
    ]
    node = Node("node1", zone="a")
    cidr = ServiceCIDR(NamespacedName("", "kubernetes"), ("10.96.0.0/12", "fd00::/108"))
    daemon.take(*services, *slices, node, cidr)

    def names(kind: Kind) -> list[str]:
        return sorted(str(obj.name) for obj in client.objects(kind))

    assert names(Kind.SERVICE) == ["default/both", "default/four", "default/six"]
    assert sorted(client.objects(Kind.ENDPOINT_SLICE), key=str) == sorted(slices, key=str)
    assert list(client.objects(Kind.NODE)) == [node]
    assert list(client.objects(Kind.SERVICE_CIDR)) == [cidr]


def test_nothing_is_stored_yet(client: AdminClient) -> None:
    assert [obj for kind in Kind for obj in client.objects(kind)] == []


def test_thousands_of_objects(daemon: Daemon, client: AdminClient) -> None:
    daemon.take(*(service(f"s{n}", f"10.96.{n >> 8}.{n & 255}", f"fd::{n:x}") for n in range(3000)))
    names = [obj.name for obj in client.objects(Kind.SERVICE)]
    assert len(names) == len(set(names)) == 3000


def test_a_piece_is_short_even_if_it_skips_thousands_of_objects(daemon: Daemon) -> None:
    """Services of both families are skipped in the second one."""
    daemon.take(*(service(f"s{n}", f"10.96.{n >> 8}.{n & 255}", f"fd::{n:x}") for n in range(3000)))
    pieces = list(objects.lines(objects.stored(daemon.states, Kind.SERVICE), Pacer()))
    assert pieces.count(b"") >= 3000 // 512


def test_the_states_change_while_they_are_sent(daemon: Daemon, client: AdminClient) -> None:
    """As the loops do. No answer fails, and no object is sent twice."""
    daemon.take(*(service(f"s{n}", f"10.96.{n >> 8}.{n & 255}") for n in range(2000)))
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for state in daemon.states:
                name = f"s{number % 4000}"
                state.update_service(service(name, f"10.97.0.{number % 256}"))
                state.update_slice(piece(name, state._family, f"10.244.0.{number % 256}"))
                state.delete_service(NamespacedName("default", f"s{(number + 7) % 4000}"))
                state.delete_slice(NamespacedName("default", f"s{(number + 9) % 4000}-IPv4-1"))

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE):
            found = [obj.name for obj in client.objects(kind)]
            assert len(found) == len(set(found))
    finally:
        stop.set()
        changing.join()


def test_what_concerns_one_service_computes_the_same_ports(
    daemon: Daemon, client: AdminClient
) -> None:
    one, other = NamespacedName("default", "one"), NamespacedName("default", "other")
    external = "203.0.113.1"
    given: list[Service | EndpointSlice] = [
        service("one", "10.96.0.1", external_ips=(external,), created=2.0),
        service("other", "10.96.0.2", external_ips=(external,), created=1.0),
        service("third", "10.96.0.3"),
        piece("one", IPFamily.IPV4, "10.244.0.1"),
        piece("third", IPFamily.IPV4, "10.244.0.3"),
    ]
    daemon.take(*given)
    services = list(client.objects(Kind.SERVICE, one))
    assert {obj.name for obj in services} == {one, other}
    again = DesiredState(IPFamily.IPV4, "node1")
    for obj in services:
        assert isinstance(obj, Service)
        again.update_service(obj)
    for found in client.objects(Kind.ENDPOINT_SLICE, one):
        assert isinstance(found, EndpointSlice)
        again.update_slice(found)
    again.checkout()
    wanted = {n: p for n, p in daemon.states[0].ports.items() if n.service == one}
    assert {n: p for n, p in again.ports.items() if n.service == one} == wanted
    assert again.conflicts == 1


def test_an_unknown_service_has_nothing(client: AdminClient) -> None:
    assert list(client.objects(Kind.SERVICE, NamespacedName("a", "b"))) == []
    assert list(client.objects(Kind.ENDPOINT_SLICE, NamespacedName("a", "b"))) == []


def repair(daemon: Daemon, change: ExternalChange | None = None) -> None:
    daemon.journal.add(IPFamily.IPV4, Repaired({"chain_written": 2}, 0.25, change, bool(change)))


def test_repairs(daemon: Daemon, client: AdminClient) -> None:
    repair(daemon)
    repair(daemon, ExternalChange("nft", 42))
    first, second = client.repairs().repairs
    assert (first.number, first.operations, first.process) == (1, {"chain_written": 2}, "")
    assert (second.number, second.process, second.pid, second.reported) == (2, "nft", 42, True)
    assert [found.number for found in client.repairs(1).repairs] == [2]
    assert client.repairs(2).total == 2


def test_the_journal_is_bounded(daemon: Daemon, client: AdminClient) -> None:
    for _ in range(limits.ADMIN_REPAIRS + 5):
        repair(daemon)
    found = client.repairs()
    assert found.total == limits.ADMIN_REPAIRS + 5
    assert len(found.repairs) == limits.ADMIN_REPAIRS
    assert found.repairs[-1].number == found.total


def test_waiting_for_a_repair(daemon: Daemon, client: AdminClient) -> None:
    began = time.monotonic()
    assert client.repairs(0, wait=1.5).repairs == ()
    assert time.monotonic() - began >= 1.5
    threading.Timer(1.2, repair, (daemon,)).start()
    assert [found.number for found in client.repairs(0, wait=25).repairs] == [1]


def test_few_clients_may_wait(client: AdminClient, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[str] = []

    def wait() -> None:
        try:
            outcomes.append(str(client.repairs(0, wait=3.0).total))
        except NoDaemonError as error:
            outcomes.append("503" if "503" in str(error) else str(error))

    waiters = [threading.Thread(target=wait) for _ in range(limits.ADMIN_WAITING + 2)]
    for waiter in waiters:
        waiter.start()
    assert client.status() == STATUS
    for waiter in waiters:
        waiter.join()
    assert sorted(outcomes) == ["0"] * limits.ADMIN_WAITING + ["503"] * 2


def test_a_hundred_clients_at_once(daemon: Daemon, client: AdminClient) -> None:
    """More than the kernel lets wait for a connection."""
    daemon.take(*(service(f"s{n}", f"10.96.0.{n}") for n in range(200)))
    received: list[int] = []
    clients = [
        threading.Thread(target=lambda: received.append(len(list(client.objects(Kind.SERVICE)))))
        for _ in range(100)
    ]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert received == [200] * 100


def test_log_and_metrics(client: AdminClient) -> None:
    assert client.log() == "line\n"
    assert client.metrics() == "up 1\n"


@pytest.mark.parametrize(
    "target",
    [
        "/v1/objects",
        "/v1/objects?kind=Pod",
        "/v1/objects?kind=Service&service=web",
        "/v1/repairs?after=-1",
        "/v1/repairs?after=x",
        "/v1/repairs?wait=nan",
        "/v1/repairs?wait=-1",
        "/v1/repairs?after=99999999999999999999999999",
    ],
)
def test_malformed_queries(client: AdminClient, target: str) -> None:
    with pytest.raises(NoDaemonError, match="400"):
        client._get(target)


def test_an_unknown_page_means_another_version(client: AdminClient) -> None:
    with pytest.raises(OtherVersionError):
        client._get("/v2/status")


SETTINGS = [
    IptablesSettings(
        IPFamily.IPV4,
        masquerade_bit=3,
        masquerade_all=True,
        local_traffic=LocalTraffic("10.244.0.0/16"),
        node_port_ranges=("10.0.0.0/8",),
        node_address="10.0.0.1",
        accounting=True,
    ),
    NftablesSettings(IPFamily.IPV6, service_cidrs=("fd00::/108",), drop_invalid=True),
    IpvsSettings(
        IPFamily.IPV4,
        scheduling=scheduling("mh"),
        excluded=("10.1.0.0/16",),
        facts=KernelFacts(
            ("10.0.0.1",), drop_invalid=False, missing_schedulers=frozenset({"lc", "sh"})
        ),
    ),
]


@pytest.mark.parametrize(
    ("mode", "settings"), list(zip(("iptables", "nftables", "ipvs"), SETTINGS, strict=True))
)
def test_settings_arrive_as_they_are(
    daemon: Daemon, client: AdminClient, mode: str, settings: Settings
) -> None:
    family = FamilyStatus(settings=msgspec.to_builtins(settings))
    daemon.status = msgspec.structs.replace(STATUS, families={IPFamily.IPV4: family})
    explainer = mode_explainer(mode)
    assert explainer is not None
    assert explainer.settings(client.status().families[IPFamily.IPV4].settings) == settings
