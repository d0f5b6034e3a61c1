"""``svcproxy show``: its text for telling scenarios, its JSON for all, and its errors."""

import io
import json
from pathlib import Path

import msgspec
import pytest

from svcproxy.admin.core.protocol import PROTOCOL, FamilyStatus, Status, WatchStatus
from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.commands.output import Output
from svcproxy.commands.service_text import write_detail, write_list
from svcproxy.explain.core.documents import ConnectionCounts, KernelDifference
from svcproxy.explain.core.node_summary import KernelComparison
from svcproxy.explain.core.service_detail import service_detail
from svcproxy.explain.core.service_documents import ServiceDetail, ServiceList
from svcproxy.explain.core.service_list import Observed, Selection, service_list
from svcproxy.explain.core.view import NodeView
from svcproxy.explain.views import view_of_objects
from svcproxy.main import main
from svcproxy.model.names import IPFamily, Kind, NamespacedName, Protocol, ServicePortName
from svcproxy.model.objects import EndpointSlice, Node, Service, SliceEndpoint, SlicePort
from tests.scenarios.modes import NODE, NODE_OBJECT, config_of
from tests.scenarios.scenario import FOLDER, load
from tests.scenarios.test_scenarios import objects_of

GOLDEN = Path(__file__).parent / "show"
EXAMPLES = Path(__file__).parents[3] / "examples"
SHOWN = (
    "conflict_cluster_ip",
    "conflict_older_wins",
    "dual_stack",
    "duplicate_endpoints",
    "external_ips_off",
    "external_local",
    "external_local_none_here",
    "health_check_node_port",
    "internal_local_none_here",
    "ipvs_schedulers",
    "named_target_ports",
    "no_endpoints_of_one_port",
    "node_hints",
    "node_port_addresses",
    "readiness",
    "session_affinity_timeout",
    "source_ranges",
    "terminating_endpoints",
    "unplaced_endpoints",
    "zone_hints",
)
"""Scenarios whose text is compared."""


def view_of(scenario: str, mode: str = "nftables") -> NodeView:
    found = load(FOLDER / f"{scenario}.txt")
    objects = objects_of(found)
    if not any(isinstance(obj, Node) for obj in objects):
        objects.append(NODE_OBJECT)
    return view_of_objects(NODE, mode, config_of(mode, found.flags), objects)


def names_of(view: NodeView) -> list[NamespacedName]:
    return sorted({name for each in view.families.values() for name in each.state.services})


def text_of(found: ServiceList | ServiceDetail) -> str:
    stream = io.StringIO()
    if isinstance(found, ServiceList):
        write_list(Output(stream), found)
    else:
        write_detail(Output(stream), found)
    return stream.getvalue()


@pytest.mark.parametrize("scenario", SHOWN)
def test_text(scenario: str, request: pytest.FixtureRequest) -> None:
    view = view_of(scenario, "ipvs" if scenario.startswith("ipvs") else "nftables")
    parts = [text_of(service_list(view))]
    parts += [text_of(service_detail(view, name)) for name in names_of(view)]
    text = "\n".join(parts)
    path = GOLDEN / f"{scenario}.txt"
    if request.config.getoption("--regenerate"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("scenario", sorted(path.stem for path in FOLDER.glob("*.txt")))
def test_all_services_of_all_scenarios_can_be_shown(scenario: str) -> None:
    view = view_of(scenario)
    found = service_list(view)
    assert [(s.namespace, s.name) for s in found.services] == list(map(tuple, names_of(view)))
    assert msgspec.json.decode(msgspec.json.encode(found), type=ServiceList) == found
    for summary in found.services:
        name = NamespacedName(summary.namespace, summary.name)
        detail = service_detail(view, name)
        assert msgspec.json.decode(msgspec.json.encode(detail), type=ServiceDetail) == detail
        assert detail.problems == summary.problems
        for port in detail.ports:
            key = ServicePortName(*name, port.name, port.protocol)
            state = view.families[port.family].state.ports[key]
            for shown, frontend in zip(port.frontends, state.frontends, strict=True):
                assert (shown.address, shown.port) == (frontend.address, frontend.port)
                assert shown.verdict == frontend.verdict.value
                assert bool(shown.reason) is (shown.verdict != "forward")
            assert sum(each.cluster for each in port.endpoints) == len(state.cluster_endpoints)
            assert sum(each.local for each in port.endpoints) == len(state.local_endpoints)


def status(**families: FamilyStatus) -> Status:
    watches = {kind: WatchStatus("88213", synced=True, heard=1000.0) for kind in Kind}
    watches[Kind.SERVICE] = WatchStatus("9999", synced=True, heard=990.0)
    return Status(
        protocol=PROTOCOL,
        version="1.0",
        pid=1,
        node=NODE,
        mode="nftables",
        started=1.0,
        now=1010.0,
        families={IPFamily(name): about for name, about in families.items()},
        watches=watches,
        not_ready_since={"default/web": {"10.244.1.2": 968.0}},
    )


def of_daemon(view: NodeView, **families: FamilyStatus) -> NodeView:
    """The view with the status of a daemon; by default all families are up to date."""
    synced = {family.value: FamilyStatus(synced=1000.0) for family in view.families}
    return msgspec.structs.replace(view, status=status(**{**synced, **families}))


def first_line(view: NodeView, observed: Observed) -> str:
    return text_of(service_list(view, observed)).splitlines()[0]


def test_the_first_line_says_whether_the_node_is_up_to_date() -> None:
    view = view_of("dual_stack")
    agrees = Observed(dict.fromkeys(IPFamily, KernelComparison()))
    start = "node1  nftables  "
    assert first_line(of_daemon(view), agrees) == (
        f"{start}IPv4, IPv6    up to date (rv 88213), kernel agrees"
    )
    assert first_line(of_daemon(view), Observed()).endswith("(rv 88213), kernel not checked")
    unread = Observed(dict.fromkeys(IPFamily, KernelComparison("run as root")))
    assert first_line(of_daemon(view), unread).endswith("kernel not read: run as root")
    behind = {"IPv4": FamilyStatus(synced=1.0, pending=3), "IPv6": FamilyStatus(failing="no")}
    assert text_of(service_list(of_daemon(view, **behind), agrees)).splitlines()[:2] == [
        f"{start}IPv4    3 objects pending (rv 88213), kernel agrees",
        f"{start}IPv6    the last sync failed: no (rv 88213), kernel agrees",
    ]
    waiting = of_daemon(view, IPv4=FamilyStatus(), IPv6=FamilyStatus())
    assert "not synced yet (rv 88213)" in first_line(waiting, agrees)


def test_what_was_observed_on_the_node() -> None:
    view = of_daemon(
        view_of("readiness"),
        IPv4=FamilyStatus(synced=1.0, held={"default/web:http": "the kernel said ENOSPC"}),
    )
    name = ServicePortName("default", "web", "http", Protocol.TCP)
    missing = KernelDifference(
        difference="missing", object="element of map all2", desired="add element …"
    )
    observed = Observed(
        {IPFamily.IPV4: KernelComparison("", 3, {name: (missing, missing)})},
        {
            (IPFamily.IPV4, "10.96.0.10", 80, Protocol.TCP): ConnectionCounts(
                new_per_second=1.25, open=14
            )
        },
    )
    text = text_of(service_list(view, observed))
    assert "kernel differs: 3 differences" in text
    (line,) = (line for line in text.splitlines() if "10.96.0.10:80" in line)
    assert "1.2    14    no: 2 differences  held back: the kernel said ENOSPC" in line
    detail = text_of(service_detail(view, name.service, observed))
    assert "no: not ready for 42 s" in detail
    assert "    element of map all2: missing\n      + add element …\n" in detail


def test_filters() -> None:
    view = view_of("no_endpoints_of_one_port")
    assert service_list(view, selection=Selection("other")).services == ()
    assert len(service_list(view, selection=Selection("default")).services) == 1
    assert len(service_list(view, selection=Selection(problems=True)).services) == 1
    assert service_list(view_of("cluster_ip"), selection=Selection(problems=True)).services == ()
    (service,) = service_list(
        view_of("dual_stack"), selection=Selection(family=IPFamily.IPV6)
    ).services
    assert {port.family for port in service.ports} == {IPFamily.IPV6}


def test_a_node_without_services() -> None:
    text = text_of(service_list(view_of_objects(NODE, "ipvs", config_of("ipvs", ()), [])))
    assert text.endswith("\n\n0 Services, no problems\n")


def test_control_characters_of_hostile_names_do_not_reach_the_terminal() -> None:
    """The parser refuses such names; another source of objects might not."""
    config = config_of("nftables", ())
    (original,) = (
        obj for obj in objects_of(load(FOLDER / "cluster_ip.txt")) if isinstance(obj, Service)
    )
    name = NamespacedName("default", "\x1b[2Jweb\n\u202ebew")
    hostile = msgspec.structs.replace(original, name=name, annotations=(("a", "\x9b31m"),))
    view = view_of_objects(NODE, "nftables", config, [hostile])
    for text in (text_of(service_list(view)), text_of(service_detail(view, name))):
        assert "\\x1b[2Jweb\\n" in text
        assert not set(text) & {"\x1b", "\x9b", "\u202e"}


def test_a_large_service_does_not_flood_a_terminal() -> None:
    (service,) = (
        obj for obj in objects_of(load(FOLDER / "cluster_ip.txt")) if isinstance(obj, Service)
    )
    (spec,) = service.ports
    slices = [
        EndpointSlice(
            NamespacedName("default", f"web-{number}"),
            service.name,
            IPFamily.IPV4,
            (SlicePort(spec.name, spec.protocol, 8080),),
            tuple(SliceEndpoint(f"10.{number}.{n >> 8}.{n & 255}") for n in range(600)),
        )
        for number in range(2)
    ]
    view = view_of_objects(NODE, "nftables", config_of("nftables", ()), [service, *slices])
    found = service_detail(view, service.name)
    assert len(found.ports[0].endpoints) == 1200
    text = text_of(found)
    assert "… and 200 more: use -o json" in text
    assert text.count(":8080  ") == 1000


def show(*arguments: str) -> int:
    flags = ("--", "--proxy-mode=nftables", f"--hostname-override={NODE}")
    return main(["show", "--manifests", str(EXAMPLES), *arguments, *flags])


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert show("-o", "json") == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["apiVersion"]) == ("ServiceList", "svcproxy.io/v1")
    assert {service["name"] for service in found["services"]} == {"web", "dns", "empty"}
    assert show("web", "-o", "json", "--family", "4") == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["namespace"], found["name"]) == ("ServiceDetail", "default", "web")
    assert {port["family"] for port in found["ports"]} == {"IPv4"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("default/wbe",), "did you mean default/web?"),
        (("other/web",), "did you mean default/web?"),
        (("nothing-like-it",), "serves no Service nothing-like-it ("),
        (("web", "-n", "kube-system"), "did you mean default/web?"),
        (("dns", "--family", "6"), "serves no Service kube-system/dns over IPv6"),
    ],
)
def test_an_unknown_service(
    arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(*arguments) == ExitCode.NOT_FOUND
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
