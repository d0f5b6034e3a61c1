"""UDP flows follow changes of their Service, although connection tracking would pin them."""

import pytest

from testbed.cluster import Host
from testbed.outcomes import Answer, Refused, TimedOut
from testbed.traffic import Held
from testbed.waiting import eventually
from tests.kernel.conftest import Offer, Stage, all_at, at

pytestmark = pytest.mark.kernel


def _server(held: Held) -> str:
    outcome = held.check(0.2)
    return outcome.server if isinstance(outcome, Answer) else outcome.label


def _follows(held: Held, server: str) -> None:
    """Wait until this server answers the flow, which keeps its socket and source port."""
    eventually(lambda: _server(held) == server, f"answers from {server}", timeout=3.0)


def _places(stage: Stage, offer: Offer, *outside: str) -> list[tuple[str, int]]:
    node_port = next(port for proto, port in offer.node_ports if proto == "udp")
    return [
        (offer.vip, 53),
        (stage.node.ip(offer.family), node_port),
        *((address, 53) for address in outside),
    ]


def _everywhere(stage: Stage, family: int, pod: Host) -> tuple[Offer, list[tuple[str, int]]]:
    external, balancer = (stage.address(family, outside=True) for _ in range(2))
    offer = stage.offer(
        family,
        [at(pod, family)],
        type="LoadBalancer",
        externalIPs=[external],
        load_balancer_ips=[balancer],
    )
    return offer, _places(stage, offer, external, balancer)


@pytest.mark.parametrize("source", ["client", "pod2a", "node1"])
@pytest.mark.behaviour("UDP flows: Lost endpoint")
def test_flows_leave_a_removed_endpoint(stage: Stage, family: int, source: str) -> None:
    """At every address of the Service."""
    first, second = stage.here
    offer, places = _everywhere(stage, family, first)
    traffic = stage.cluster.host(source).traffic
    flows = [traffic.hold("udp", address, port) for address, port in places]
    try:
        assert [_server(flow) for flow in flows] == ["pod1a"] * len(flows)
        offer.endpoints(at(second, family))
        for flow in flows:
            _follows(flow, "pod1b")
    finally:
        for flow in flows:
            flow.close()


@pytest.mark.behaviour("UDP flows: Other flows")
def test_flows_stay_with_an_endpoint_that_serves(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here, family))
    flows = [stage.client.traffic.hold("udp", offer.vip, 53) for _ in range(20)]
    try:
        before = [_server(flow) for flow in flows]
        assert set(before) == {"pod1a", "pod1b"}
        offer.endpoints(*all_at([*stage.here, stage.there[0]], family))
        assert [_server(flow) for flow in flows] == before
        offer.endpoints(*all_at([stage.here[0], stage.there[0]], family))
        for flow, server in zip(flows, before, strict=True):
            if server == "pod1a":
                assert _server(flow) == "pod1a"
            else:
                eventually(lambda flow=flow: _server(flow) in {"pod1a", "pod2a"})  # type: ignore[misc]
    finally:
        for flow in flows:
            flow.close()


@pytest.mark.behaviour("UDP flows: No endpoint")
def test_flows_are_refused_without_endpoints_and_served_with_new_ones(
    stage: Stage, family: int
) -> None:
    first, second = stage.here
    offer = stage.offer(family, [at(first, family)])
    with stage.client.traffic.hold("udp", offer.vip, 53) as flow:
        assert _server(flow) == "pod1a"
        offer.endpoints()
        _follows(flow, Refused.label)
        offer.endpoints(at(second, family))
        _follows(flow, "pod1b")


@pytest.mark.behaviour("UDP flows: Early clients")
def test_flows_older_than_their_service_reach_it(stage: Stage, family: int) -> None:
    """Their first packets create an untranslated entry that would keep them from the Service."""
    vip = stage.address(family)
    with stage.here[1].traffic.hold("udp", vip, 53, timeout=0.1) as flow:
        assert isinstance(flow.first, TimedOut)
        offer = stage.offer(family, vip=vip)
        offer.endpoints(at(stage.here[0], family))
        _follows(flow, "pod1a")


@pytest.mark.behaviour("UDP flows: Reused addresses")
def test_a_new_service_at_the_address_of_a_deleted_one_is_used(stage: Stage, family: int) -> None:
    first, second = stage.here
    offer = stage.offer(family, [at(first, family)])
    with stage.client.traffic.hold("udp", offer.vip, 53) as flow:
        assert _server(flow) == "pod1a"
        offer.remove()
        stage.offer(family, [at(second, family)], vip=offer.vip)
        _follows(flow, "pod1b")
