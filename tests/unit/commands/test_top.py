"""The document and the table of ``svcproxy top``."""

import json

import msgspec
import pytest

from svcproxy.accounting.core.activity import Activities, Frequent
from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.accounting.core.readings import Rates
from svcproxy.commands.core.top_documents import Order, Top, TopFrontend, ordered, top_frontends
from svcproxy.commands.core.top_table import table
from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import Service, ServicePortSpec
from svcproxy.state.desired import DesiredState

V4, TCP = IPFamily.IPV4, Protocol.TCP
CLIENT, POD = b"\x0a\xf4\x01\x07", (b"\x0a\xf4\x01\x02", 8080)


def state() -> DesiredState:
    """A Service without endpoints, with a cluster IP and a node port."""
    made = DesiredState(V4, "node1")
    spec = ServicePortSpec(name="http", protocol=TCP, port=80, node_port=30080)
    made.update_service(
        Service(name=NamespacedName("default", "web"), cluster_ips=("10.96.0.10",), ports=(spec,))
    )
    made.checkout()
    return made


def key(address: str = "10.96.0.10", number: int = 80) -> FrontendKey:
    return FrontendKey(V4, address, number, TCP)


def rows(
    activities: Activities, counted: dict[FrontendKey, Rates] | None = None
) -> list[TopFrontend]:
    refused: Frequent[bytes] = Frequent()
    refused.add(CLIENT)
    return list(
        top_frontends({V4: state()}, 2.0, {key(): 5}, activities.of, counted, {key(): refused})
    )


def top(**more: object) -> Top:
    known: dict[str, object] = {
        "node": "node1",
        "mode": "nftables",
        "time": 0.0,
        "seconds": 2.0,
        "counted_refusals": False,
    }
    return Top(**{**known, **more})  # type: ignore[arg-type]


def test_a_frontend_has_its_rates_and_clients() -> None:
    activities = Activities()
    for _ in range(3):
        activities.add(key(), CLIENT, POD)
    (row,) = rows(activities)
    assert (row.new_per_second, row.open, row.refused_per_second) == (1.5, 5, None)
    assert [(c.address, c.connections) for c in row.clients] == [("10.244.1.7", 3)]
    assert [(e.address, e.port) for e in row.endpoints] == [("10.244.1.2", 8080)]
    assert row.destination == "10.96.0.10:80/tcp"
    assert [c.address for c in row.refused_clients] == ["10.244.1.7"]


def test_counters_are_preferred_to_events() -> None:
    rates = {key(): Rates(new=100.0), key("", 30080): Rates(refused=7.0)}
    first, second = rows(Activities(), rates)
    assert (first.new_per_second, first.refused_per_second) == (100.0, 0.0)
    assert (second.destination, second.refused_per_second) == ("node port 30080/tcp", 7.0)
    assert second.reason == "REJECT: no endpoints"


@pytest.mark.parametrize("order", list(Order))
def test_frontends_are_sorted(order: Order) -> None:
    low = rows(Activities(), {key(): Rates(1, 1, 1)})[0]
    high = msgspec.structs.replace(
        low, new_per_second=2.0, open=9, refused_per_second=2.0, dropped_per_second=2.0
    )
    assert ordered([low, high], order) == [high, low]


def test_the_document_is_named_and_versioned() -> None:
    document = json.loads(msgspec.json.encode(top(frontends=tuple(rows(Activities())))))
    assert (document["kind"], document["apiVersion"]) == ("Top", "svcproxy.io/v1")
    assert document["frontends"][0]["newPerSecond"] == 0.0
    assert document["frontends"][0]["type"] == "clusterIP"


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_the_terminal(width: int) -> None:
    about = rows(Activities(), {key(): Rates(1, 12.25, 0)})[0]
    many = tuple(
        msgspec.structs.replace(about, service=f"{'n' * 60}/{'s' * 60}{n}", address="fd00::" + "f")
        for n in range(50)
    )
    lines = list(table(top(frontends=many), width, 24))
    assert len(lines) <= 24
    assert all(len(line) <= width for line in lines)
    assert any("12.2" in line for line in lines)
    assert any("more" in line for line in lines)
    assert "--svcproxy-accounting" in lines[-1]


def test_the_table_says_what_is_missing() -> None:
    lines = list(table(top(counted_refusals=True, events_lost=3), 80, 24))
    assert "no connections to Services" in lines
    assert any(line.startswith("3 events lost") for line in lines)
    assert not any("--svcproxy-accounting" in line for line in lines)
