from collections.abc import Iterable

import pytest
from msgspec import structs

from svcproxy.conntrack.core.stale import MAX_QUERIES, FrontendEndpoints, queries
from svcproxy.model.names import Protocol
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.conntrack import Destination, Flow
from tests.unit.conntrack.ports import (
    SCTP,
    TCP,
    UDP,
    by_name,
    change,
    flow,
    key,
    service_port,
    target,
)

NODE = "192.168.50.1"
A, B, C = "10.244.0.1:5353", "10.244.0.2:5353", "10.244.0.3:5353"
VIP, EXTERNAL, NODE_PORT = "10.96.0.10:53", "203.0.113.7:53", ":30053"
EVERYWHERE = (VIP, EXTERNAL, NODE_PORT)


def is_local(address: bytes) -> bool:
    return address == target(f"{NODE}:1").address


def no_look_up(address: bytes) -> bool:
    pytest.fail(f"a look-up of {address!r}")


def stale(before: Iterable[ServicePort], after: Iterable[ServicePort], *flows: Flow) -> list[Flow]:
    """Return the flows that the change from one state to the other makes stale."""
    old, new = by_name(*before), by_name(*after)
    frontends = FrontendEndpoints()
    frontends.replace(old)
    suspects = frontends.update(change(old, new))
    return [f for f in flows if frontends.is_stale(f, suspects, is_local)]


def dns(*cluster: str, protocol: Protocol = UDP) -> ServicePort:
    return service_port("dns", EVERYWHERE, cluster, protocol=protocol)


def to_every_frontend(source: str = "", protocol: int = 17) -> list[Flow]:
    return [flow(d, source, protocol) for d in (VIP, EXTERNAL, f"{NODE}:30053")]


def test_only_flows_to_the_removed_endpoint_are_stale() -> None:
    gone, kept = to_every_frontend(B), to_every_frontend(A)
    assert stale([dns(A, B)], [dns(A)], *gone, *kept) == gone


@pytest.mark.parametrize("after", [[dns()], []], ids=["scaled to zero", "removed"])
def test_without_endpoints_every_translated_flow_is_stale(after: list[ServicePort]) -> None:
    translated, direct = to_every_frontend(A), to_every_frontend()
    assert stale([dns(A)], after, *translated, *direct) == translated


@pytest.mark.parametrize("before", [[dns()], []], ids=["no endpoints", "no Service"])
def test_flows_that_began_untranslated_are_stale_with_the_first_endpoint(
    before: list[ServicePort],
) -> None:
    direct = to_every_frontend()
    assert stale(before, [dns(A)], *direct, *to_every_frontend(A)) == direct


def test_sctp_flows_are_stale_like_udp_flows_but_separately() -> None:
    gone, udp = to_every_frontend(B, 132), to_every_frontend(B, 17)
    assert stale([dns(A, B, protocol=SCTP)], [dns(A, protocol=SCTP)], *gone, *udp) == gone


def test_tcp_flows_are_never_stale() -> None:
    flows = to_every_frontend(B, 6)
    assert stale([dns(A, B, protocol=TCP)], [], *flows) == []
    assert stale([dns(A, B)], [], *flows) == []


def test_ipv6() -> None:
    vip, a, b = "fd00:10:96::a:53", "fd00:10:244::1:53", "fd00:10:244::2:53"
    before, after = (service_port("dns", [vip], found) for found in ([a, b], [a]))
    assert stale([before], [after], flow(vip, a), flow(vip, b)) == [flow(vip, b)]


def test_a_new_target_port_makes_old_flows_stale() -> None:
    old = flow(VIP, "10.244.0.1:53")
    assert stale([dns("10.244.0.1:53")], [dns("10.244.0.1:5353")], old) == [old]


def test_endpoints_of_either_policy_keep_their_flows() -> None:
    before = service_port("dns", [VIP], [A, B], [C])
    after = service_port("dns", [VIP], [A], [B])
    flows = [flow(VIP, source) for source in (A, B, C)]
    assert stale([before], [after], *flows) == [flow(VIP, C)]


def test_only_flows_of_a_removed_frontend_are_stale() -> None:
    before, after = (service_port("dns", f, [A]) for f in (EVERYWHERE, [VIP]))
    external, node_port = flow(EXTERNAL, A), flow(f"{NODE}:30053", A)
    assert stale([before], [after], flow(VIP, A), external, node_port) == [external, node_port]


@pytest.mark.parametrize("names", [("old", "new"), ("new", "old")])
def test_a_frontend_may_move_to_another_service_in_one_change(names: tuple[str, str]) -> None:
    before = service_port(names[0], [VIP], [A, B])
    after = service_port(names[1], [VIP], [B, C])
    flows = [flow(VIP, source) for source in (A, B, C)]
    assert stale([before], [after], *flows) == [flow(VIP, A)]


def test_a_reused_vip_has_no_flows_of_its_former_service() -> None:
    late = flow(VIP, A)  # from the rules of the former Service
    assert stale([], [service_port("new", [VIP], [C])], late) == [late]


def test_a_cluster_ip_with_the_port_of_a_node_port_is_not_mistaken_for_it() -> None:
    other = service_port("other", ["10.96.0.11:30053", f"{NODE}:30053"], [C])
    flows = [flow("10.96.0.11:30053", C), flow(f"{NODE}:30053", C)]
    assert stale([dns(A), other], [dns(B), other], *flows) == []


def test_flows_through_this_node_to_other_hosts_are_never_stale() -> None:
    passing = [flow("198.51.100.1:30053"), flow("198.51.100.1:30053", "198.51.100.2:1")]
    assert stale([], [dns(A)], *passing) == []
    assert stale([dns(A)], [], *passing) == []


def test_a_node_port_takes_over_a_removed_address() -> None:
    node_port = service_port("np", [NODE_PORT], [A])
    own = service_port("own", [f"{NODE}:30053"], [B])
    direct, old, right = (flow(f"{NODE}:30053", source) for source in ("", B, A))
    assert stale([node_port, own], [node_port], direct, old, right) == [direct, old]


def test_the_kernel_is_asked_about_addresses_only_where_it_decides() -> None:
    frontends = FrontendEndpoints()
    frontends.replace(by_name(dns(A, B)))
    suspects = frontends.update(change(by_name(dns(A, B)), by_name(dns(A))))
    flows = [flow(VIP, B), flow(VIP, A), flow("198.51.100.1:30053", A), flow("198.51.100.1:1", B)]
    verdicts = [frontends.is_stale(f, suspects, no_look_up) for f in flows]
    assert verdicts == [True, False, False, False]


def test_changes_that_mislead_no_flow_have_no_suspects() -> None:
    frontends = FrontendEndpoints()
    base = dns(A)
    frontends.replace(by_name(base))
    harmless = [
        dns(A, B),
        structs.replace(base, affinity_seconds=10800, source_ranges=("10.0.0.0/8",)),
        structs.replace(base, cluster_endpoints=(), local_endpoints=base.cluster_endpoints),
    ]
    for after in harmless:
        assert frontends.update(change(by_name(base), by_name(after))) == set()
    empty = dns()
    frontends.replace(by_name(empty))
    local = structs.replace(empty, health_check_node_port=1)
    assert frontends.update(change(by_name(empty), by_name(local))) == set()


def test_only_frontends_that_lost_endpoints_are_suspects() -> None:
    frontends = FrontendEndpoints()
    before = by_name(dns(A, B), service_port("web", ["10.96.0.12:80"], [A], protocol=TCP))
    assert frontends.replace(before) == {key(k) for k in EVERYWHERE}
    after = by_name(dns(B), service_port("web", ["10.96.0.12:80"], [B], protocol=TCP))
    assert frontends.update(change(before, after)) == {key(k) for k in EVERYWHERE}
    assert frontends.replace({}) == {key(k) for k in EVERYWHERE}
    assert frontends.replace({}) == set()


def test_there_is_a_query_for_each_frontend() -> None:
    suspects = [key(VIP), key(EXTERNAL), key(NODE_PORT), key("10.96.0.9:5060", SCTP)]
    assert queries(suspects, by_address=True) == sorted(suspects)


def test_a_query_for_a_port_covers_all_addresses_with_this_port() -> None:
    suspects = [key(":53"), key(VIP), key(EXTERNAL), key(VIP, SCTP)]
    assert queries(suspects, by_address=True) == [key(":53"), key(VIP, SCTP)]


def test_queries_without_addresses_contain_each_port_once() -> None:
    suspects = [key("fd00::1:53"), key("fd00::2:53"), key("fd00::1:54"), key("fd00::1:53", SCTP)]
    expected = [key(":53"), key(":54"), key(":53", SCTP)]
    assert queries(suspects, by_address=False) == expected


def test_many_queries_become_one_for_each_protocol() -> None:
    few = [key(f"10.96.1.{n}:53") for n in range(MAX_QUERIES)]
    assert len(queries(few, by_address=True)) == MAX_QUERIES
    assert queries([*few, key(NODE_PORT)], by_address=True) == [Destination(17, b"", 0)]
    mixed = [*few, key(VIP, SCTP)]
    assert queries(mixed, by_address=True) == [Destination(17, b"", 0), Destination(132, b"", 0)]
    assert queries([], by_address=True) == []
