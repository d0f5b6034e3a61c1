"""``trace --live`` leaves nothing behind, also if it is killed at any moment."""

import difflib
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from operator import itemgetter

import pytest

from svcproxy.probe.core.result import LiveRequest
from testbed import manifests as m
from testbed.waiting import eventually
from tests.kernel.conftest import Offer, Stage, all_at
from tests.kernel.probes import (
    clients,
    flows,
    interrupt,
    live,
    of_service,
    processes,
    request,
    snapshot,
    sources,
    start,
)

pytestmark = pytest.mark.kernel

VARIANTS = ("nft", "legacy", "nftables")
KILLS = int(os.environ.get("PROBE_KILLS", "15"))
"""Probes that are killed in each variant."""
AT_ONCE = 3
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
GONE = 15.0


def _requests(stage: Stage, chance: random.Random) -> Iterator[LiveRequest]:
    """Yield requests without end: all sources and families; answered, dropped, with affinity."""
    offers = [(family, _sticky(stage, family), _dropped(stage, family)) for family in (4, 6)]
    for number in itertools.count():
        family, sticky, dropped = chance.choice(offers)
        source = sources(stage, family)[chance.choice(("node", "pod", "outside"))]
        timeout = 0.3 + number / 1e6  # makes each request unique, so that its processes are known
        if chance.random() < 0.5:
            asked = request(stage, family, sticky.vip, 80, timeout=timeout, **source)
            yield of_service(stage, sticky, asked)
        else:
            yield request(stage, family, dropped, 80, timeout=timeout, **source)


def _sticky(stage: Stage, family: int) -> Offer:
    return stage.offer(
        family,
        all_at(stage.here, family),
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 600}},
    )


def _dropped(stage: Stage, family: int) -> str:
    """Return an address at which nothing answers: the endpoint is on no machine."""
    offer = stage.offer(family, [m.endpoint("10.244.2.99" if family == 4 else "fd00:10:244:2::99")])
    return offer.vip


def _kill_some(
    stage: Stage, asked: list[LiveRequest], moments: list[float], chance: random.Random
) -> None:
    """Start probes together, and end each of them at its moment, in seconds from now."""
    began = time.monotonic()
    running = [start(stage, one) for one in asked]
    for moment, process in sorted(zip(moments, running, strict=True), key=itemgetter(0)):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        interrupt(process, chance.choice(SIGNALS))
    for process in running:
        process.wait()


def test_nothing_remains_whenever_it_is_killed(stage: Stage) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    requests = _requests(stage, chance)
    began = time.monotonic()
    live(stage, next(requests))
    usual = time.monotonic() - began
    before = _state(stage)
    repairs = _repairs(stage)
    for _ in range(KILLS // AT_ONCE):
        asked = [next(requests) for _ in range(AT_ONCE)]
        _kill_some(stage, asked, [chance.uniform(0.3, 1.5) * usual for _ in asked], chance)
        ended = partial(_ended, asked)
        eventually(ended, f"no process, seed {seed}", timeout=GONE)
        same = partial(_assert_same, stage, before)
        eventually(same, f"the former state, seed {seed}", timeout=GONE)
    addresses = {offer.vip for offer in stage.offers}
    left = [line for address in addresses for line in flows(stage.node.netns, address)]
    left += [line for a in addresses for line in flows(stage.here[1].netns, a)]
    assert not left, f"seed {seed}"
    assert _repairs(stage) == repairs, f"seed {seed}"


def _ended(asked: list[LiveRequest]) -> bool:
    return not any(map(processes, asked))


def _assert_same(stage: Stage, before: str) -> bool:
    now = _state(stage)
    found = difflib.unified_diff(before.splitlines(), now.splitlines(), lineterm="", n=0)
    assert now == before, "\n".join(found)
    return True


def _state(stage: Stage) -> str:
    return "\n".join((snapshot(stage), clients(stage, 4), clients(stage, 6)))


def _repairs(stage: Stage) -> float:
    found = stage.daemon.metrics().matching("svcproxy_drift_repairs_total")
    return sum(sample.value for sample in found)
