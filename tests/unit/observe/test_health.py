import json
from typing import Any

import pytest

from svcproxy.model.names import IPFamily, Kind
from svcproxy.model.objects import Node
from svcproxy.observe.health import HealthState, ProbeResult

V4, V6 = IPFamily.IPV4, IPFamily.IPV6
EPOCH = 1_800_000_000.0  # 2027-01-15T08:00:00Z


class Clock:
    """Both clocks of the state; the wall clock can be set independently."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.wall_offset = EPOCH

    def monotonic(self) -> float:
        return self.elapsed

    def wall(self) -> float:
        return self.elapsed + self.wall_offset


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> HealthState:
    state = HealthState(sync_period=30.0, clock=clock.monotonic, wall=clock.wall)
    state.node_changed(Node(name="n1"))
    return state


def body(answer: ProbeResult) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(answer.body)
    return parsed


def codes(health: HealthState) -> tuple[int, int]:
    return health.healthz().status, health.livez().status


def test_healthy_before_the_first_event(health: HealthState) -> None:
    assert health.healthz() == ProbeResult(
        200,
        b'{"lastUpdated":"2027-01-15T08:00:00.000000Z","currentTime":"2027-01-15T08:00:00.000000Z",'
        b'"nodeEligible":true,"healthy":true}',
    )
    assert not health.synced


def test_a_family_that_never_started_is_starting_up(health: HealthState, clock: Clock) -> None:
    health.queued(V4)
    clock.elapsed = 1000.0
    assert codes(health) == (200, 200)
    assert "status" not in body(health.livez())


def test_a_first_sync_that_never_succeeds_is_unhealthy(health: HealthState, clock: Clock) -> None:
    health.started(V4)
    health.queued(V4)
    clock.elapsed = 59.999
    assert codes(health) == (200, 200)
    clock.elapsed = 60.0
    assert codes(health) == (503, 503)
    assert not health.synced


def test_started_does_not_move_a_later_update(health: HealthState, clock: Clock) -> None:
    clock.elapsed = 5.0
    health.updated(V4)
    clock.elapsed = 9.0
    health.started(V4)
    assert body(health.livez())["status"]["IPv4"]["lastUpdated"] == "2027-01-15T08:00:05.000000Z"


def test_only_the_oldest_waiting_change_counts(health: HealthState, clock: Clock) -> None:
    health.updated(V4)
    for second in range(0, 60, 10):
        clock.elapsed = float(second)
        health.queued(V4)
        assert codes(health) == (200, 200)
    clock.elapsed = 60.0
    assert codes(health) == (503, 503)
    health.taken(V4)
    assert codes(health) == (503, 503)
    health.updated(V4)
    assert codes(health) == (200, 200)
    health.queued(V4)
    clock.elapsed = 119.0
    assert codes(health) == (200, 200)


def test_nothing_waiting_is_healthy_for_ever(health: HealthState, clock: Clock) -> None:
    health.queued(V4)
    health.taken(V4)
    health.updated(V4)
    clock.elapsed = 1e6
    assert codes(health) == (200, 200)


def test_changes_during_a_sync_still_wait_after_it(health: HealthState, clock: Clock) -> None:
    health.queued(V4)
    health.taken(V4)
    clock.elapsed = 10.0
    health.queued(V4)
    assert health.waiting_since(V4) == 0.0
    health.updated(V4)
    assert health.waiting_since(V4) == 10.0
    clock.elapsed = 69.9
    assert codes(health) == (200, 200)
    assert health.waiting_seconds(V4) == pytest.approx(59.9)
    clock.elapsed = 70.0
    assert codes(health) == (503, 503)


def test_after_a_failed_sync_the_first_change_counts(health: HealthState, clock: Clock) -> None:
    health.started(V4)
    for second in (0.0, 10.0, 20.0):
        clock.elapsed = second
        health.queued(V4)
        health.taken(V4)
    assert health.waiting_seconds(V4) == 20.0
    assert health.waiting_seconds(V6) == 0.0
    health.updated(V4)
    assert health.waiting_seconds(V4) == 0.0


def test_one_late_family_is_enough(health: HealthState, clock: Clock) -> None:
    health.updated(V4)
    clock.elapsed = 10.0
    health.updated(V6)
    health.queued(V4)
    clock.elapsed = 70.0
    answer = health.healthz()
    assert answer.status == 503
    assert body(answer) == {
        "lastUpdated": "2027-01-15T08:00:10.000000Z",
        "currentTime": "2027-01-15T08:01:10.000000Z",
        "nodeEligible": True,
        "healthy": False,
        "status": {
            "IPv4": {"lastUpdated": "2027-01-15T08:00:00.000000Z", "healthy": False},
            "IPv6": {"lastUpdated": "2027-01-15T08:00:10.000000Z", "healthy": True},
        },
    }
    live = body(health.livez())
    assert "nodeEligible" not in live
    assert live["healthy"] is False


def test_unhealthy_without_an_update_shows_go_s_zero_time(health: HealthState) -> None:
    health.node_changed(Node(name="n1", deleting=True))
    assert body(health.healthz())["lastUpdated"] == "0001-01-01T00:00:00Z"


def test_setting_the_wall_clock_does_not_change_health(health: HealthState, clock: Clock) -> None:
    health.updated(V4)
    health.queued(V4)
    clock.wall_offset += 86400
    assert codes(health) == (200, 200)
    clock.wall_offset -= 2 * 86400
    clock.elapsed = 61.0
    assert codes(health) == (503, 503)


@pytest.mark.parametrize(
    ("node", "eligible"),
    [
        (Node(name="n1"), True),
        (Node(name="n1", taints=("node.kubernetes.io/unreachable",)), True),
        (Node(name="n1", taints=("other", "ToBeDeletedByClusterAutoscaler")), False),
        (Node(name="n1", deleting=True), False),
    ],
)
def test_the_node_affects_healthz_only(health: HealthState, node: Node, *, eligible: bool) -> None:
    health.node_changed(node)
    assert codes(health) == (200 if eligible else 503, 200)
    health.node_changed(None)
    assert codes(health) == (200 if eligible else 503, 200), "it may be registered again"
    answer = body(health.healthz())
    assert answer["nodeEligible"] is eligible
    assert answer["healthy"] is True


def test_an_unknown_node_is_not_eligible(clock: Clock) -> None:
    health = HealthState(sync_period=30.0, clock=clock.monotonic, wall=clock.wall)
    assert codes(health) == (503, 200)


def test_without_an_api_no_node_is_needed(clock: Clock) -> None:
    health = HealthState(sync_period=30.0, clock=clock.monotonic, wall=clock.wall, needs_node=False)
    assert codes(health) == (200, 200)
    health.node_changed(Node(name="n1", deleting=True))
    assert codes(health) == (503, 200)
    health.node_changed(None)
    assert codes(health) == (200, 200)


def test_synced_waits_for_the_first_sync_of_all_started_families(health: HealthState) -> None:
    health.started(V4)
    health.queued(V6)
    assert not health.synced
    health.updated(V4)
    assert not health.synced
    health.updated(V6)
    assert health.synced
    health.queued(V4)
    assert health.synced


KINDS = [Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE]


def serving(clock: Clock, *, stalled: tuple[str, ...] = ()) -> HealthState:
    return HealthState(
        sync_period=30.0,
        clock=clock.monotonic,
        wall=clock.wall,
        families=(V4, V6),
        kinds=KINDS,
        stalled=lambda: stalled,
    )


def reasons(health: HealthState) -> dict[str, list[str]]:
    status = body(health.readyz())["status"]
    return {family: status[family]["reasons"] for family in status}


def test_ready_when_every_family_has_been_synced(clock: Clock) -> None:
    health = serving(clock)
    assert health.readyz().status == 503
    for kind in (Kind.SERVICE, Kind.NODE):
        health.listed(kind)
    waiting = ["waiting for the first list of EndpointSlices"]
    assert reasons(health) == {"IPv4": waiting, "IPv6": waiting}
    assert body(health.readyz())["unlisted"] == ["EndpointSlice"]
    health.node_changed(Node(name="n1"))
    assert codes(health) == (200, 200)
    health.listed(Kind.ENDPOINT_SLICE)
    for family in (V4, V6):
        health.started(family)
    health.updated(V4)
    assert reasons(health) == {"IPv4": [], "IPv6": ["waiting for the first sync to succeed"]}
    assert health.readyz().status == 503
    health.updated(V6)
    assert health.readyz() == ProbeResult(
        200,
        b'{"ready":true,"currentTime":"2027-01-15T08:00:00.000000Z","unlisted":[],"status":'
        b'{"IPv4":{"ready":true,"reasons":[]},"IPv6":{"ready":true,"reasons":[]}}}',
    )


def test_ready_as_long_as_no_change_waits_too_long(clock: Clock) -> None:
    health = serving(clock)
    for kind in KINDS:
        health.listed(kind)
    for family in (V4, V6):
        health.updated(family)
    clock.elapsed = 1000.0
    assert health.readyz().status == 200
    health.queued(V4)
    clock.elapsed = 1059.9
    assert health.readyz().status == 200
    clock.elapsed = 1060.0
    assert health.readyz().status == 503
    assert reasons(health) == {
        "IPv4": ["a change has waited for the kernel for 60 s or more"],
        "IPv6": [],
    }
    health.taken(V4)
    health.updated(V4)
    assert health.readyz().status == 200


def test_not_ready_before_a_family_is_known(health: HealthState) -> None:
    assert health.readyz().status == 503
    health.updated(V4)
    assert health.readyz().status == 200


def test_the_node_does_not_matter_to_readiness(clock: Clock) -> None:
    health = serving(clock)
    for family in (V4, V6):
        health.updated(family)
    assert health.healthz().status == 503
    assert health.readyz().status == 200


def test_stalled_threads_are_named_and_do_not_affect_healthz(clock: Clock) -> None:
    health = serving(clock, stalled=("watch-Service",))
    health.node_changed(Node(name="n1"))
    for family in (V4, V6):
        health.updated(family)
    assert codes(health) == (200, 503)
    assert body(health.livez())["stalledThreads"] == ["watch-Service"]
    assert body(health.livez())["healthy"] is False
    assert "stalledThreads" not in body(health.healthz())
    assert health.readyz().status == 503
