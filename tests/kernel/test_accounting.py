"""Counting in the kernel: equals the attempts made, survives restarts, never affects traffic."""

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svcproxy.accounting.core.frontends import FrontendIndex, FrontendKey
from svcproxy.accounting.core.readings import Reading
from svcproxy.accounting.core.table import TABLE, Accounting
from svcproxy.accounting.counters import read_counters, read_some
from svcproxy.accounting.family_table import FamilyTable
from svcproxy.accounting.refused_packets import GroupUnavailableError, RefusedPackets
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.addresses import text
from testbed.cluster import Host
from testbed.netns import NetNS
from testbed.waiting import PATIENCE, eventually
from tests.kernel.conftest import (
    Offer,
    Stage,
    StageWith,
    all_at,
    ask,
    assert_dropped,
    assert_refused,
    at,
    period_flags,
)
from tests.unit.accounting.test_planner import states

pytestmark = pytest.mark.kernel

VARIANTS = ("nft", "legacy", "nftables")
"""The variants for which conftest runs this module; the guest with IPVS has no nf_tables."""

DIALS = 7
NOTHING = Reading()
T = TypeVar("T")


@pytest.fixture
def stage(stage_with: StageWith, variant: str) -> Stage:
    flags = {n.replace("-", "_"): v for n, v in period_flags(variant, longest="2s").items()}
    return stage_with(svcproxy_accounting="connections", **flags)


def family_of(number: int) -> IPFamily:
    return IPFamily.IPV4 if number == 4 else IPFamily.IPV6


def key(offer: Offer, address: str, proto: str, port: int) -> FrontendKey:
    return FrontendKey(family_of(offer.family), address, port, Protocol(proto.upper()))


def on_node(stage: Stage, function: Callable[[], T]) -> T:
    return stage.node.netns.call(function)


def counters(stage: Stage, family: int) -> dict[FrontendKey, Reading]:
    return on_node(stage, lambda: read_counters(family_of(family))) or {}


def tables(stage: Stage) -> list[str]:
    listed = json.loads(stage.node.netns.run("nft", "-j", "list", "tables").stdout)["nftables"]
    return [t["table"]["family"] for t in listed if t.get("table", {}).get("name") == TABLE]


def counted(stage: Stage, *offers: Offer) -> None:
    """Wait until all frontends of Services are in the table."""

    def complete() -> bool:
        return all(
            key(offer, offer.vip, proto, port) in counters(stage, offer.family)
            for offer in offers
            for proto, port in offer.ports
        )

    eventually(complete, "the elements of the Services", timeout=10.0)


def hosts(stage: Stage) -> list[Host]:
    return [stage.here[1], stage.there[0], stage.client, stage.node]


def test_connections_are_counted_at_every_frontend(stage: Stage, family: int) -> None:
    external = stage.address(family, outside=True)
    offer = stage.offer(
        family,
        all_at(stage.here[:1], family),
        type="NodePort",
        externalIPs=[external],
    )
    counted(stage, offer)
    clients = hosts(stage)
    for host in clients:
        for proto, port in offer.ports:
            ask(host, proto, offer.vip, port, n=DIALS)
        for proto, port in offer.node_ports:
            ask(host, proto, stage.node.ip(family), port, n=DIALS)
    for proto, port in offer.ports:
        ask(stage.client, proto, external, port, n=DIALS)
    # A pod that connects to itself.
    alone = stage.offer(family, [at(stage.here[0], family)])
    counted(stage, alone)
    ask(stage.here[0], "tcp", alone.vip, 80, n=DIALS)
    found = counters(stage, family)
    for proto, port in offer.ports:
        assert found[key(offer, offer.vip, proto, port)] == Reading(DIALS * len(clients))
        assert found[key(offer, external, proto, port)] == Reading(DIALS)
    for proto, port in offer.node_ports:
        assert found[key(offer, "", proto, port)] == Reading(DIALS * len(clients))
    assert found[key(alone, alone.vip, "tcp", 80)] == Reading(DIALS)


def test_established_connections_cost_nothing(stage: Stage, family: int) -> None:
    offer = stage.offer(family, [at(stage.here[0], family)])
    counted(stage, offer)
    with stage.here[1].traffic.hold("tcp", offer.vip, 80) as held:
        for _ in range(10):
            held.check()
    assert counters(stage, family)[key(offer, offer.vip, "tcp", 80)] == Reading(1)


def test_refused_and_dropped_attempts_are_counted(stage: Stage, family: int) -> None:
    balancer = stage.address(family, outside=True)
    refused = stage.offer(family, type="NodePort")
    local = stage.offer(
        family,
        [at(stage.there[0], family)],
        type="LoadBalancer",
        load_balancer_ips=[balancer],
        externalTrafficPolicy="Local",
    )
    counted(stage, refused, local)
    for host in hosts(stage):
        assert_refused(host, "tcp", refused.vip, 80)
    for _, port in [p for p in refused.node_ports if p[0] == "tcp"]:
        assert_refused(stage.client, "tcp", stage.node.ip(family), port)
    assert_dropped(stage.client, "tcp", balancer, 80)
    ask(stage.here[0], "tcp", local.vip, 80, n=DIALS)
    found = counters(stage, family)
    # A client that waits for an answer repeats its packet; a refused client may too, once.
    at_vip = found[key(refused, refused.vip, "tcp", 80)]
    assert at_vip.refused == at_vip.connections >= len(hosts(stage))
    ((_, node_port),) = [p for p in refused.node_ports if p[0] == "tcp"]
    assert found[key(refused, "", "tcp", node_port)].refused >= 1
    dropped = found[key(local, balancer, "tcp", 80)]
    assert dropped.dropped == dropped.connections >= 1
    assert found[key(local, local.vip, "tcp", 80)] == Reading(DIALS)


@pytest.mark.iptables_only
def test_clients_outside_of_the_source_ranges_are_counted_as_dropped(
    stage: Stage, family: int
) -> None:
    balancer = stage.address(family, outside=True)
    admitted = f"{stage.client.ip(family)}/{32 if family == 4 else 128}"
    offer = stage.offer(
        family,
        [at(stage.here[0], family)],
        type="LoadBalancer",
        load_balancer_ips=[balancer],
        loadBalancerSourceRanges=[admitted],
    )
    counted(stage, offer)
    ask(stage.client, "tcp", balancer, 80, n=DIALS)
    assert counters(stage, family)[key(offer, balancer, "tcp", 80)] == Reading(DIALS)
    assert_dropped(stage.there[0], "tcp", balancer, 80)
    assert counters(stage, family)[key(offer, balancer, "tcp", 80)].dropped >= 1


def test_a_restart_and_a_change_keep_the_counters(stage: Stage, family: int) -> None:
    offer = stage.offer(family, [at(stage.here[0], family)])
    counted(stage, offer)
    ask(stage.here[1], "tcp", offer.vip, 80, n=DIALS)
    stage.daemon.stop()
    stage.daemon.start()
    stage.daemon.wait_ready()
    other = stage.offer(family, [at(stage.here[0], family)])
    counted(stage, offer, other)
    ask(stage.here[1], "tcp", offer.vip, 80, n=1)
    offer.endpoints(at(stage.there[0], family))
    third = stage.offer(family, [at(stage.here[0], family)])
    counted(stage, third)
    assert counters(stage, family)[key(offer, offer.vip, "tcp", 80)] == Reading(DIALS + 1)
    chosen = on_node(
        stage, lambda: read_some(family_of(family), [key(offer, offer.vip, "tcp", 80)], 1.0)
    )
    assert list(chosen.values()) == [Reading(DIALS + 1)]
    offer.remove()
    eventually(
        lambda: key(offer, offer.vip, "tcp", 80) not in counters(stage, family),
        "removal of the elements",
        timeout=10.0,
    )


@pytest.mark.parametrize("damage", ["delete table", "flush table", "flush set", "delete chain"])
def test_damage_is_repaired(stage: Stage, damage: str) -> None:
    offer = stage.offer(4, [at(stage.here[0], 4)])
    counted(stage, offer)
    before = stage.node.netns.run("nft", "-s", "list", "table", "ip", TABLE).stdout
    what = {"flush set": ["connections"], "delete chain": ["connections-output"]}.get(damage, [])
    if what == ["connections-output"]:
        stage.node.netns.run("nft", "flush", "chain", "ip", TABLE, *what)
    stage.node.netns.run("nft", *damage.split(), "ip", TABLE, *what)
    ask(stage.here[1], "tcp", offer.vip, 80, n=DIALS)

    def repaired() -> bool:
        done = stage.node.netns.run("nft", "-s", "list", "table", "ip", TABLE, check=False)
        return sorted(done.stdout.splitlines()) == sorted(before.splitlines())

    eventually(repaired, "repair of the table", timeout=20.0)


def test_without_the_flag_there_is_no_table(stage: Stage, stage_with: StageWith) -> None:
    offer = stage.offer(4, [at(stage.here[0], 4)])
    counted(stage, offer)
    assert sorted(tables(stage)) == ["ip", "ip6"]
    stage = stage_with()
    eventually(lambda: not tables(stage), "removal of the tables", timeout=10.0)


def test_cleanup_removes_the_tables(stage_with: StageWith) -> None:
    stage = stage_with(svcproxy_accounting="refusals")
    eventually(lambda: sorted(tables(stage)) == ["ip", "ip6"], "the tables", timeout=10.0)
    stage.daemon.stop()
    stage.node.netns.run(*stage.daemon.program, "--cleanup")
    assert not tables(stage)


def test_top_shows_refusals_with_their_reason(stage: Stage) -> None:
    offer = stage.offer(4)
    counted(stage, offer)
    log = stage.folder.path.parent / "top.json"
    with log.open("wb") as output:
        process = stage.node.netns.popen(
            [
                *(sys.executable, "-m", "svcproxy", "top", "--once", f"--interval={PATIENCE}"),
                *("-o", "json", f"--manifests={stage.folder.path}", "--"),
                *stage.daemon.command[3:],
            ],
            output=output.fileno(),
        )
        while process.poll() is None:
            assert_refused(stage.here[0], "tcp", offer.vip, 80)
    top: dict[str, Any] = json.loads(log.read_text())
    (row,) = [row for row in top["frontends"] if row["address"] == offer.vip]
    assert top["countedRefusals"]
    assert row["refusedPerSecond"] > 0
    assert row["reason"] == "REJECT: no endpoints"


def test_chosen_services_have_metrics(stage_with: StageWith) -> None:
    stage = stage_with(svcproxy_accounting="connections", svcproxy_service_metrics="default/chosen")
    chosen = stage.offer(4, [at(stage.here[0], 4)], name="chosen")
    marked = stage.offer(4, name="marked")
    plain = stage.offer(4, [at(stage.here[0], 4)], name="plain")
    marked.service["metadata"]["annotations"] = {"svcproxy.io/metrics": "true"}
    stage.sync()
    counted(stage, chosen, marked, plain)
    for offer in (chosen, plain):
        ask(stage.here[1], "tcp", offer.vip, 80, n=DIALS)
    assert_refused(stage.here[1], "tcp", marked.vip, 80)

    def value(name: str, service: str) -> float | None:
        found = stage.daemon.metrics().get(f"svcproxy_service_{name}_total", [])
        return next(
            (
                sample.value
                for sample in found
                if sample.labels["service"] == service
                and (sample.labels["protocol"], sample.labels["ip_family"]) == ("TCP", "IPv4")
            ),
            None,
        )

    eventually(lambda: value("refused", "marked"), "a metric of the annotated Service")
    assert value("connections", "chosen") == DIALS
    assert value("connections", "plain") is None
    chosen.remove()
    eventually(lambda: value("connections", "chosen") is None, "the end of the metric", timeout=9.0)


def test_a_service_that_refuses_a_lot_gets_one_event(stage: Stage) -> None:
    offer = stage.offer(4, name="refusing")
    counted(stage, offer)

    def events() -> list[str]:
        return [line for line in stage.daemon.logs() if "ConnectionsRefused" in line]

    def refuse() -> bool:
        stage.here[0].traffic.dial("udp", offer.vip, 53, 300, timeout=0.02)
        return bool(events())

    eventually(refuse, "the Event", timeout=30.0)
    refuse()
    (line,) = events()
    assert "default/refusing" in line


@pytest.mark.nftables_only
def test_counting_does_not_cause_comparisons(stage_with: StageWith) -> None:
    """The mode recognises the transactions of accounting as svcproxy's own."""
    stage = stage_with(svcproxy_accounting="connections", iptables_sync_period="1s")

    def comparisons() -> float:
        name = "kubeproxy_sync_full_proxy_rules_duration_seconds_count"
        return stage.daemon.metrics().value(name, ip_family="IPv4")

    before = comparisons()
    for _ in range(6):
        offer = stage.offer(4, [at(stage.here[0], 4)])
        counted(stage, offer)
        stage.daemon.wait_idle(1.5)  # a resync was due meanwhile
    # Every tenth periodic resync compares in any case; otherwise there would be one for each change.
    assert comparisons() < before + 6


def _differs(accounting: Accounting, ports: dict[ServicePortName, ServicePort]) -> bool:
    """Whether a new process would write anything."""
    fresh = FamilyTable(IPFamily.IPV4, accounting)
    try:
        return fresh.update(dict(ports), Settings(IPFamily.IPV4), everything=True)
    finally:
        fresh.close()


@given(st.lists(states(), min_size=2, max_size=5))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_changes_lead_to_the_same_kernel_table_as_a_comparison(
    space: NetNS, history: list[dict[ServicePortName, ServicePort]]
) -> None:
    space.call(lambda: _replay(history))


def _replay(history: list[dict[ServicePortName, ServicePort]]) -> None:
    accounting = Accounting(connections=True, outside=True, log_group=7)
    table = FamilyTable(IPFamily.IPV4, accounting)
    try:
        table.update(dict(history[0]), Settings(IPFamily.IPV4), everything=True)
        for before, now in pairwise(history):
            changed = {
                n: now.get(n) for n in before.keys() | now.keys() if before.get(n) != now.get(n)
            }
            table.update(changed, None, everything=False)
            assert not _differs(accounting, now)
            assert not table.check()
    finally:
        table.close()


def test_refused_packets_are_logged_and_limited(stage_with: StageWith, family: int) -> None:
    stage = stage_with(svcproxy_accounting="refusals", svcproxy_refusal_log_group="77")
    offer = stage.offer(family)
    wanted = key(offer, offer.vip, "udp", 53)

    def ready() -> bool:
        # The table of the former daemon may have the element, but does not log.
        listed = stage.node.netns.run("nft", "list", "ruleset").stdout
        return "group 77" in listed and wanted in counters(stage, family)

    eventually(ready, "the element and the rules", timeout=10.0)
    index = FrontendIndex([wanted], Settings(family_of(family)), lambda _: False)
    with on_node(stage, lambda: RefusedPackets(77)) as packets:
        with pytest.raises(GroupUnavailableError, match="another program"):
            on_node(stage, lambda: RefusedPackets(77))
        begin = time.monotonic()
        stage.here[0].traffic.dial("udp", offer.vip, 53, 200, timeout=0.005)
        seconds = time.monotonic() - begin
        found = packets.clients({family_of(family): index})
        assert counters(stage, family)[wanted].refused >= 200
    ((client, times, error),) = found[wanted].most(5)
    assert (text(client), error) == (stage.here[0].ip(family), 0)
    assert 20 <= times <= 20 + 10 * (seconds + 1)
