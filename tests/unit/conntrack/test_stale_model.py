"""For any change, exactly the flows that it made stale are deleted."""

import itertools
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.conntrack.core.stale import FrontendEndpoints, queries
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.conntrack import Flow
from tests.unit.conntrack.ports import by_name, change, flow, service_port, target

LOCAL = "192.168.50.1"
# Few values, so that they collide: equal ports of addresses and node ports, an IP of the node.
FRONTENDS = ["10.96.0.1:3000", "10.96.0.2:3000", f"{LOCAL}:3000", ":3000", "10.96.0.1:53", ":53"]
ENDPOINTS = ["10.244.0.1:53", "10.244.0.2:53", "10.244.0.2:54"]
FLOWS = [
    flow(f"{address}:{port}", source)
    for address in (LOCAL, "10.96.0.1", "10.96.0.2", "8.8.8.8")
    for port in (53, 3000)
    for source in (*ENDPOINTS, "")
]
State = dict[ServicePortName, ServicePort]


def is_local(address: bytes) -> bool:
    return address == target(f"{LOCAL}:1").address


@st.composite
def states(draw: st.DrawFn) -> State:
    """Up to three Services; each frontend belongs to one of them or to none."""
    owners = draw(st.lists(st.integers(-1, 2), min_size=len(FRONTENDS), max_size=len(FRONTENDS)))
    found = [
        service_port(
            f"s{n}",
            [f for f, owner in zip(FRONTENDS, owners, strict=True) if owner == n],
            draw(st.sets(st.sampled_from(ENDPOINTS))),
        )
        for n in range(3)
    ]
    return by_name(*(port for port in found if port.frontends))


def owner(state: State, f: Flow) -> ServicePort | None:
    """Return the Service of the flow's destination: that of its address, else that of a node port."""
    addresses = [str(ip_address(f.address)), *([""] if is_local(f.address) else [])]
    for address in addresses:
        for port in state.values():
            if any((g.address, g.port) == (address, f.port) for g in port.frontends):
                return port
    return None


def is_right(state: State, f: Flow) -> bool:
    """Whether a new flow would be translated like this one."""
    found = owner(state, f)
    if found is None or not found.cluster_endpoints:
        return f.source == (f.address, f.port)
    return f.source in [target(f"{e.address}:{e.port}") for e in found.cluster_endpoints]


@given(st.lists(states(), min_size=2, max_size=5))
def test_cleaning_deletes_exactly_the_flows_that_a_change_made_stale(history: list[State]) -> None:
    frontends = FrontendEndpoints()
    frontends.replace(history[0])
    for before, after in itertools.pairwise(history):
        table = [f for f in FLOWS if is_right(before, f) or owner(before, f) is None]
        suspects = frontends.update(change(before, after))
        deleted = [f for f in table if frontends.is_stale(f, suspects, is_local)]
        owned = [f for f in table if owner(before, f) or owner(after, f)]
        assert deleted == [f for f in owned if not is_right(after, f)]


@given(states())
def test_cleaning_all_deletes_the_stale_flows_of_all_frontends(state: State) -> None:
    frontends = FrontendEndpoints()
    suspects = frontends.replace(state)
    deleted = [f for f in FLOWS if frontends.is_stale(f, suspects, is_local)]
    assert deleted == [f for f in FLOWS if owner(state, f) and not is_right(state, f)]


@given(states(), states(), st.booleans())
def test_the_queries_cover_every_stale_flow(before: State, after: State, by_address: bool) -> None:  # noqa: FBT001
    frontends = FrontendEndpoints()
    frontends.replace(before)
    suspects = frontends.update(change(before, after))
    found = queries(suspects, by_address=by_address)
    for f in FLOWS:
        if frontends.is_stale(f, suspects, is_local):
            assert any(
                q.protocol == f.protocol and q.address in (b"", f.address) and q.port in (0, f.port)
                for q in found
            )
