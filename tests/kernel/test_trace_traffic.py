"""``svcproxy trace`` predicts what real packets meet, in random clusters.

A cluster follows from a seed, so that a failure can be repeated. ``TRACE_SEEDS=100:200`` in the
environment tries other clusters than those of the suite.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from svcproxy.admin.client import AdminClient
from svcproxy.explain.core.story_types import Ending
from svcproxy.explain.core.trace_arguments import family_of, parse_origin, parse_target
from svcproxy.explain.core.trace_document import Trace
from svcproxy.explain.core.view import NodeView
from svcproxy.explain.trace_packet import Asked, trace_packet
from svcproxy.explain.views import view_of_daemon
from testbed import manifests as m
from testbed.cluster import Cluster, Host
from testbed.manifests import Object
from testbed.outcomes import Answer
from tests.kernel.conftest import (
    Seen,
    Stage,
    StageWith,
    ask,
    assert_dropped,
    assert_refused,
    at,
    client_addresses,
)

pytestmark = pytest.mark.kernel

FLAGS: tuple[dict[str, str | None], ...] = (
    {},
    {"masquerade_all": "true"},
    {"cluster_cidr": None},
    {"cluster_cidr": None, "detect_local_mode": "BridgeInterface", "pod_bridge_interface": "br0"},
    {"nodeport_addresses": "primary"},
)
_FIRST, _, _END = os.environ.get("TRACE_SEEDS", f"0:{len(FLAGS)}").partition(":")
SEEDS = sorted(range(int(_FIRST), int(_END)), key=lambda seed: (seed % len(FLAGS), seed))
"""Sorted by flags, because other flags need another daemon."""

PACKETS = 14
"""How many kinds of packets are tried in each cluster and family."""
SERVICES = 3
"""How many Services each cluster has in each family."""


@dataclass(frozen=True)
class Sent:
    """Packets of one kind: FROM and TO as ``svcproxy trace`` takes them."""

    host: Host
    source: str
    address: str
    port: int
    proto: str

    @property
    def asked(self) -> Asked:
        address = f"[{self.address}]" if ":" in self.address else self.address
        origin = parse_origin(self.source or "node")
        target = parse_target(f"{address}:{self.port}/{self.proto}")
        return Asked(origin, target, family_of(origin, target, None))

    def __str__(self) -> str:
        return f"{self.source or 'node'} -> {self.address} {self.port}/{self.proto}"


class Chance:
    """Random Services and packets."""

    def __init__(self, stage: Stage, seed: int, family: int) -> None:
        self.stage = stage
        self.family = family
        self.random = Random(f"{seed} {family}")
        self.outside = [stage.address(family, outside=True) for _ in range(2)]
        self.hosts = [*stage.here, *stage.there, stage.node, stage.other]

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def once_in(self, number: int) -> bool:
        return self.random.randrange(number) == 0

    def offer(self, number: int) -> None:
        """Create a Service."""
        pick = self.pick
        kind = pick("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer")
        spec: dict[str, Any] = {
            "type": kind,
            "internalTrafficPolicy": pick("Cluster", "Cluster", "Local"),
            "externalTrafficPolicy": pick("Cluster", "Local"),
            "created": f"2026-01-0{number + 1}T00:00:00Z",
        }
        if self.once_in(3):
            spec["externalIPs"] = [pick(*self.outside, self.stage.node.ip(self.family))]
        if kind == "LoadBalancer":
            spec["load_balancer_ips"] = [pick(*self.outside)]
            spec["loadBalancerSourceRanges"] = pick([], self.ranges(), self.ranges())
        if self.once_in(4):
            spec["sessionAffinity"] = "ClientIP"
        self.stage.offer(self.family, self.endpoints(), **spec)

    def ranges(self) -> list[str]:
        four, six = self.family == 4, self.family == 6
        bits = 32 if four else 128
        found = [
            f"{self.stage.client.ip(self.family)}/{bits}",
            f"{self.stage.node.ip(self.family)}/{bits}",
            "fd00:10:244::/56" if six else "10.244.0.0/16",
        ]
        return self.random.sample(found, self.random.randint(1, 2))

    def endpoints(self) -> list[Object]:
        chosen = self.random.sample(self.hosts, self.pick(0, 1, 2, 3, 4, 5))
        zones = self.pick(None, None, ["a"], ["a", "b"], ["b"])
        return [self.endpoint(host, zones) for host in chosen]

    def endpoint(self, host: Host, zones: list[str] | None) -> Object:
        options: dict[str, Any] = self.pick(
            *[{}] * 6,
            {"ready": False},
            {"ready": False, "serving": True, "terminating": True},
            {"ready": False, "serving": False, "terminating": True},
        )
        hints = {"forZones": [self.pick(*zones)]} if zones else None
        return at(host, self.family, hints=hints, **options)

    def packets(self) -> Iterator[Sent]:
        senders = [
            (self.stage.node, ""),
            *((pod, pod.ip(self.family)) for pod in (*self.stage.here, self.stage.there[0])),
            *(
                (self.stage.client, a)
                for a in client_addresses(self.stage.cluster, self.family)[:2]
            ),
        ]
        targets = sorted(set(self.targets()))
        for _ in range(PACKETS):
            (host, source), (address, proto, port) = self.pick(*senders), self.pick(*targets)
            yield Sent(host, source, address, port, proto)

    def targets(self) -> Iterator[tuple[str, str, int]]:
        """Yield addresses and ports of Services, and some that come close."""
        own = (self.stage.node.ip(self.family), self.stage.node.bridge_ips[self.family == 6])
        for offer in self.stage.offers:
            if offer.family != self.family:
                continue
            for proto, port in offer.ports:
                for address in (offer.vip, *self.outside):
                    yield address, proto, port
            for entry in offer.spec["ports"]:
                if "nodePort" in entry:
                    for address in own:
                        yield address, entry["protocol"].lower(), entry["nodePort"]
            yield offer.vip, "tcp", 81


@pytest.fixture(scope="module", autouse=True)
def _serving_nodes(cluster: Cluster) -> Iterator[None]:
    """Let the nodes themselves serve, as pods with the host network do."""
    for node in cluster.nodes:
        # A UDP server on all addresses would reply from another address of its node.
        own = (node.ipv4, node.ipv6)
        node.traffic.serve(tcp=(8080,), udp=(5353,), addresses=own)
    yield
    for node in cluster.nodes:
        node.traffic.unserve(tcp=(8080,), udp=(5353,))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_prediction_equals_what_packets_meet(stage_with: StageWith, seed: int) -> None:
    stage = stage_with(**FLAGS[seed % len(FLAGS)])
    with stage.at_once():
        stage.node_object = m.node(
            stage.node.name, addresses=[stage.node.ipv4, stage.node.ipv6], zone="a"
        )
        chances = [Chance(stage, seed, family) for family in (4, 6)]
        for chance in chances:
            for number in range(SERVICES):
                chance.offer(number)
    view = stage.node.netns.call(
        lambda: view_of_daemon(AdminClient(str(stage.daemon.admin_socket)))
    )
    for chance in chances:
        for sent in chance.packets():
            check(stage, view, sent)


def check(stage: Stage, view: NodeView, sent: Sent) -> None:
    """Predict what packets meet, send them, and compare."""
    document = predict(stage, view, sent)
    assert document.desired.agrees, (str(sent), document.desired)
    assert document.kernel is not None
    assert document.kernel.agrees, (str(sent), document.kernel)
    try:
        meet(stage, view, sent, document)
    except AssertionError as error:
        error.add_note(f"{sent}: {document}")
        raise


def predict(stage: Stage, view: NodeView, sent: Sent) -> Trace:
    return stage.node.netns.call(lambda: trace_packet(view, sent.asked).document)


def meet(stage: Stage, view: NodeView, sent: Sent, document: Trace) -> None:
    """Send packets, and compare what they meet with the prediction."""
    source = "" if sent.host is stage.node else sent.source
    match document.verdict:
        case Ending.REFUSED:
            assert_refused(sent.host, sent.proto, sent.address, sent.port, source=source)
        case Ending.DROPPED:
            assert_dropped(sent.host, sent.proto, sent.address, sent.port, source=source)
        case Ending.NOT_A_SERVICE:
            outcome = sent.host.traffic.connect(
                sent.proto, sent.address, sent.port, timeout=0.1, source_address=source
            )
            assert not isinstance(outcome, Answer), f"{sent}: {outcome}"
        case Ending.DELIVERED:
            deliver(stage, view, sent, document)


def deliver(stage: Stage, view: NodeView, sent: Sent, document: Trace) -> None:
    source = "" if sent.host is stage.node else sent.source
    expected = expected_of(stage, sent, document)
    if expected is None:
        return
    enough = 1 if len(expected) == 1 else 16 * len(expected)
    frontend = document.frontend
    assert frontend is not None
    if not frontend.affinity_seconds:
        seen = ask(sent.host, sent.proto, sent.address, sent.port, n=enough, source=source)
        assert seen == expected, str(sent)
        return
    seen = ask(sent.host, sent.proto, sent.address, sent.port, n=5, source=source)
    assert len(seen) == 1, str(sent)
    assert seen <= expected, str(sent)
    if len(expected) > 1:
        again = predict(stage, view, sent).kernel
        ((server, _),) = seen
        assert again is not None
        assert address_of(again.affinity) == stage.cluster.host(server).ip(family_number(sent))


def address_of(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].strip("[]")


def family_number(sent: Sent) -> int:
    return 6 if ":" in sent.address else 4


def expected_of(stage: Stage, sent: Sent, document: Trace) -> Seen | None:
    """Return the servers and the sources that they see; ``None`` if replies do not pass node1.

    The other node has no rules: it sends replies to other machines directly, with the endpoint's
    address as their source.
    """
    family = family_number(sent)
    by_address = {host.ip(family): host for host in stage.cluster.hosts}
    near = (stage.node, *stage.here)
    found = set()
    for each in document.endpoints:
        host = by_address[address_of(each.endpoint)]
        passes = each.masqueraded or host in near or sent.host in near
        if not passes:
            return None
        kept = document.packet.source
        found.add((host.name, stage.masked(host, family) if each.masqueraded else kept))
    return found
