"""The number of kernel requests depends on the change, not on the table."""

from collections.abc import Callable, Sequence

import pytest

from svcproxy.conntrack.cleaner import StaleFlows
from svcproxy.conntrack.core.stale import MAX_QUERIES
from svcproxy.conntrack.table import ConntrackError, Table
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.conntrack import Destination, Flow
from svcproxy.state.desired import Changes
from tests.unit.conntrack.ports import (
    SCTP,
    TCP,
    by_name,
    change,
    flow,
    key,
    service_port,
    target,
)

NODE = "192.168.50.1"
A, B = "10.244.0.1:53", "10.244.0.2:53"
FRONTENDS = ("10.96.0.10:53", "203.0.113.7:53", ":30053")


class FakeTable(Table):
    """A table of flows that records queries and filters them like the kernel."""

    def __init__(self, family: IPFamily = IPFamily.IPV4, flows: Sequence[Flow] = ()) -> None:
        super().__init__(family)
        self.held = list(flows)
        self.queries: list[Destination] = []
        self.looked_up: list[bytes] = []
        self.deletions = 0
        self.failures: list[str] = []
        self.ignores_filters = False

    def find(self, query: Destination, wanted: Callable[[Flow], bool]) -> list[Flow]:
        self._fail("find")
        self.queries.append(query)
        if self.ignores_filters:
            self.filtering = False
            return [f for f in self.held if wanted(f)]
        seen = [
            f
            for f in self.held
            if f.protocol == query.protocol
            and query.address in (b"", f.address)
            and query.port in (0, f.port)
        ]
        return [f for f in seen if wanted(f)]

    def delete(self, flows: Sequence[Flow]) -> int:
        self._fail("delete")
        self.deletions += 1
        found = [f for f in flows if f in self.held]
        self.held = [f for f in self.held if f not in found]
        return len(found)

    def is_local(self, address: bytes) -> bool:
        self.looked_up.append(address)
        return address == target(f"{NODE}:1").address

    def _fail(self, call: str) -> None:
        if call in self.failures:
            self.failures.remove(call)
            raise ConntrackError(f"cannot {call}")


def started(table: FakeTable, *cluster: str) -> StaleFlows:
    flows = StaleFlows(table.family, table)
    flows.clean_all(by_name(service_port("dns", FRONTENDS, cluster)))
    table.queries.clear()
    return flows


def scaled(before: Sequence[str], after: Sequence[str]) -> Changes:
    states = (by_name(service_port("dns", FRONTENDS, found)) for found in (before, after))
    return change(*states)


def test_changes_that_leave_no_stale_flows_make_no_request() -> None:
    table = FakeTable()
    flows = started(table, A)
    web = by_name(service_port("web", ["10.96.0.12:80"], [A], protocol=TCP))
    assert flows.clean(change({}, web)) == 0
    assert flows.clean(change(web, {})) == 0
    assert flows.clean(scaled([A], [A, B])) == 0
    assert flows.clean(Changes({}, node_changed=True)) == 0
    assert (table.queries, table.deletions) == ([], 0)


def test_one_changed_port_needs_one_query_per_frontend_and_one_deletion() -> None:
    others = [flow(f"10.96.1.{n}:53", B) for n in range(200)]
    stale = [flow(FRONTENDS[0], B), flow(FRONTENDS[1], B), flow(f"{NODE}:30053", B)]
    kept = [flow(FRONTENDS[0], A), flow(f"{NODE}:30053", A)]
    table = FakeTable(flows=[*others, *stale, *kept])
    assert started(table, A, B).clean(scaled([A, B], [A])) == 3
    assert table.queries == sorted(key(f) for f in FRONTENDS)
    assert table.deletions == 1
    assert table.held == [*others, *kept]


def test_each_address_is_looked_up_once() -> None:
    table = FakeTable(flows=[flow(f"{NODE}:30053", f"10.244.9.{n}:53") for n in range(50)])
    assert started(table, A, B).clean(scaled([A, B], [A])) == 0  # the first check deleted them all
    assert table.held == []
    assert table.looked_up == [target(f"{NODE}:1").address]


def test_nothing_stale_means_no_deletion() -> None:
    table = FakeTable(flows=[flow(FRONTENDS[0], A)])
    assert started(table, A, B).clean(scaled([A, B], [A])) == 0
    assert table.deletions == 0


def test_many_changed_ports_need_one_dump_per_protocol() -> None:
    table = FakeTable()
    ports = [service_port(f"s{n}", [f"10.96.1.{n}:53"], [A]) for n in range(MAX_QUERIES)]
    sctp = service_port("sctp", ["10.96.2.1:53"], [A], protocol=SCTP)
    StaleFlows(table.family, table).clean_all(by_name(*ports, sctp))
    assert table.queries == [Destination(17, b"", 0), Destination(132, b"", 0)]


def test_ipv6_queries_have_no_address() -> None:
    table = FakeTable(IPFamily.IPV6)
    vip, pod = "fd00:10:96::a:53", "fd00:10:244::1:53"
    before = by_name(service_port("dns", [vip], [pod]))
    flows = StaleFlows(table.family, table)
    flows.clean_all(before)
    table.queries.clear()
    table.held = [flow(vip, pod), flow("fd00:10:96::b:53", pod)]
    assert flows.clean(change(before, {})) == 1
    assert table.queries == [key(":53")]
    assert table.held == [flow("fd00:10:96::b:53", pod)]


def test_a_kernel_without_filters_gets_one_query_per_change() -> None:
    table = FakeTable()
    flows = started(table, A, B)
    table.ignores_filters = True
    table.held = [flow(FRONTENDS[0], B), flow(f"{NODE}:30053", B), flow("10.96.9.9:53", B)]
    assert flows.clean(scaled([A, B], [A])) == 2
    assert len(table.queries) == 1
    assert table.held == [flow("10.96.9.9:53", B)]


@pytest.mark.parametrize("failing", ["find", "delete"])
def test_a_failed_clean_up_is_retried(failing: str) -> None:
    table = FakeTable()
    flows = started(table, A, B)
    table.held = [flow(FRONTENDS[0], B)]
    table.failures = [failing]
    with pytest.raises(ConntrackError):
        flows.clean(scaled([A, B], [A]))
    assert flows.clean(Changes({})) == 1
    table.queries.clear()
    assert flows.clean(Changes({})) == 0
    assert table.queries == []


def test_flows_of_a_failed_sync_are_deleted_later() -> None:
    table = FakeTable()
    flows = started(table, A, B)
    table.held = [flow(FRONTENDS[0], A), flow(FRONTENDS[0], B)]
    flows.note(scaled([A, B], [A]))
    assert table.queries == []
    assert flows.clean(Changes({})) == 1
    assert table.held == [flow(FRONTENDS[0], A)]


def test_clean_all_includes_former_frontends() -> None:
    table = FakeTable()
    flows = started(table, A)
    table.held = [flow(FRONTENDS[0], A), flow("10.96.9.9:53", A)]
    assert flows.clean_all({}) == 1
    assert table.held == [flow("10.96.9.9:53", A)]
