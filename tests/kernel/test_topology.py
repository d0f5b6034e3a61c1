"""Topology hints: endpoints for this node or zone are preferred."""

import pytest

from testbed import manifests as m
from testbed.cluster import Host
from testbed.manifests import Object
from tests.kernel.conftest import Stage, at, servers

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _zone(stage: Stage) -> None:
    _move(stage, "a")


def _move(stage: Stage, zone: str) -> None:
    """Label this node with a zone, or none."""
    stage.put_node(m.node("node1", addresses=[stage.node.ipv4, stage.node.ipv6], zone=zone))


def _for_zones(pod: Host, family: int, *zones: str, **conditions: bool) -> Object:
    return at(pod, family, hints={"forZones": zones} if zones else None, **conditions)


def _for_nodes(pod: Host, family: int, *nodes: str, zone: str = "") -> Object:
    hints = {"forNodes": nodes} if nodes else {}
    return at(pod, family, hints={**hints, **({"forZones": [zone]} if zone else {})})


@pytest.mark.behaviour("Which endpoints serve: Zone hints")
def test_endpoints_for_this_zone_serve(stage: Stage, family: int) -> None:
    near, other, far = *stage.here, stage.there[0]
    endpoints = [
        _for_zones(near, family, "b"),
        _for_zones(other, family, "a", "c"),
        _for_zones(far, family, "a"),
    ]
    offer = stage.offer(family, endpoints, type="NodePort")
    for host in (stage.client, near, stage.node):
        for proto, port in offer.ports:
            assert servers(host, proto, offer.vip, port) == {"pod1b", "pod2a"}
        for proto, port in offer.node_ports:
            assert servers(host, proto, stage.node.ip(family), port) == {"pod1b", "pod2a"}


@pytest.mark.behaviour("Which endpoints serve: Zone hints")
def test_hints_are_ignored_unless_all_endpoints_have_them(stage: Stage, family: int) -> None:
    endpoints = [_for_zones(stage.here[0], family, "a"), _for_zones(stage.here[1], family)]
    offer = stage.offer(family, endpoints)
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a", "pod1b"}


@pytest.mark.behaviour("Which endpoints serve: Zone hints")
def test_hints_are_ignored_if_none_names_this_zone(stage: Stage, family: int) -> None:
    endpoints = [_for_zones(stage.here[0], family, "b"), _for_zones(stage.here[1], family, "c")]
    offer = stage.offer(family, endpoints)
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a", "pod1b"}


@pytest.mark.behaviour("Which endpoints serve: Zone hints")
def test_hints_of_endpoints_that_are_not_ready_do_not_count(stage: Stage, family: int) -> None:
    first, second, far = *stage.here, stage.there[0]
    endpoints = [
        _for_zones(first, family, "a"),
        _for_zones(second, family, "b"),
        _for_zones(far, family, ready=False, serving=False),
    ]
    offer = stage.offer(family, endpoints)
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a"}
    endpoints[0] = _for_zones(first, family, "a", ready=False, serving=False)
    offer.endpoints(*endpoints)
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1b"}


@pytest.mark.behaviour("Which endpoints serve: Hints that are ignored")
def test_terminating_endpoints_serve_regardless_of_hints(stage: Stage, family: int) -> None:
    endpoints = [
        _for_zones(pod, family, zone, ready=False, serving=True, terminating=True)
        for pod, zone in zip(stage.here, ("a", "b"), strict=True)
    ]
    offer = stage.offer(family, endpoints)
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a", "pod1b"}


@pytest.mark.behaviour("Which endpoints serve: Node hints")
def test_endpoints_for_this_node_go_before_those_for_its_zone(stage: Stage, family: int) -> None:
    first, second, far = *stage.here, stage.there[0]
    endpoints = [
        _for_nodes(first, family, "node1", zone="a"),
        _for_nodes(second, family, "node2", zone="a"),
        _for_nodes(far, family, "node2", zone="b"),
    ]
    offer = stage.offer(family, endpoints)
    for proto, port in offer.ports:
        assert servers(stage.client, proto, offer.vip, port) == {"pod1a"}
    # No endpoint has a hint for this node: use those for its zone.
    endpoints[0] = _for_nodes(first, family, "node3", zone="a")
    offer.endpoints(*endpoints)
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a", "pod1b"}
    # One endpoint has no hint for nodes: ignore these hints, and use those for zones.
    endpoints[0] = _for_zones(first, family, "a")
    endpoints[1] = _for_nodes(second, family, "node1", zone="b")
    offer.endpoints(*endpoints)
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a"}


@pytest.mark.behaviour("Which endpoints serve: Hints that are ignored")
def test_local_policies_ignore_hints(stage: Stage, family: int) -> None:
    near, far = stage.here[0], stage.there[0]
    endpoints = [_for_zones(near, family, "b"), _for_zones(far, family, "a")]
    offer = stage.offer(family, endpoints, internalTrafficPolicy="Local")
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a"}


@pytest.mark.behaviour("Which endpoints serve: Zone of the node")
def test_a_changed_zone_is_followed(stage: Stage, family: int) -> None:
    endpoints = [_for_zones(stage.here[0], family, "a"), _for_zones(stage.here[1], family, "b")]
    offer = stage.offer(family, endpoints)
    for zone, expected in (
        ("a", {"pod1a"}),
        ("b", {"pod1b"}),
        ("c", {"pod1a", "pod1b"}),
        ("", {"pod1a", "pod1b"}),
        ("a", {"pod1a"}),
    ):
        _move(stage, zone)
        for proto, port in offer.ports:
            assert servers(stage.client, proto, offer.vip, port) == expected


@pytest.mark.behaviour("Which endpoints serve: Zone of the node")
def test_without_a_node_object_zones_are_ignored(stage: Stage, family: int) -> None:
    endpoints = [_for_zones(stage.here[0], family, "a"), _for_zones(stage.here[1], family, "b")]
    offer = stage.offer(family, endpoints)
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a"}
    stage.put_node(None)
    assert servers(stage.client, "tcp", offer.vip, 80) == {"pod1a", "pod1b"}
