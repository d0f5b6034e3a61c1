"""The selection of endpoints: the rules of kube-proxy 1.36, case by case."""

import pytest

from svcproxy.state.slices import Candidate
from svcproxy.state.topology import EndpointLists, NodeLocation, categorize

HERE = NodeLocation("node1", "zone-a")


def endpoint(address: str, *marks: str, zones: str = "", nodes: str = "") -> Candidate:
    """An endpoint; marks: ``local``, ``unready``, ``leaving`` (serving), ``gone`` (not serving)."""
    leaving = "leaving" in marks or "gone" in marks
    ready = not leaving and "unready" not in marks
    return Candidate(
        address=address,
        port=80,
        is_local="local" in marks,
        node_unknown=False,
        ready=ready,
        serving=ready or "leaving" in marks,
        terminating=leaving,
        zone_hints=tuple(zones.split()),
        node_hints=tuple(nodes.split()),
    )


def lists(*candidates: Candidate, location: NodeLocation = HERE) -> EndpointLists:
    return categorize(candidates, location, uses_cluster=True, uses_local=True)


def addresses(found: EndpointLists) -> tuple[str, str]:
    return (
        " ".join(e.address for e in found.cluster),
        " ".join(e.address for e in found.local),
    )


@pytest.mark.parametrize(
    ("candidates", "cluster", "local"),
    [
        ([endpoint("a"), endpoint("b", "local")], "a b", "b"),
        ([endpoint("a", "unready"), endpoint("b")], "b", ""),
        ([endpoint("a", "leaving"), endpoint("b")], "b", ""),
        ([endpoint("a", "leaving"), endpoint("b", "unready")], "a", ""),
        ([endpoint("a", "gone"), endpoint("b", "unready")], "", ""),
        # Both lists fall back independently.
        ([endpoint("a"), endpoint("b", "local", "leaving")], "a", "b"),
        ([endpoint("a", "leaving"), endpoint("b", "local", "leaving")], "a b", "b"),
        ([], "", ""),
    ],
)
def test_readiness_and_termination(candidates: list[Candidate], cluster: str, local: str) -> None:
    assert addresses(lists(*candidates)) == (cluster, local)


@pytest.mark.parametrize(
    ("candidates", "cluster"),
    [
        ([endpoint("a", zones="zone-a"), endpoint("b", zones="zone-b")], "a"),
        ([endpoint("a", zones="zone-a zone-b"), endpoint("b", zones="zone-b")], "a"),
        # One endpoint without a hint, or no hint for this zone: hints are ignored.
        ([endpoint("a", zones="zone-a"), endpoint("b")], "a b"),
        ([endpoint("a", zones="zone-b"), endpoint("b", zones="zone-c")], "a b"),
        # The hints of endpoints that are not ready do not count.
        ([endpoint("a", zones="zone-a"), endpoint("b", "unready")], "a"),
        # Node hints take precedence over zone hints, and fall back to them.
        (
            [
                endpoint("a", zones="zone-a", nodes="node2"),
                endpoint("b", zones="zone-a", nodes="node1"),
            ],
            "b",
        ),
        (
            [
                endpoint("a", zones="zone-a", nodes="node2"),
                endpoint("b", zones="zone-b", nodes="node3"),
            ],
            "a",
        ),
        # If no endpoint is ready, hints are ignored.
        ([endpoint("a", "leaving", zones="zone-b"), endpoint("b", "leaving")], "a b"),
    ],
)
def test_topology_hints(candidates: list[Candidate], cluster: str) -> None:
    assert addresses(lists(*candidates))[0] == cluster


def test_a_node_without_a_zone_ignores_zones() -> None:
    found = lists(
        endpoint("a", zones="zone-a"), endpoint("b", zones=""), location=NodeLocation("node1")
    )
    assert addresses(found)[0] == "a b"


def test_hints_do_not_affect_the_local_list() -> None:
    found = lists(endpoint("a", zones="zone-a"), endpoint("b", "local", zones="zone-b"))
    assert addresses(found) == ("a", "b")


@pytest.mark.parametrize(
    ("candidates", "anywhere"),
    [
        ([], False),
        ([endpoint("a", "unready")], False),
        ([endpoint("a")], True),
        ([endpoint("a", "leaving")], True),
    ],
)
def test_anywhere_is_true_if_any_node_has_an_endpoint(
    candidates: list[Candidate], *, anywhere: bool
) -> None:
    for uses in ({"uses_cluster": True}, {"uses_local": True}):
        flags = {"uses_cluster": False, "uses_local": False, **uses}
        assert categorize(candidates, HERE, **flags).anywhere is anywhere


def test_unused_lists_are_empty() -> None:
    both = [endpoint("a"), endpoint("b", "local")]
    only_local = categorize(both, HERE, uses_cluster=False, uses_local=True)
    assert addresses(only_local) == ("", "b")
    only_cluster = categorize(both, HERE, uses_cluster=True, uses_local=False)
    assert addresses(only_cluster) == ("a b", "")
