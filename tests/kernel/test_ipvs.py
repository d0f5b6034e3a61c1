"""Features of IPVS mode: schedulers, draining real servers, addresses on an interface."""

import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from svcproxy.backends.ipvs.core.settings import SCHEDULERS
from svcproxy.model.names import Protocol
from svcproxy.netlink.core.kernel_objects import RealServerKey, VirtualServer, VirtualServerKey
from svcproxy.netlink.core.operations import AddRealServer, AddVirtualServer, DeleteVirtualServer
from testbed import manifests as m
from testbed.outcomes import Answer
from testbed.waiting import PATIENCE, eventually
from tests.kernel.conftest import PORTS, Offer, Stage, all_at, ask, assert_refused, at
from tests.kernel.conftest import servers as answering
from tests.kernel.virtual_servers import FAMILIES, Servers

pytestmark = pytest.mark.kernel

VARIANTS = ("ipvs",)
WEB = PORTS[:1]


def annotated(stage: Stage, family: int, **annotations: str) -> Offer:
    """A Service with svcproxy's annotations; underscores stand for dashes."""
    offer = stage.offer(family, ports=WEB)
    offer.service["metadata"]["annotations"] = {
        f"svcproxy.io/{name.replace('_', '-')}": value for name, value in annotations.items()
    }
    offer.endpoints(*all_at(stage.here, family))
    return offer


@pytest.mark.behaviour("IPVS mode: Schedulers")
def test_every_scheduler_can_be_asked_for(stage: Stage, family: int) -> None:
    servers = Servers(stage.node, family)
    for scheduler in sorted(SCHEDULERS):
        offer = annotated(stage, family, ipvs_scheduler=scheduler)
        found = servers.at(offer.vip)
        assert found is not None
        assert found.scheduler == scheduler
        # "ovf" and "fo" use one real server as long as it is not overloaded.
        assert answering(stage.client, "tcp", offer.vip, 80, n=4) <= {p.name for p in stage.here}
        offer.remove()


@pytest.mark.behaviour("IPVS mode: Scheduler flags")
def test_scheduler_flags_can_be_asked_for(stage: Stage, family: int) -> None:
    servers = Servers(stage.node, family)
    both = annotated(stage, family, ipvs_scheduler="mh")
    one = annotated(
        stage, family, ipvs_scheduler="sh", ipvs_scheduler_flags="sh-port , sh-fallback"
    )
    none = annotated(stage, family, ipvs_scheduler="mh", ipvs_scheduler_flags="")
    for offer, flags in ((both, 0x18), (one, 0x18), (none, 0)):
        found = servers.at(offer.vip)
        assert found is not None
        assert found.flags & 0x18 == flags


@pytest.mark.behaviour("IPVS mode: Unknown or missing schedulers")
def test_an_unknown_scheduler_is_told_of_and_the_default_serves(stage: Stage, family: int) -> None:
    offer = annotated(stage, family, ipvs_scheduler="fastest")
    assert ask(stage.client, "tcp", offer.vip, 80, n=4)
    line = stage.daemon.wait_log(f"service=default/{offer.service['metadata']['name']} ")
    assert "'fastest' is no scheduler" in line
    assert "wlc" in line, "the remedy"


@pytest.mark.behaviour("IPVS mode: Unknown or missing schedulers")
def test_a_scheduler_without_its_module_is_told_of(stage: Stage, family: int) -> None:
    modprobe = Path("/proc/sys/kernel/modprobe")
    stage.node.netns.run("modprobe", "-r", "ip_vs_nq")
    before = modprobe.read_text()
    modprobe.write_text("/bin/false")
    try:
        offer = annotated(stage, family, ipvs_scheduler="nq")
        assert ask(stage.client, "tcp", offer.vip, 80, n=4)
        assert "ip_vs_nq" in stage.daemon.wait_log("ipvs.no_scheduler")
    finally:
        modprobe.write_text(before)
        stage.node.netns.run("modprobe", "ip_vs_nq")


@pytest.fixture
def connection(stage: Stage, family: int) -> Iterator[Callable[[str], socket.socket]]:
    """Opens TCP connections of the client that are reset at the end, so that they expire soon."""
    opened: list[socket.socket] = []

    def connect(address: str) -> socket.socket:
        made = stage.client.netns.call(lambda: socket.create_connection((address, 80), 2))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        opened.append(made)
        return made

    yield connect
    for each in opened:
        each.close()


@pytest.mark.behaviour("IPVS mode: Removed endpoint")
def test_a_leaving_endpoint_keeps_its_connections_only(stage: Stage, family: int) -> None:
    servers = Servers(stage.node, family)
    stays, leaves = stage.here
    offer = stage.offer(family, [at(leaves, family)], ports=WEB)
    with stage.client.traffic.hold("tcp", offer.vip, 80) as held:
        offer.endpoints(at(stays, family))
        assert servers.weights(offer.vip) == {leaves.ip(family): 0, stays.ip(family): 1}
        assert answering(stage.client, "tcp", offer.vip, 80, n=10) == {stays.name}
        assert isinstance(held.check(), Answer)
        offer.endpoints(*all_at(stage.here, family))
        assert servers.weights(offer.vip) == {leaves.ip(family): 1, stays.ip(family): 1}
        assert answering(stage.client, "tcp", offer.vip, 80) == {stays.name, leaves.name}
        assert isinstance(held.check(), Answer)


@pytest.mark.behaviour("IPVS mode: End of draining")
def test_an_endpoint_goes_when_its_last_connection_has_ended(
    stage: Stage, family: int, connection: Callable[[str], socket.socket]
) -> None:
    servers = Servers(stage.node, family)
    stays, leaves = stage.here
    offer = stage.offer(family, [at(leaves, family)], ports=WEB)
    opened = connection(offer.vip)
    offer.endpoints(at(stays, family))
    assert servers.weights(offer.vip)[leaves.ip(family)] == 0
    opened.close()
    # The kernel keeps a reset connection for 10 s; svcproxy checks every 5 s.
    eventually(
        lambda: leaves.ip(family) not in servers.weights(offer.vip),
        "the end of the real server",
        timeout=25,
    )


@pytest.mark.behaviour("IPVS mode: End of draining")
def test_an_endpoint_without_connections_goes_at_once(stage: Stage, family: int) -> None:
    servers = Servers(stage.node, family)
    stays = stage.here[0]
    offer = stage.offer(family, all_at(stage.here, family), ports=WEB)
    offer.endpoints(at(stays, family))
    assert servers.weights(offer.vip) == {stays.ip(family): 1}


@pytest.mark.behaviour("IPVS mode: Deleted Service")
def test_connections_outlast_the_service(stage: Stage, family: int) -> None:
    servers = Servers(stage.node, family)
    offer = stage.offer(family, [at(stage.here[0], family)], ports=WEB)
    with stage.client.traffic.hold("tcp", offer.vip, 80) as held:
        offer.remove()
        assert isinstance(held.check(), Answer)
        assert_refused(stage.client, "tcp", offer.vip, 80)
        assert servers.at(offer.vip) is not None
        stage.daemon.kill()
        stage.daemon.start()
        stage.daemon.wait_ready()
        assert isinstance(held.check(), Answer), "a new daemon recognizes draining servers"
    eventually(lambda: servers.at(offer.vip) is None, "the end of the real server", timeout=25)


@pytest.mark.behaviour("IPVS mode: Rolling update")
def test_all_endpoints_are_replaced_under_load(stage: Stage, family: int) -> None:
    pods = [*stage.here, *stage.there]
    offer = stage.offer(family, all_at(pods[:2], family), ports=WEB)
    held = [stage.client.traffic.hold("tcp", offer.vip, 80) for _ in range(4)]
    load = stage.client.traffic.load("tcp", offer.vip, 80, rate=200, timeout=2.0 * PATIENCE)
    for first in (1, 2, 3, 2, 1, 0):
        offer.endpoints(*all_at(pods[first : first + 2], family))
    result = load.stop()
    assert not result.failures, result.labels
    for connection in held:
        assert isinstance(connection.check(), Answer)
        connection.close()


@pytest.mark.behaviour("IPVS mode: Affinity to a removed endpoint")
def test_a_client_with_affinity_leaves_a_removed_endpoint(stage: Stage, family: int) -> None:
    offer = stage.offer(
        family,
        all_at(stage.here, family),
        ports=WEB,
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 600}},
    )
    found = Servers(stage.node, family).at(offer.vip)
    assert found is not None
    assert found.timeout == 600
    (bound,) = answering(stage.client, "tcp", offer.vip, 80)
    with stage.client.traffic.hold("tcp", offer.vip, 80) as held:
        offer.endpoints(*(at(p, family) for p in stage.here if p.name != bound))
        assert answering(stage.client, "tcp", offer.vip, 80, n=10).isdisjoint({bound})
        assert isinstance(held.check(), Answer)


@pytest.mark.behaviour("IPVS mode: Ports of the node")
def test_nothing_else_of_the_node_is_reachable_at_a_service(stage: Stage, family: int) -> None:
    stage.node.traffic.serve(tcp=[9300])
    offer = stage.offer(family, [at(stage.here[0], family)], ports=WEB, type="LoadBalancer")
    address = stage.address(family, outside=True)
    offer.load_balancer({"ip": address})
    for vip in (offer.vip, address):
        assert_refused(stage.client, "tcp", vip, 9300)
        assert_refused(stage.here[0], "tcp", vip, 9300)


@pytest.mark.parametrize("kind", ["external IP", "load balancer"])
@pytest.mark.behaviour("IPVS mode: Addresses of other machines")
def test_an_address_of_another_node_stays_reachable(stage: Stage, family: int, kind: str) -> None:
    """It would not be if the address were local to this node."""
    stage.other.traffic.serve(tcp=[9301])
    other = stage.other.ip(family)
    offer = stage.offer(family, [at(stage.here[0], family)], ports=WEB)
    if kind == "external IP":
        offer.change(externalIPs=[other])
    else:
        offer.change(type="LoadBalancer", allocateLoadBalancerNodePorts=False)
        offer.load_balancer({"ip": other})
    for host in (stage.node, stage.here[0]):
        assert answering(host, "tcp", other, 9301, n=3) == {stage.other.name}
        assert answering(host, "tcp", other, 80, n=3) == {stage.here[0].name}


@pytest.mark.behaviour("IPVS mode: Virtual servers of other programs")
def test_virtual_servers_of_others_are_left_alone(stage: Stage, family: int) -> None:
    servers = Servers(stage.node, family)
    address = "192.0.2.77" if family == 4 else "2001:db8::77"
    key = VirtualServerKey(Protocol.TCP, address, 4000)
    real = RealServerKey(stage.here[0].ip(family), 8080)
    operations = (AddVirtualServer(key, VirtualServer("rr")), AddRealServer(key, real, 7))
    assert servers.ask(lambda ipvs: ipvs.execute(operations)) == []
    try:
        stage.daemon.stop()
        stage.daemon.start()
        stage.daemon.wait_ready()
        assert servers.weights(address, 4000) == {real.address: 7}
    finally:
        servers.ask(lambda ipvs: ipvs.execute([DeleteVirtualServer(key)]))


@pytest.mark.behaviour("IPVS mode: Cost of a change")
def test_a_changed_endpoint_costs_the_same_among_many_services(stage: Stage, family: int) -> None:
    def messages() -> float:
        labels = {"ip_family": FAMILIES[family], "operation": "message"}
        return stage.daemon.metrics().value("svcproxy_kernel_operations_total", **labels)

    offer = stage.offer(family, all_at(stage.here, family), ports=WEB)
    few = Cost(offer, messages).measure()
    with stage.at_once():
        for _ in range(30):
            stage.offer(family, all_at(stage.here, family), ports=WEB)
    assert Cost(offer, messages).measure() == few
    assert few < 20, "including the marker of the test"


class Cost:
    """Measures the number of messages for a change of a Service's endpoints."""

    def __init__(self, offer: Offer, messages: Callable[[], float]) -> None:
        self._offer, self._messages = offer, messages

    def measure(self) -> float:
        stage, family = self._offer.stage, self._offer.family
        self._offer.endpoints(*all_at(stage.here, family))
        before = self._messages()
        self._offer.endpoints(*all_at(stage.there, family))
        return self._messages() - before


@pytest.mark.behaviour("IPVS mode: Ports of the node")
def test_a_node_port_is_served_at_cluster_addresses_only_by_its_service(
    stage: Stage, family: int
) -> None:
    """A cluster IP is local to the node but does not serve node ports."""
    offer = stage.offer(
        family,
        [at(stage.here[0], family)],
        ports=[m.port(80, name="http", target=8080, node_port=30999)],
        type="NodePort",
        externalTrafficPolicy="Local",
    )
    assert_refused(stage.client, "tcp", offer.vip, 30999)
