"""Why an endpoint is not used, in words."""

import pytest

from svcproxy.model.names import IPFamily, NamespacedName, Protocol, ServicePortName
from svcproxy.model.objects import (
    EndpointSlice,
    Node,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from svcproxy.state import desired
from svcproxy.state.desired import DesiredState
from svcproxy.state.reasons import endpoint_uses

WEB = NamespacedName("default", "web")
HTTP = ServicePortName(*WEB, "http", Protocol.TCP)


def entry(address: str, *marks: str, node: str = "", zone: str = "", to: str = "") -> SliceEndpoint:
    return SliceEndpoint(
        address,
        "unready" not in marks and "leaving" not in marks,
        "unready" not in marks and "gone" not in marks,
        "leaving" in marks,
        node,
        (zone,) if zone else (),
        (to,) if to else (),
    )


def piece(*entries: SliceEndpoint, name: str = "web-1", port: str | None = "http") -> EndpointSlice:
    ports = () if port is None else (SlicePort(port, Protocol.TCP, 8080),)
    return EndpointSlice(NamespacedName("default", name), WEB, IPFamily.IPV4, ports, entries)


def uses(*slices: EndpointSlice, local: bool = False, external: bool = False) -> list[str]:
    """Each entry as ``address: reason``, or with the lists in which it is."""
    state = DesiredState(IPFamily.IPV4, "node1")
    state.update_node(Node("node1", "a"))
    ports = (ServicePortSpec("http", Protocol.TCP, 80, 0),)
    state.update_service(
        Service(
            WEB,
            ports,
            ("10.96.0.1",),
            ("192.0.2.1",) if external else (),
            internal_policy_local=local and not external,
            external_policy_local=local and external,
        )
    )
    for endpoint_slice in slices:
        state.update_slice(endpoint_slice)
    state.checkout()
    lists = {(True, True): "used", (True, False): "cluster", (False, True): "local"}
    return [
        f"{use.address}: {use.exclusion or lists[use.in_cluster_list, use.in_local_list]}"
        for use in endpoint_uses(state, HTTP)
    ]


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        ([], ""),
        ([piece(entry("10.0.0.10"), entry("10.0.0.9"))], "10.0.0.9: cluster, 10.0.0.10: cluster"),
        ([piece(entry("10.0.0.1", "unready"))], "10.0.0.1: not ready"),
        (
            [piece(entry("10.0.0.1"), entry("10.0.0.2", "leaving"))],
            "10.0.0.1: cluster, 10.0.0.2: terminating while others serve",
        ),
        ([piece(entry("10.0.0.2", "leaving"))], "10.0.0.2: cluster"),
        ([piece(entry("10.0.0.2", "leaving", "gone"))], "10.0.0.2: terminating and not serving"),
        (
            [piece(entry("10.0.0.1", zone="a"), entry("10.0.0.2", zone="b"))],
            "10.0.0.1: cluster, 10.0.0.2: hinted to zone b, this is zone a",
        ),
        (
            [piece(entry("10.0.0.1", to="node1"), entry("10.0.0.2", to="node2"))],
            "10.0.0.1: cluster, 10.0.0.2: hinted to node node2, this is node1",
        ),
        (
            [piece(entry("10.0.0.1")), piece(entry("10.0.0.1"), name="web-2")],
            "10.0.0.1: cluster, 10.0.0.1: duplicate of an entry in slice default/web-1",
        ),
        (  # the entry that is ready wins
            [piece(entry("10.0.0.1", "unready")), piece(entry("10.0.0.1"), name="web-2")],
            "10.0.0.1: duplicate of an entry in slice default/web-2, 10.0.0.1: cluster",
        ),
        (
            [piece(entry("10.0.0.1"), port="web")],
            "10.0.0.1: its slice has no TCP port 'http', but TCP port 'web'",
        ),
        ([piece(entry("10.0.0.1"), port=None)], "10.0.0.1: its slice has no ports"),
        (  # its port is in another slice
            [piece(entry("10.0.0.1")), piece(entry("10.0.0.1"), name="web-2", port="metrics")],
            "10.0.0.1: cluster",
        ),
    ],
)
def test_reasons_of_the_cluster_policy(slices: list[EndpointSlice], expected: str) -> None:
    assert ", ".join(uses(*slices)) == expected


def test_reasons_of_the_local_policy() -> None:
    found = piece(
        entry("10.0.0.1", node="node1"),
        entry("10.0.0.2", node="node2"),
        entry("10.0.0.3"),
        entry("10.0.0.4", "unready", node="node1"),
    )
    assert uses(found, local=True) == [
        "10.0.0.1: local",
        "10.0.0.2: on node node2, and the policy is Local",
        "10.0.0.3: on an unknown node, and the policy is Local",
        "10.0.0.4: not ready",
    ]
    # Clients inside the cluster reach all endpoints at external addresses.
    assert uses(found, local=True, external=True) == [
        "10.0.0.1: used",
        "10.0.0.2: cluster",
        "10.0.0.3: cluster",
        "10.0.0.4: not ready",
    ]


def test_endpoints_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desired, "SERVICE_TARGETS", 4)  # of 2 addresses, with the node port
    found = piece(*(entry(f"10.0.0.{n}") for n in range(1, 4)))
    assert uses(found) == [
        "10.0.0.1: cluster",
        "10.0.0.2: cluster",
        "10.0.0.3: exceeds the limit of 2 endpoints for each port of the Service",
    ]


def test_a_port_that_does_not_exist_has_no_endpoints() -> None:
    assert endpoint_uses(DesiredState(IPFamily.IPV4, "node1"), HTTP) == ()
