"""Which endpoints serve: ready ones, or terminating ones if there is no other."""

import pytest

from tests.kernel.conftest import Stage, ask, assert_refused, at, servers

pytestmark = pytest.mark.kernel

GONE = {"ready": False, "serving": False, "terminating": True}
LEAVING = {"ready": False, "serving": True, "terminating": True}
NOT_READY = {"ready": False, "serving": False, "terminating": False}


@pytest.mark.behaviour("Which endpoints serve: Readiness")
def test_only_ready_endpoints_are_used(stage: Stage, family: int) -> None:
    first, second = stage.here
    offer = stage.offer(family, [at(first, family), at(second, family, **NOT_READY)])
    for host in (stage.client, stage.node, first):
        for proto, port in offer.ports:
            assert servers(host, proto, offer.vip, port) == {"pod1a"}
    offer.endpoints(at(first, family, **NOT_READY), at(second, family, ready=True))
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1b"}
    offer.endpoints(at(first, family, **NOT_READY), at(second, family, **NOT_READY))
    assert_refused(stage.client, "tcp", offer.vip, 80)


@pytest.mark.behaviour("Which endpoints serve: Termination")
def test_terminating_endpoints_serve_when_no_other_does(stage: Stage, family: int) -> None:
    first, second, far = *stage.here, stage.there[0]
    offer = stage.offer(
        family, [at(first, family, **LEAVING), at(far, family, **LEAVING), at(second, family)]
    )
    for proto, port in offer.ports:
        assert servers(stage.client, proto, offer.vip, port) == {"pod1b"}
    offer.endpoints(
        at(first, family, **LEAVING), at(far, family, **LEAVING), at(second, family, **NOT_READY)
    )
    for proto, port in offer.ports:
        assert servers(stage.client, proto, offer.vip, port) == {"pod1a", "pod2a"}
    offer.endpoints(at(first, family, **LEAVING), at(far, family, **GONE))
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a"}
    offer.endpoints(at(first, family, **GONE), at(far, family, **GONE))
    assert_refused(stage.client, "tcp", offer.vip, 80)


@pytest.mark.behaviour("Which endpoints serve: Readiness")
def test_a_ready_endpoint_that_terminates_still_counts_as_ready(stage: Stage, family: int) -> None:
    """``publishNotReadyAddresses`` produces such endpoints: the ``ready`` condition counts."""
    first, second = stage.here
    both = {"ready": True, "serving": True, "terminating": True}
    offer = stage.offer(family, [at(first, family, **both), at(second, family)])
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a", "pod1b"}


@pytest.mark.behaviour("Which endpoints serve: Termination and policies")
def test_local_and_cluster_lists_fall_back_apart(stage: Stage, family: int) -> None:
    """A local pod terminates and a remote one is ready: each policy chooses separately."""
    near, far = stage.here[0], stage.there[0]
    endpoints = [at(near, family, **LEAVING), at(far, family)]
    inside = stage.offer(family, endpoints, internalTrafficPolicy="Local", type="NodePort")
    outside = stage.offer(family, endpoints, externalTrafficPolicy="Local", type="NodePort")
    asking = stage.here[1]
    for proto, port in inside.ports:
        assert servers(asking, proto, inside.vip, port) == {"pod1a"}
        assert servers(asking, proto, outside.vip, port) == {"pod2a"}
    address = stage.node.ip(family)
    for proto, port in inside.node_ports:
        assert servers(stage.client, proto, address, port) == {"pod2a"}
    for proto, port in outside.node_ports:
        seen = ask(stage.client, proto, address, port)
        assert seen == stage.kept(stage.client, [near], family)
        assert servers(asking, proto, address, port) == {"pod2a"}


@pytest.mark.behaviour("Which endpoints serve: Termination and policies")
def test_a_local_ready_endpoint_goes_before_terminating_ones(stage: Stage, family: int) -> None:
    first, second = stage.here
    offer = stage.offer(
        family,
        [at(first, family, **LEAVING), at(second, family)],
        internalTrafficPolicy="Local",
    )
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1b"}
