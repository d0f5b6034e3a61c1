"""What the rules do to packets, case by case; random packets are in tests/property."""

import pytest

from svcproxy.backends.nftables.core.table_sets import parse_tier
from svcproxy.backends.settings import LocalTraffic
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import Verdict
from tests.unit.nftables.fake_kernel import expressions, verdict_of
from tests.unit.nftables.packets import Packet
from tests.unit.nftables.services import (
    BALANCER,
    NODE,
    NODE_PORT,
    VIP,
    Bench,
    options,
    service_port,
)

LOOPBACK = {IPFamily.IPV4: "127.0.0.1", IPFamily.IPV6: "::1"}


@pytest.fixture(params=list(IPFamily))
def family(request: pytest.FixtureRequest) -> IPFamily:
    return IPFamily(request.param)


# --- Affinity --------------------------------------------------------------------------------


def sticky(family: IPFamily, *numbers: int, local: bool = False) -> Bench:
    return Bench(
        options(family), service_port(family, numbers, seconds=60, external=True, local=local)
    )


def test_a_client_keeps_its_endpoint(family: IPFamily) -> None:
    bench = sticky(family, 1, 2, 3)
    first = {n: bench.reach(bench.client(n), VIP[family], 80, chosen=n / 9) for n in range(1, 9)}
    assert set(first.values()) == {bench.pod(n) for n in (1, 2, 3)}
    for number, endpoint in first.items():
        assert bench.reach(bench.client(number), VIP[family], 80, chosen=0.99) == endpoint
    assert {seconds for _, seconds in bench.node.memory.held.values()} == {60_000}


def test_a_client_keeps_its_endpoint_through_every_frontend(family: IPFamily) -> None:
    bench = sticky(family, 1, 2, 3)
    client = bench.client(1)
    chosen = bench.reach(client, VIP[family], 80, chosen=0.5)
    assert bench.reach(client, NODE[family], NODE_PORT, chosen=0.9) == chosen
    assert bench.reach(client, BALANCER[family], 80, chosen=0.1) == chosen
    assert len(bench.node.memory.held) == 1


def test_clients_of_a_removed_endpoint_move_once(family: IPFamily) -> None:
    bench = sticky(family, 1, 2, 3)
    at = {n: bench.reach(bench.client(n), VIP[family], 80, chosen=n / 9) for n in range(1, 9)}
    bench.change(service_port(family, (1, 3, 4, 5), seconds=60, external=True))
    for number, endpoint in at.items():
        later = bench.reach(bench.client(number), VIP[family], 80, chosen=0.99)
        if endpoint == bench.pod(2):
            assert later in {bench.pod(n) for n in (1, 3, 4, 5)}
        else:
            assert later == endpoint
        assert bench.reach(bench.client(number), VIP[family], 80, chosen=0.0) == later


def test_services_remember_clients_separately(family: IPFamily) -> None:
    other = service_port(family, (3, 4), name="other", vip=f"{VIP[family]}1", seconds=60)
    bench = Bench(options(family), service_port(family, (1, 2), seconds=60), other)
    client = bench.client(1)
    assert bench.reach(client, VIP[family], 80) == bench.pod(1)
    assert bench.reach(client, f"{VIP[family]}1", 80, chosen=0.9) == bench.pod(4)
    assert len(bench.node.memory.held) == 2


def test_local_lists_have_their_own_valid_endpoints(family: IPFamily) -> None:
    bench = sticky(family, 1, 2, local=True)
    client = bench.client(1)
    assert bench.reach(client, VIP[family], 80) == bench.pod(1)
    assert bench.reach(client, BALANCER[family], 80) == bench.pod(2), "only 2 is on this node"
    assert bench.reach(client, BALANCER[family], 80) == bench.pod(2)


def test_a_full_affinity_map_still_balances(family: IPFamily) -> None:
    bench = sticky(family, 1, 2, 3)
    bench.node.memory.limit = 0
    seen = [bench.reach(bench.client(1), VIP[family], 80, chosen=n / 3 + 0.1) for n in range(3)]
    assert seen == [bench.pod(n) for n in (1, 2, 3)]


def test_all_frontends_follow_a_new_affinity_key(family: IPFamily) -> None:
    """With a new cluster IP, the node port keeps its list but gets a new affinity key."""
    bench = sticky(family, 1, 2)
    moved = service_port(family, (1, 2), vip=f"{VIP[family]}1", seconds=60, external=True)
    bench.change(moved)
    client = bench.client(1)
    chosen = bench.reach(client, NODE[family], NODE_PORT, chosen=0.9)
    assert bench.reach(client, f"{VIP[family]}1", 80) == chosen == bench.pod(2)
    assert len(bench.node.memory.held) == 1
    assert not bench.planner.plan_changes({moved.name: moved})


# --- Balance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_every_endpoint_has_its_share(family: IPFamily, count: int) -> None:
    bench = Bench(options(family), service_port(family, range(1, count + 1)))
    shares = [(n + 0.5) / count for n in range(count)]
    seen = [bench.reach(bench.client(1), VIP[family], 80, chosen=share) for share in shares]
    assert sorted(seen) == sorted(bench.pod(n) for n in range(1, count + 1))


def test_tiers_are_tried_twice(family: IPFamily) -> None:
    """If a list moves to a tier that a packet has passed, the second pass finds it."""
    bench = Bench(options(family), service_port(family, (1, 2, 3)))
    rules = [expressions(rule) for rule in bench.kernel.table.rules["all"]]
    targets = [verdict_of(rule[0][1]) for rule in rules]
    assert targets == [(-3, "all-tiers")] * 2


def test_tiers_exist_while_a_list_needs_them(family: IPFamily) -> None:
    bench = Bench(options(family), service_port(family, (1, 2, 3)))

    def tiers() -> set[str]:
        table = bench.kernel.table
        assert {n for n in table.sets if parse_tier(n)} == {
            n for n in table.chains if parse_tier(n)
        }
        return {name for name in table.sets if parse_tier(name)}

    assert tiers() == {"all3"}
    bench.change(service_port(family, (1, 2), seconds=5, external=True))
    assert tiers() == {"all2-5", "node-port-all2-5"}
    bench.remove(service_port(family))
    assert tiers() == set()


# --- Refusals --------------------------------------------------------------------------------


def test_unknown_ports_of_a_cluster_ip_are_rejected(family: IPFamily) -> None:
    bench = Bench(options(family), service_port(family))
    for source in (bench.client(1), bench.pod(1), NODE[family]):
        assert bench.reach(source, VIP[family], 81) == "reject"
    bench.remove(service_port(family))
    assert bench.reach(bench.client(1), VIP[family], 81) == "accept"


def test_unassigned_cluster_ips_are_dropped(family: IPFamily) -> None:
    ranges = ("10.96.0.0/16", "fd00:10:96::/112")
    bench = Bench(options(family, service_cidrs=(ranges[family is IPFamily.IPV6],)))
    assert bench.reach(bench.client(1), VIP[family], 80) == "drop"
    assert bench.reach(bench.client(1), BALANCER[family], 80) == "accept"


def test_source_ranges_restrict_the_load_balancer_only(family: IPFamily) -> None:
    six = family is IPFamily.IPV6
    ranges = (
        ("fd00:198::10/124", "fd00:198::8:0:0/96") if six else ("198.51.100.16/28", "10.9.0.0/16")
    )
    bench = Bench(options(family), service_port(family, external=True, ranges=ranges))
    admitted = ("10", "1f", "8:1:1") if six else ("198.51.100.16", "198.51.100.31", "10.9.1.1")
    others = ("f", "20", "9:1:1") if six else ("198.51.100.15", "198.51.100.32", "10.8.1.1")
    for sources, expected in ((admitted, bench.pod(1)), (others, "drop")):
        for end in sources:
            source = f"fd00:198::{end}" if six else end
            assert bench.reach(source, BALANCER[family], 80) == expected
            assert bench.reach(source, NODE[family], NODE_PORT) == bench.pod(1)


@pytest.mark.parametrize("reached", ["node", "balancer"])
def test_admitting_the_node_admits_the_balancers_own_address(
    family: IPFamily, reached: str
) -> None:
    """If the node has the load-balancer IP, its own packets have that IP as their source."""
    bits = family.bits - 8
    ranges = (f"{NODE[family]}/{bits}",)
    port = service_port(family, external=True, ranges=ranges)
    source = NODE[family] if reached == "node" else BALANCER[family]
    for node_address, expected in ((NODE[family], True), ("", reached == "node")):
        bench = Bench(options(family, node_address=node_address), port)
        bench.node.own.add(BALANCER[family])
        assert (bench.reach(source, BALANCER[family], 80) == bench.pod(1)) is expected


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.DROP])
def test_node_ports_are_refused_on_the_nodes_addresses_only(
    family: IPFamily, verdict: Verdict
) -> None:
    bench = Bench(options(family), service_port(family, external=True, local=True, verdict=verdict))
    assert bench.reach(bench.client(1), NODE[family], NODE_PORT) == verdict.value
    assert bench.reach(bench.client(1), bench.pod(9), NODE_PORT) == "accept"


def test_node_ports_are_not_served_outside_the_ranges(family: IPFamily) -> None:
    ranges = ("192.168.60.0/24", "fd00:192:168:60::/64")
    bench = Bench(
        options(family, node_port_ranges=(ranges[family is IPFamily.IPV6],)),
        service_port(family, external=True),
        service_port(family, name="empty", vip=f"{VIP[family]}1", verdict=Verdict.REJECT),
    )
    assert bench.reach(bench.client(1), NODE[family], NODE_PORT) == "accept"


# --- Localhost and marks -----------------------------------------------------------------------


def test_node_ports_answer_on_localhost_in_ipv4_only(family: IPFamily) -> None:
    bench = Bench(options(family), service_port(family, external=True))
    served = bench.reach(LOOPBACK[family], LOOPBACK[family], NODE_PORT)
    assert served == (bench.pod(1) if family is IPFamily.IPV4 else "accept")
    without = Bench(
        options(family, localhost_node_ports=False), service_port(family, external=True)
    )
    assert without.reach(LOOPBACK[family], LOOPBACK[family], NODE_PORT) == "accept"


def test_neighbours_do_not_reach_localhost() -> None:
    bench = Bench(options(IPFamily.IPV4))
    assert bench.reach(bench.client(1), "127.0.0.1", 9300) == "drop"
    assert bench.node.send(Packet("127.0.0.1", "127.0.0.1", 9300, interface="lo")) == "accept"


@pytest.mark.parametrize("bit", [0, 14, 31])
def test_only_the_masquerade_bit_of_the_mark_changes(family: IPFamily, bit: int) -> None:
    bench = Bench(options(family, masquerade_bit=bit), service_port(family))
    others = 0xFFFFFFFF ^ 1 << bit
    for mark in (0, others):
        packet = Packet(bench.client(1), VIP[family], 80, mark=mark)
        bench.node.send(packet)
        assert packet.masqueraded
        assert packet.mark == mark
    packet = Packet(bench.pod(9), VIP[family], 80, mark=others)
    bench.node.send(packet)
    assert not packet.masqueraded
    assert packet.mark == others


@pytest.mark.parametrize(
    ("interface", "pod"), [("cni0", True), ("cni+", True), ("cni", False), ("veth+", False)]
)
def test_pods_are_recognised_by_interface(family: IPFamily, interface: str, *, pod: bool) -> None:
    settings = options(family, local_traffic=LocalTraffic(interface=interface))
    bench = Bench(settings, service_port(family))
    packet = Packet(bench.client(1), VIP[family], 80, interface="cni0")
    bench.node.send(packet)
    assert packet.masqueraded is not pod


def test_a_restricted_load_balancer_without_endpoints_rejects_admitted_sources(
    family: IPFamily,
) -> None:
    """Other sources are dropped, as in kube-proxy's nftables mode, unlike its iptables mode."""
    ranges = ("10.9.0.0/16",) if family is IPFamily.IPV4 else ("fd00:9::/32",)
    port = service_port(family, external=True, ranges=ranges, verdict=Verdict.REJECT)
    bench = Bench(options(family), port)
    admitted = "10.9.1.1" if family is IPFamily.IPV4 else "fd00:9::1"
    assert bench.reach(admitted, BALANCER[family], 80) == "reject"
    assert bench.reach(bench.client(1), BALANCER[family], 80) == "drop"
