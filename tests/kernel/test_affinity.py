"""``sessionAffinity: ClientIP``: a client keeps its endpoint until the time-out."""

import itertools
import time
from typing import Any

import pytest

from testbed.outcomes import Answer
from testbed.waiting import PATIENCE
from tests.kernel.conftest import (
    Flags,
    Offer,
    Stage,
    all_at,
    ask,
    assert_even,
    at,
    client_addresses,
)

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("proto", ["tcp", "udp"])


@pytest.fixture(scope="module")
def flags(variant: str) -> Flags:
    return {"ipvs-udp-timeout": "1s"} if variant == "ipvs" else {}


def _sticky(stage: Stage, family: int, seconds: int, **spec: Any) -> Offer:
    return stage.offer(
        family,
        all_at(stage.here, family),
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": seconds}},
        **spec,
    )


def _choices(
    stage: Stage, proto: str, address: str, port: int, *, source_port: int = 0, last: bool = False
) -> dict[str, str]:
    """Return the server of each of the client's addresses.

    With a ``source_port``, connections end with a reset, so that no TIME_WAIT keeps them. With
    ``last``, the last address connects first: schedulers that take turns choose other servers then.
    """
    family = 6 if ":" in address else 4
    chosen = {}
    sources = client_addresses(stage.cluster, family)
    for source in reversed(sources) if last else sources:
        outcome = stage.client.traffic.connect(
            proto, address, port, source_address=source, source_port=source_port
        )
        assert isinstance(outcome, Answer), outcome
        chosen[source] = outcome.server
    return chosen


@protocols
@pytest.mark.behaviour("Session affinity: `ClientIP`")
def test_a_client_sticks_and_clients_spread(stage: Stage, family: int, proto: str) -> None:
    offer = _sticky(stage, family, 600)
    port = dict(offer.ports)[proto]
    first = _choices(stage, proto, offer.vip, port)
    for _ in range(5):
        assert _choices(stage, proto, offer.vip, port) == first
    counts = {name: list(first.values()).count(name) for name in set(first.values())}
    assert_even(counts, among=2)


@pytest.mark.behaviour("Session affinity: `ClientIP`")
def test_pods_and_the_node_stick_too(stage: Stage, family: int) -> None:
    offer = _sticky(stage, family, 600)
    for host in (*stage.here, stage.there[0], stage.node):
        for proto, port in offer.ports:
            assert len(ask(host, proto, offer.vip, port)) == 1


@pytest.mark.behaviour("Session affinity: `timeoutSeconds`")
def test_a_client_may_move_when_its_time_is_over(stage: Stage) -> None:
    """Each connection restarts the time-out; after it, clients may get another endpoint.

    IPVS keeps a client's entry until its connections have expired: 10 s after a reset.
    """
    seconds = 12 if stage.variant == "ipvs" else int(PATIENCE)
    offers = [_sticky(stage, family, seconds) for family in (4, 6)]
    source_ports = itertools.count(20000)

    def choices(*, last: bool = False) -> list[dict[str, str]]:
        new = next(source_ports)
        return [
            _choices(stage, proto, offer.vip, port, source_port=new, last=last)
            for offer in offers
            for proto, port in offer.ports
        ]

    first = choices()
    began = time.monotonic()
    while time.monotonic() < began + 1.6 * seconds:
        time.sleep(0.4 * seconds)
        assert choices() == first
    time.sleep(1.2 * seconds)  # let the affinity time out
    for before, now in zip(first, choices(last=True), strict=True):
        assert now != before
        assert set(now.values()) == {"pod1a", "pod1b"}


@pytest.mark.behaviour("Session affinity: Lost endpoint")
def test_clients_of_a_removed_endpoint_move_and_others_stay(stage: Stage, family: int) -> None:
    stayed, removed, new = *stage.here, stage.there[0]
    offer = _sticky(stage, family, 600)
    first = _choices(stage, "tcp", offer.vip, 80)
    offer.endpoints(at(stayed, family), at(new, family))
    later = _choices(stage, "tcp", offer.vip, 80)
    assert removed.name not in later.values()
    for source, server in first.items():
        if server == stayed.name:
            assert later[source] == server
    assert _choices(stage, "tcp", offer.vip, 80) == later


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
@pytest.mark.behaviour("Session affinity: Node ports and policies")
def test_clients_stick_through_node_ports(stage: Stage, family: int, policy: str) -> None:
    offer = _sticky(stage, family, 600, type="NodePort", externalTrafficPolicy=policy)
    address = stage.node.ip(family)
    for proto, port in offer.node_ports:
        first = _choices(stage, proto, address, port)
        assert set(first.values()) == {"pod1a", "pod1b"}
        assert _choices(stage, proto, address, port) == first


@pytest.mark.behaviour("Session affinity: Node ports and policies")
def test_clients_stick_with_the_local_internal_policy(stage: Stage, family: int) -> None:
    offer = _sticky(stage, family, 600, internalTrafficPolicy="Local")
    first = _choices(stage, "tcp", offer.vip, 80)
    assert set(first.values()) == {"pod1a", "pod1b"}
    assert _choices(stage, "tcp", offer.vip, 80) == first


@pytest.mark.behaviour("Session affinity: Node ports and policies")
def test_sources_are_as_without_affinity(stage: Stage, family: int) -> None:
    offer = _sticky(stage, family, 600)
    for proto, port in offer.ports:
        for pod in (*stage.here, stage.there[0]):
            assert ask(pod, proto, offer.vip, port) < stage.kept(pod, stage.here, family)
        assert ask(stage.client, proto, offer.vip, port) < stage.masqueraded(stage.here, family)


@pytest.mark.behaviour("Session affinity: Changes")
def test_affinity_may_be_switched_on_and_off(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here, family))
    assert len(ask(stage.client, "tcp", offer.vip, 80)) == 2
    offer.change(sessionAffinity="ClientIP")
    assert len(ask(stage.client, "tcp", offer.vip, 80)) == 1
    offer.change(sessionAffinity="None")
    assert len(ask(stage.client, "tcp", offer.vip, 80)) == 2
