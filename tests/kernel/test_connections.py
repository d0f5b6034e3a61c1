"""Open and new connections of frontends, counted while real clients connect."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from svcproxy.accounting.connections import ConnectionEvents, Served, open_connections
from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.commands.sources import view_of_manifests
from svcproxy.conntrack.table import ConntrackError
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core.addresses import text
from testbed.waiting import PATIENCE, eventually
from tests.kernel.conftest import Offer, Stage, all_at, ask, assert_refused

pytestmark = pytest.mark.kernel

DIALS = 25
T = TypeVar("T")


def served(stage: Stage) -> dict[IPFamily, Served]:
    view = view_of_manifests(stage.folder.path, [*stage.daemon.command[3:]])
    return {f: Served(about.state.ports, about.settings) for f, about in view.families.items()}


def on_node(stage: Stage, function: Callable[[], T]) -> T:
    return stage.node.netns.call(function)


def key(offer: Offer, address: str, proto: str, port: int) -> FrontendKey:
    family = IPFamily.IPV4 if offer.family == 4 else IPFamily.IPV6
    return FrontendKey(family, address, port, Protocol(proto.upper()))


def test_new_connections_are_counted_with_clients_and_endpoints(stage: Stage, family: int) -> None:
    client, servers = stage.here[1], [stage.here[0], stage.there[0]]
    offer = stage.offer(family, all_at(servers, family), type="NodePort")
    idle = stage.offer(family)
    with on_node(stage, lambda: ConnectionEvents(served(stage))) as events:
        for proto, port in offer.ports:
            ask(client, proto, offer.vip, port, n=DIALS)
        for proto, port in offer.node_ports:
            ask(stage.client, proto, stage.node.ip(family), port, n=DIALS)
        for proto, port in idle.ports:
            assert_refused(client, proto, idle.vip, port)
        sample = on_node(stage, lambda: events.sample(0.2 * PATIENCE))
    for address, ports, source in (
        (offer.vip, offer.ports, client),
        ("", offer.node_ports, stage.client),
    ):
        for proto, port in ports:
            found = sample.activities.of(key(offer, address, proto, port))
            assert found.count == DIALS, (address, proto)
            (counted,) = found.clients.most(5)
            assert (text(counted.item), counted.times) == (source.ip(family), DIALS)
            endpoints = {text(e.item[0]) for e in found.endpoints.most(5)}
            assert endpoints == {pod.ip(family) for pod in servers}
    for proto, port in idle.ports:
        assert not sample.activities.of(key(idle, idle.vip, proto, port)).count
    assert sample.lost == 0


def test_open_connections_are_counted_until_they_end(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here[:1], family))
    wanted = key(offer, offer.vip, "tcp", 80)

    def count() -> int:
        return on_node(stage, lambda: open_connections(served(stage))).get(wanted, 0)

    client = stage.here[1].traffic
    with client.hold("tcp", offer.vip, 80), client.hold("tcp", offer.vip, 80):
        assert count() == 2
    ask(stage.here[1], "tcp", offer.vip, 80, n=3)
    eventually(lambda: count() == 0, "the end of all connections")


def test_the_command_prints_a_sample(stage: Stage) -> None:
    offer = stage.offer(4, all_at(stage.here[:1], 4))
    with stage.here[1].traffic.hold("tcp", offer.vip, 80):
        done = stage.node.netns.run(
            *(sys.executable, "-m", "svcproxy", "top", "--once", "--interval=0.2", "-o", "json"),
            *(f"--manifests={stage.folder.path}", "--", *stage.daemon.command[3:]),
        )
    top = json.loads(done.stdout)
    (row,) = [row for row in top["frontends"] if row["address"] == offer.vip]
    assert (row["open"], row["portName"], row["family"]) == (1, "http", "IPv4")
    assert not top["countedRefusals"]


def test_events_that_are_switched_off_are_an_error(stage: Stage) -> None:
    parameter = "netfilter/nf_conntrack_events"
    (before,) = on_node(stage, lambda: [Path("/proc/sys/net", parameter).read_text()])
    stage.node.netns.sysctl({parameter: "0"})
    try:
        with pytest.raises(ConntrackError, match="nf_conntrack_events"):
            on_node(stage, lambda: ConnectionEvents(served(stage)))
    finally:
        stage.node.netns.sysctl({parameter: before.strip()})
