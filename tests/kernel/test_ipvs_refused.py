"""An object of one Service that IPVS refuses affects no other Service."""

import contextlib
import time
from collections.abc import Iterator

import pytest

from testbed import manifests as m
from testbed import netns
from testbed.waiting import PATIENCE, eventually
from tests.kernel.conftest import PORTS, Offer, Stage, at
from tests.kernel.conftest import servers as answering
from tests.kernel.virtual_servers import FAMILIES, Servers

pytestmark = pytest.mark.kernel

VARIANTS = ("ipvs",)
WEB = PORTS[:1]
REFUSED = {4: "198.51.100.9", 6: "ff05::5:9"}
"""Endpoints that the API server accepts and IPVS refuses; see ``impossible_endpoint``."""
CHANGE_SECONDS = 1.0 * PATIENCE
"""A change must take less. The first back-off of a family is 1 s on a fast machine, the next 2 s."""


@contextlib.contextmanager
def impossible_endpoint(stage: Stage, family: int) -> Iterator[None]:
    """Make IPVS refuse an endpoint: a broadcast address, or a multicast address that is not local.

    At the end of the context IPVS accepts it.
    """
    broadcast = "broadcast 198.51.100.9 dev lo table local"
    if family == 4:
        netns.ip_batch([f"route add {broadcast}"], stage.node.netns.name)
        yield
        netns.ip_batch([f"route del {broadcast}"], stage.node.netns.name)
    else:
        yield
        netns.ip_batch(["route add ff05::5:9/128 dev lo table local"], stage.node.netns.name)


@pytest.fixture(autouse=True)
def _no_routes_left(stage: Stage, family: int) -> Iterator[None]:
    yield
    stage.clear()
    if family == 6:
        netns.ip_batch(["route del ff05::5:9/128 dev lo table local"], stage.node.netns.name)


def resyncs(stage: Stage, family: int) -> float:
    name = "kubeproxy_sync_full_proxy_rules_duration_seconds_count"
    return stage.daemon.metrics().value(name, ip_family=FAMILIES[family])


def reports(stage: Stage, offer: Offer) -> list[str]:
    name = f"default/{offer.service['metadata']['name']}:"
    return [line for line in stage.daemon.logs() if "refused" in line and name in line]


@pytest.mark.behaviour("IPVS mode: Refused endpoint or address")
def test_a_refused_endpoint_delays_no_other_service(stage: Stage, family: int) -> None:
    servers, pod = Servers(stage.node, family), stage.here[0]
    with impossible_endpoint(stage, family):
        bad = stage.offer(
            family, [at(pod, family), m.endpoint(REFUSED[family], node=pod.node)], ports=WEB
        )
        before = resyncs(stage, family)
        for _ in range(3):
            begin = time.monotonic()
            good = stage.offer(family, [at(pod, family)], ports=WEB)
            took = time.monotonic() - begin
            assert answering(stage.client, "tcp", good.vip, 80, n=3) == {pod.name}
            assert took < CHANGE_SECONDS, "a change waits for the back-off of another Service"
        assert servers.weights(bad.vip) == {pod.ip(family): 1}
        assert answering(stage.client, "tcp", bad.vip, 80, n=3) == {pod.name}
        (line,) = reports(stage, bad)
        assert f"{REFUSED[family]}" in line
        assert resyncs(stage, family) == before
        assert not any("sync.failed" in line for line in stage.daemon.logs())
    eventually(
        lambda: servers.weights(bad.vip) == {pod.ip(family): 1, REFUSED[family]: 1},
        "the endpoint that IPVS accepts now",
        timeout=30,
    )
    assert len(reports(stage, bad)) == 1


@pytest.mark.behaviour("IPVS mode: Refused endpoint or address")
def test_a_service_whose_only_endpoint_is_refused_can_be_changed_and_removed(
    stage: Stage, family: int
) -> None:
    servers, pod = Servers(stage.node, family), stage.here[0]
    with impossible_endpoint(stage, family):
        bad = stage.offer(family, [m.endpoint(REFUSED[family], node=pod.node)], ports=WEB)
        bad.endpoints(at(pod, family))
        assert servers.weights(bad.vip) == {pod.ip(family): 1}
        bad.endpoints(m.endpoint(REFUSED[family], node=pod.node))
        eventually(lambda: servers.weights(bad.vip) == {}, "the end of the endpoint", timeout=25)
        bad.remove()
        assert servers.at(bad.vip) is None
        assert not any("sync.failed" in line for line in stage.daemon.logs())
