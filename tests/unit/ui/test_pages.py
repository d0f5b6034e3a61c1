"""The pages as values: what they contain, and that hostile texts stay texts."""

from html.parser import HTMLParser

import msgspec
import pytest

from svcproxy.admin.core.protocol import FamilyStatus, Repair, Status, WatchStatus
from svcproxy.config import Config, ProxyMode
from svcproxy.explain.core.service_detail import service_detail
from svcproxy.explain.core.service_documents import ServiceDetail
from svcproxy.explain.core.service_list import service_list
from svcproxy.explain.core.trace_arguments import parse_origin, parse_target
from svcproxy.explain.core.trace_document import Trace, TracedRules
from svcproxy.explain.trace_packet import Asked, trace_packet
from svcproxy.explain.views import view_of_objects
from svcproxy.limits import UI_ROWS, UI_TROUBLES
from svcproxy.model.names import IPFamily, Kind, NamespacedName, Protocol
from svcproxy.model.objects import (
    ApiObject,
    EndpointSlice,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from svcproxy.ui.core.frame import Place
from svcproxy.ui.core.node import Comparison, Health, Snapshot, health_of
from svcproxy.ui.core.overview import overview
from svcproxy.ui.core.rows import Trouble, service_rows
from svcproxy.ui.core.service_page import service_page, unknown_service
from svcproxy.ui.core.trace_page import trace_page

HOSTILE = "</td><script>alert(1)</script>\"'\x1b[31m\u202e&lt;"
NOW = 1_000_000.0
HEALTHY = Health(fit=True)


class Page(HTMLParser):
    """A parsed page: its tags, links and text, and whether all elements are closed in order."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.body = body.decode()
        self._open: list[str] = []
        self.feed(self.body)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def objects(number: int = 1, *, ready: bool = True) -> list[ApiObject]:
    found: list[ApiObject] = []
    port = ServicePortSpec("http", Protocol.TCP, 80, 0)
    for n in range(number):
        name = NamespacedName("default", f"web-{n:05}")
        found.append(Service(name, (port,), (f"10.96.{n // 250}.{n % 250 + 1}",)))
        target = SliceEndpoint("10.244.0.1", ready=ready, serving=ready, node_name="node1")
        ports = (SlicePort("http", Protocol.TCP, 8080),)
        found.append(EndpointSlice(name, name, IPFamily.IPV4, ports, (target,)))
    return found


def snapshot(*found: ApiObject, **changes: object) -> Snapshot:
    view = view_of_objects("node1", ProxyMode.NFTABLES, Config(), found)
    status = Status(
        protocol=1,
        version="0.1.0",
        pid=1,
        node="node1",
        mode="nftables",
        started=NOW - 3600,
        now=NOW,
        families={IPFamily.IPV4: FamilyStatus(synced=NOW - 3)},
        watches={Kind.SERVICE: WatchStatus("88213", synced=True)},
    )
    made = Snapshot(status, service_rows(service_list(view).services))
    return msgspec.structs.replace(made, **changes)


def shown(now: Snapshot, health: Health = HEALTHY, **query: str) -> Page:
    return Page(overview(now, health, query))


def test_the_overview_says_how_the_node_is() -> None:
    text = shown(snapshot(*objects(), comparison=Comparison(at=NOW - 2))).text
    for expected in ("node1", "nftables", "Healthy", "Up to date", "Kernel agrees", "88213"):
        assert expected in text
    assert "Services in trouble" not in text


def test_each_state_of_the_node_is_named() -> None:
    now = snapshot(*objects())

    def with_family(**values: object) -> Page:
        families = {IPFamily.IPV4: msgspec.convert(values, FamilyStatus)}
        return shown(
            msgspec.structs.replace(
                now, status=msgspec.structs.replace(now.status, families=families)
            )
        )

    assert "2 changes pending" in with_family(synced=1.0, pending=2).text
    assert "Sync fails" in with_family(failing="EPERM").text
    assert "Waiting for the first sync" in with_family().text
    differs = msgspec.structs.replace(now, comparison=Comparison(at=NOW, differences=3))
    assert "3 differences in the kernel" in shown(differs).text
    unread = msgspec.structs.replace(now, comparison=Comparison(problem="not permitted"))
    assert "not permitted" in shown(unread).text
    assert "Unhealthy" in shown(now, Health(fit=False, working=False)).text
    assert "Not eligible" in shown(now, Health(fit=False, eligible=False)).text
    assert "ipvs-audit" in shown(now, Health(fit=False, stalled=("ipvs-audit",))).text


def test_services_in_trouble_come_first_and_are_limited() -> None:
    now = snapshot(*objects(UI_TROUBLES + 5, ready=False))
    assert all(row.troubles == (Trouble.REFUSED,) for row in now.rows)
    page = shown(now)
    assert page.text.index("Services in trouble") < page.text.index("Latency")
    assert f"All {UI_TROUBLES + 5} Services in trouble" in page.text
    assert "./?only=trouble#services" in page.links
    assert "REJECT: no endpoint is ready" in page.text


def test_the_list_is_paged_and_searched() -> None:
    now = snapshot(*objects(2 * UI_ROWS + 1))
    first, last = shown(now), shown(now, page="3")
    assert sum("service?name=" in link for link in first.links) == UI_ROWS
    assert sum("service?name=" in link for link in last.links) == 1
    assert "./?page=2#services" in first.links
    assert "Page 3 of 3" in last.text
    assert shown(now, page="999999").text == last.text
    by_name, by_address = shown(now, find="WEB-00007"), shown(now, find="10.96.0.8:80")
    for page in (by_name, by_address):
        assert [link for link in page.links if "?name=" in link] == [
            "service?name=default%2Fweb-00007"
        ]
    assert "No Service matches" in shown(now, find="nothing").text
    assert "No Service matches" in shown(now, only="trouble").text


@pytest.mark.parametrize("page", ["0", "-1", "x", "", "9" * 200, "٣", "1e3"])
def test_any_page_number_is_a_page(page: str) -> None:
    assert "web-00000" in shown(snapshot(*objects()), page=page).text


def test_hostile_texts_stay_texts() -> None:
    repair = Repair(1, NOW, IPFamily.IPV4, {HOSTILE: 1}, process=HOSTILE, pid=7, seconds=0.1)
    now = snapshot(*objects(), repairs=(repair,), repaired=1)
    families = {IPFamily.IPV4: FamilyStatus(failing=HOSTILE)}
    status = msgspec.structs.replace(
        now.status, families=families, version=HOSTILE, node=HOSTILE, mode=HOSTILE
    )
    rows = [msgspec.structs.replace(now.rows[0], problems=(HOSTILE,), troubles=(Trouble.OTHER,))]
    now = msgspec.structs.replace(
        now, status=status, rows=rows, comparison=Comparison(problem=HOSTILE)
    )
    page = shown(now, Health(fit=False, stalled=(HOSTILE,)), find=HOSTILE)
    assert "script" not in page.tags
    assert "\x1b" not in page.body
    assert "\u202e" not in page.body
    assert page.text.count("<script>alert(1)</script>") >= 8


def described(*found: ApiObject) -> ServiceDetail:
    view = view_of_objects("node1", ProxyMode.NFTABLES, Config(), found)
    return service_detail(view, NamespacedName("default", "web-00000"))


def test_the_page_of_a_service_names_every_endpoint_and_why() -> None:
    text = Page(service_page(described(*objects()))).text
    for expected in (
        "default/web-00000",
        "10.96.0.1:80/tcp",
        "10.244.0.1:8080",
        "1 of 1",
        "Serves",
    ):
        assert expected in text
    text = Page(service_page(described(*objects(ready=False)))).text
    for expected in ("not used", "not ready", "REJECT: no endpoint is ready", "1 problem"):
        assert expected in text


def test_a_service_with_many_endpoints_has_a_page_of_limited_size() -> None:
    service, endpoint_slice = objects()
    assert isinstance(endpoint_slice, EndpointSlice)
    many = tuple(SliceEndpoint(f"10.244.{n // 250}.{n % 250 + 1}") for n in range(10_000))
    detail = described(service, msgspec.structs.replace(endpoint_slice, endpoints=many))
    body = service_page(detail)
    assert len(body) < 200_000
    assert "9,900 more are not shown" in body.decode()


def test_hostile_texts_on_the_page_of_a_service_stay_texts() -> None:
    detail = described(*objects())
    port = msgspec.structs.replace(detail.ports[0], objects=(HOSTILE,), held=HOSTILE, name=HOSTILE)
    detail = msgspec.structs.replace(detail, ports=(port,), problems=(HOSTILE,), name=HOSTILE)
    page = Page(service_page(detail))
    assert "script" not in page.tags
    assert page.text.count("<script>") >= 5
    assert "script" not in Page(unknown_service(Place("n", "m"), HOSTILE)).tags


def traced(origin: str, target: str, **changes: object) -> Trace:
    view = view_of_objects("node1", ProxyMode.NFTABLES, Config(), objects())
    asked = Asked(parse_origin(origin), parse_target(target), kernel=False)
    return msgspec.structs.replace(trace_packet(view, asked).document, **changes)


NODE = Place("node1", "nftables", "trace")


def test_the_answer_of_a_trace_has_all_steps() -> None:
    found = traced("10.244.0.9", "default/web-00000:80")
    text = Page(trace_page(NODE, "10.244.0.9", "default/web-00000:80", found)).text
    for expected in (
        "Delivered",
        "10.244.0.9 → 10.96.0.1:80/tcp",
        "default/web-00000:http",
        "the only endpoint",
        "10.244.0.1:8080",
        "Kernel not traced",
    ):
        assert expected in text
    nowhere = traced("outside", "192.0.2.1:80")
    assert "Not a Service" in Page(trace_page(NODE, "", "", nowhere)).text


def test_a_trace_says_if_the_kernel_differs() -> None:
    rules = TracedRules(agrees=False, disagreements=("the kernel drops it",))
    found = traced("10.244.0.9", "10.96.0.1:80", kernel=rules)
    text = Page(trace_page(NODE, "", "", found)).text
    assert "The kernel's rules differ" in text
    assert "the kernel drops it" in text


def test_the_form_keeps_what_was_asked_and_says_why_there_is_no_answer() -> None:
    page = Page(trace_page(NODE, HOSTILE, HOSTILE, error=HOSTILE))
    assert "script" not in page.tags
    assert page.body.count("&lt;script&gt;") == 3
    assert "Not traced" in page.text
    assert "Not traced" not in Page(trace_page(NODE, "", "")).text


def test_hostile_texts_in_the_answer_of_a_trace_stay_texts() -> None:
    rules = TracedRules(agrees=False, disagreements=(HOSTILE,), error=HOSTILE, rules=(HOSTILE,))
    found = traced("10.244.0.9", "10.96.0.1:80", kernel=rules, reason=HOSTILE)
    page = Page(trace_page(NODE, "", "", found))
    assert "script" not in page.tags
    assert page.text.count("<script>") >= 4


def test_health_is_that_of_healthz() -> None:
    assert health_of(200, b'{"healthy":true,"nodeEligible":true}') == Health(fit=True)
    found = health_of(503, b'{"healthy":false,"nodeEligible":false,"stalledThreads":["a"]}')
    assert found == Health(fit=False, working=False, eligible=False, stalled=("a",))
    assert health_of(503, b"nonsense") == Health(fit=False)
