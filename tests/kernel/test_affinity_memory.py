"""Session affinity remembers far more clients per endpoint than the 100 of xt_recent."""

import socket
from typing import Any

import pytest

from svcproxy.backends.iptables.affinity_sets import AffinitySets
from svcproxy.backends.iptables.core.naming import ENDPOINT_PREFIX
from svcproxy.model.names import IPFamily
from testbed import netns
from testbed.netns import NetNS
from testbed.outcomes import Answer
from testbed.waiting import eventually
from tests.kernel.conftest import Offer, Stage, StageWith, all_at

pytestmark = pytest.mark.kernel

CLIENTS = 400
_MANY = 1500


def _addresses(family: int) -> list[str]:
    prefix = "10.77.{}.{}" if family == 4 else "fd00:77::{:x}:{:x}"
    return [prefix.format(1 + i // 200, 1 + i % 200) for i in range(CLIENTS)]


def _many_clients(stage: Stage, family: int) -> list[str]:
    """Assign many addresses to the external client, and add a route to them on the node."""
    found = _addresses(family)
    bits, network = (32, "10.77.0.0/16") if family == 4 else (128, "fd00:77::/32")
    options = "" if family == 4 else " nodad"
    netns.ip_batch(
        [f"address add {a}/{bits} dev eth0{options}" for a in found],
        netns=stage.client.netns.name,
    )
    route = f"-{family} route replace {network} via {stage.client.ip(family)}"
    stage.node.netns.run("ip", *route.split())
    return found


def _chosen(stage: Stage, offer: Offer, sources: list[str]) -> dict[str, str]:
    chosen = {}
    (_, port), *_ = offer.ports
    for source in sources:
        outcome = stage.client.traffic.connect("tcp", offer.vip, port, source_address=source)
        assert isinstance(outcome, Answer), outcome
        chosen[source] = outcome.server
    return chosen


def _sticky(stage: Stage, family: int, **spec: Any) -> Offer:
    return stage.offer(
        family,
        all_at(stage.here, family),
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 600}},
        **spec,
    )


def _sets(stage: Stage) -> set[str]:
    return set(stage.node.netns.run("ipset", "list", "-n").stdout.split())


@pytest.mark.behaviour("Session affinity: Many clients")
def test_hundreds_of_clients_stay_with_their_endpoint(stage_with: StageWith, family: int) -> None:
    stage = stage_with()
    offer = _sticky(stage, family)
    sources = _many_clients(stage, family)
    first = _chosen(stage, offer, sources)
    assert len(set(first.values())) == len(stage.here)
    assert _chosen(stage, offer, sources) == first
    # They survive a restart of the daemon.
    stage.daemon.kill()
    stage.daemon.start()
    stage.daemon.wait_ready()
    assert _chosen(stage, offer, sources) == first


def test_a_set_remembers_every_one_of_many_clients(space: NetNS) -> None:
    """The kernel does not enlarge a set's hash table when rules add entries to it."""
    name = f"{ENDPOINT_PREFIX}TEST"
    sets = AffinitySets(IPFamily.IPV4)
    space.call(lambda: sets.create([name]))
    space.run("ip", "link", "set", "lo", "up")
    rule = f"-A OUTPUT -d 127.1.0.0/16 -j SET --add-set {name} dst --exist --timeout 600"
    space.run("iptables-nft", *rule.split())

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(_MANY):
                sock.sendto(b"", (f"127.1.{number >> 8}.{number & 255}", 9))

    space.call(send)
    header = space.run("ipset", "list", name, "-terse").stdout
    assert f"Number of entries: {_MANY}\n" in header


@pytest.mark.iptables_only
def test_sets_are_created_and_destroyed_with_their_endpoints(
    stage_with: StageWith, family: int
) -> None:
    """Sets are destroyed shortly after the rules that name them."""

    def number_of_sets(count: int) -> None:
        eventually(lambda: len(_sets(stage)) == count, f"{count} sets", timeout=2.0)

    stage = stage_with()
    number_of_sets(0)
    offer = _sticky(stage, family)
    number_of_sets(len(stage.here) * len(offer.ports))
    offer.endpoints(*all_at(stage.here[:1], family))
    number_of_sets(len(offer.ports))
    stage.daemon.kill()
    stage.daemon.start()
    stage.daemon.wait_ready()
    number_of_sets(len(offer.ports))
    offer.change(sessionAffinity="None", sessionAffinityConfig=None)
    number_of_sets(0)
