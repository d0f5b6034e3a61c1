"""Traffic tests of behaviour that only nftables mode has."""

import itertools
import time
from functools import partial

import pytest

from testbed.cluster import Host
from testbed.outcomes import Answer
from testbed.waiting import eventually
from tests.kernel.conftest import (
    Stage,
    Watch,
    all_at,
    ask,
    assert_dropped,
    assert_refused,
    at,
    client_addresses,
    servers,
)

pytestmark = pytest.mark.kernel

VARIANTS = ("nftables",)
"""The variants for which conftest runs this module."""


def listed(stage: Stage, family: int, what: str) -> str:
    table = "ip" if family == 4 else "ip6"
    kind, name = what.split()
    return stage.node.netns.run("nft", "list", kind, table, "svcproxy", name).stdout


def chosen(stage: Stage, address: str, port: int, source: str) -> str:
    outcome = stage.client.traffic.connect("tcp", address, port, source_address=source)
    assert isinstance(outcome, Answer), outcome
    return outcome.server


@pytest.mark.behaviour("nftables mode: Other ports of a cluster IP")
def test_other_ports_of_a_cluster_ip_are_refused(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here, family))
    for host in (stage.client, stage.here[0], stage.there[0], stage.node):
        assert_refused(host, "tcp", offer.vip, 81)
        assert_refused(host, "udp", offer.vip, 81)
    assert servers(stage.client, "tcp", offer.vip, 80, n=3)


@pytest.mark.behaviour("nftables mode: Unassigned cluster IPs")
def test_unassigned_cluster_ips_are_dropped(stage: Stage, family: int) -> None:
    """ServiceCIDRs define the range of cluster IPs; without them, packets leave the node."""
    ranges = ["10.96.0.0/16", "fd00:10:96::/112"]
    offer = stage.offer(family, all_at(stage.here, family))
    unassigned = stage.address(family)
    hosts = (stage.client, stage.here[0], stage.there[0], stage.node)

    def arrives(host: Host, gateway: Watch) -> bool:
        host.traffic.connect("tcp", unassigned, 80, timeout=0.15)
        return unassigned in gateway.targets()

    def leave_the_node() -> None:
        for host in (stage.here[0], stage.node):
            with Watch(stage.client) as gateway:
                # A first packet may have to wait for the gateway's link-layer address.
                eventually(partial(arrives, host, gateway), f"packets of {host.name}")

    leave_the_node()
    stage.put_service_cidrs(*ranges)
    with Watch(stage.client) as watch:
        for host, proto in itertools.product(hosts, ("tcp", "udp")):
            assert_dropped(host, proto, unassigned, 80)
        assert unassigned not in watch.targets()
    assert_refused(stage.client, "tcp", offer.vip, 81)
    assert servers(stage.client, "tcp", offer.vip, 80, n=3)
    stage.put_service_cidrs(*(cidr for cidr in ranges if (":" in cidr) is (family == 4)))
    leave_the_node()
    stage.put_service_cidrs()
    leave_the_node()
    taken = stage.offer(family, all_at(stage.here, family), vip=unassigned)
    stage.put_service_cidrs(*ranges)
    assert servers(stage.client, "tcp", taken.vip, 80, n=3)
    taken.remove()
    assert_dropped(stage.client, "tcp", unassigned, 80)
    stage.put_service_cidrs()


@pytest.mark.behaviour("nftables mode: Session affinity across addresses")
def test_clients_keep_their_endpoint_through_all_frontends(stage: Stage, family: int) -> None:
    external = stage.address(family, outside=True)
    offer = stage.offer(
        family,
        all_at([*stage.here, *stage.there], family),
        type="NodePort",
        externalIPs=[external],
        sessionAffinity="ClientIP",
    )
    node_port = dict(offer.node_ports)["tcp"]
    ways = ((offer.vip, 80), (external, 80), (stage.node.ip(family), node_port))
    seen = set()
    for source, order in zip(
        client_addresses(stage.cluster, family), itertools.cycle(itertools.permutations(ways))
    ):
        (server,) = {chosen(stage, address, port, source) for address, port in order * 2}
        seen.add(server)
    assert len(seen) > 1
    assert listed(stage, family, "map affinity").count(" . 80 . tcp . ") >= len(
        client_addresses(stage.cluster, family)
    )


@pytest.mark.behaviour("nftables mode: Session affinity across addresses")
def test_clients_keep_their_endpoint_when_the_daemon_restarts(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here, family), sessionAffinity="ClientIP")
    sources = client_addresses(stage.cluster, family)
    before = {source: chosen(stage, offer.vip, 80, source) for source in sources}
    stage.daemon.kill()
    stage.daemon.start()
    stage.daemon.wait_ready()
    assert {source: chosen(stage, offer.vip, 80, source) for source in sources} == before


@pytest.mark.behaviour("nftables mode: Session affinity across addresses")
def test_a_client_does_not_return_to_its_former_endpoint(stage: Stage, family: int) -> None:
    """When the former endpoint is back, the client keeps the one that replaced it."""
    stays, leaves = stage.here
    offer = stage.offer(family, all_at(stage.here, family), sessionAffinity="ClientIP")
    sources = client_addresses(stage.cluster, family)
    first = {source: chosen(stage, offer.vip, 80, source) for source in sources}
    assert set(first.values()) == {stays.name, leaves.name}
    offer.endpoints(at(stays, family))
    assert {chosen(stage, offer.vip, 80, source) for source in sources} == {stays.name}
    offer.endpoints(at(stays, family), at(leaves, family))
    assert {chosen(stage, offer.vip, 80, source) for source in sources} == {stays.name}


@pytest.mark.behaviour("nftables mode: Atomic changes")
def test_no_connection_is_lost_while_lists_change_their_length(stage: Stage, family: int) -> None:
    """Each change moves the endpoints to another map, and adds or deletes a map."""
    pods = [*stage.here, *stage.there]
    offer = stage.offer(family, all_at(pods[:1], family))
    load = stage.client.traffic.load("tcp", offer.vip, 80, rate=400)
    until = time.monotonic() + 4.0
    for count in itertools.cycle((2, 3, 4, 3, 1)):
        offer.endpoints(*all_at(pods[:count], family))
        if time.monotonic() > until:
            break
    result = load.stop()
    assert not result.failures, result.labels
    assert result.total > 1000
    assert len(result.labels) == 4


def test_tables_are_readable(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here, family), name=f"shop{family}")
    assert f'{offer.vip} . tcp . 80 comment "default/shop{family}:http"' in listed(
        stage, family, "set cluster-ips"
    )
    for number, pod in enumerate(stage.here):
        element = f"{offer.vip} . tcp . 80 . {number} : {pod.ip(family)} . 8080"
        assert element in listed(stage, family, "map all2")


def test_the_nodes_ipv6_loopback_serves_no_node_ports(stage: Stage) -> None:
    """The kernel does not let packets from ::1 leave the node."""
    offer = stage.offer(6, all_at(stage.here, 6), type="NodePort")
    for proto, port in offer.node_ports:
        assert_refused(stage.node, proto, "::1", port, how="reset")


def test_flows_keep_their_endpoint_when_endpoints_change(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here, family))
    with stage.client.traffic.hold("tcp", offer.vip, 80) as held:
        assert isinstance(held.first, Answer)
        offer.endpoints(*all_at(stage.there, family))
        again = held.check(1.0)
        assert isinstance(again, Answer)
        assert again.server == held.first.server
        seen = ask(stage.client, "tcp", offer.vip, 80, n=5)
        assert {server for server, _ in seen} <= {pod.name for pod in stage.there}
