"""The flags that decide on which of the node's addresses node ports are served."""

import pytest

from testbed import manifests as m
from testbed.cluster import Cluster
from tests.kernel.conftest import StageWith, ask, assert_refused, at, servers

pytestmark = pytest.mark.kernel


@pytest.mark.behaviour("Node ports: `--iptables-localhost-nodeports=false`")
def test_localhost_node_ports_can_be_switched_off(stage_with: StageWith) -> None:
    stage = stage_with(iptables_localhost_nodeports="false")
    pod = stage.here[0]
    offer = stage.offer(4, [at(pod, 4)], type="NodePort")
    for proto, port in offer.node_ports:
        assert_refused(stage.node, proto, "127.0.0.1", port, how="reset")
        assert ask(stage.client, proto, stage.node.ipv4, port, n=5) == stage.masqueraded([pod], 4)
        assert ask(stage.node, proto, stage.node.ipv4, port, n=5) == stage.masqueraded([pod], 4)


@pytest.mark.behaviour("Node ports: `--nodeport-addresses=CIDR`")
def test_node_ports_only_on_addresses_of_given_ranges(stage_with: StageWith, family: int) -> None:
    stage = stage_with(nodeport_addresses="192.168.50.0/24,fd00:192:168:50::/64")
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family)], type="NodePort")
    bridge = stage.node.bridge_ips[0 if family == 4 else 1]
    for proto, port in offer.node_ports:
        for host in (stage.client, pod, stage.node):
            seen = ask(host, proto, stage.node.ip(family), port, n=5)
            assert seen == stage.masqueraded([pod], family)
            assert_refused(host, proto, bridge, port, how="reset")
    if family == 4:
        assert_refused(stage.node, "tcp", "127.0.0.1", offer.node_ports[0][1], how="reset")


@pytest.mark.behaviour("Node ports: `--nodeport-addresses=CIDR`")
def test_ranges_of_one_family_leave_the_other_open(stage_with: StageWith, family: int) -> None:
    other_range = "fd00:192:168:50::/64" if family == 4 else "192.168.50.0/24"
    stage = stage_with(nodeport_addresses=other_range)
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family)], type="NodePort")
    for proto, port in offer.node_ports:
        for address in (stage.node.ip(family), stage.node.bridge_ips[0 if family == 4 else 1]):
            assert servers(stage.client, proto, address, port, n=5) == {pod.name}


@pytest.mark.localhost
@pytest.mark.behaviour("Node ports: `--nodeport-addresses=CIDR`")
def test_a_loopback_range_serves_localhost_only(stage_with: StageWith) -> None:
    stage = stage_with(nodeport_addresses="127.0.0.0/8")
    pod = stage.here[0]
    offer = stage.offer(4, [at(pod, 4)], type="NodePort")
    for proto, port in offer.node_ports:
        assert ask(stage.node, proto, "127.0.0.1", port, n=5) == stage.masqueraded([pod], 4)
        assert_refused(stage.client, proto, stage.node.ipv4, port, how="reset")


@pytest.mark.nftables_only
@pytest.mark.behaviour("nftables mode: Node ports without `--nodeport-addresses`")
def test_nftables_mode_keeps_to_primary_addresses(stage_with: StageWith, family: int) -> None:
    """The default, as in kube-proxy."""
    stage = stage_with(nodeport_addresses=None)
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family)], type="NodePort")
    bridge = stage.node.bridge_ips[0 if family == 4 else 1]
    for proto, port in offer.node_ports:
        assert servers(stage.client, proto, stage.node.ip(family), port, n=5) == {pod.name}
        assert_refused(stage.client, proto, bridge, port, how="reset")


@pytest.mark.behaviour("Node ports: `--nodeport-addresses=primary`")
def test_node_ports_only_on_primary_addresses(stage_with: StageWith, family: int) -> None:
    stage = stage_with(nodeport_addresses="primary")
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family)], type="NodePort")
    second = stage.address(family, outside=True)
    with stage.own_address(second):
        for proto, port in offer.node_ports:
            seen = ask(stage.client, proto, stage.node.ip(family), port, n=5)
            assert seen == stage.masqueraded([pod], family)
            assert_refused(stage.client, proto, second, port, how="reset")
        # The Node object has the primary address, and may change while the daemon runs.
        stage.put_node(m.node(stage.node.name, addresses=[second]))
        for proto, port in offer.node_ports:
            assert servers(stage.client, proto, second, port, n=5) == {pod.name}
            assert_refused(stage.client, proto, stage.node.ip(family), port, how="reset")


@pytest.mark.behaviour("Node ports: `--nodeport-addresses=primary`")
def test_primary_addresses_are_not_all_addresses_while_unknown(
    stage_with: StageWith, family: int
) -> None:
    """Without a Node object the primary address is unknown, which must not open all addresses."""
    stage = stage_with(nodeport_addresses="primary", known=False)
    offer = stage.offer(family, [at(stage.here[0], family)], type="NodePort")
    second = stage.address(family, outside=True)
    with stage.own_address(second):
        for proto, port in offer.node_ports:
            assert_refused(stage.client, proto, second, port, how="reset")
        stage.clear()  # now the Node object exists
        offer = stage.offer(family, [at(stage.here[0], family)], type="NodePort")
        for proto, port in offer.node_ports:
            assert servers(stage.client, proto, stage.node.ip(family), port, n=5) == {"pod1a"}
            assert_refused(stage.client, proto, second, port, how="reset")


@pytest.mark.behaviour("Node ports: `--bind-address`")
def test_bind_address_goes_before_the_node_object(stage_with: StageWith, family: int) -> None:
    """kube-proxy does not bind there: the flag sets this node's primary address."""
    second = "203.0.113.250" if family == 4 else "fd00:203::fa"
    stage = stage_with(nodeport_addresses="primary", bind_address=second, known=False)
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family)], type="NodePort")
    with stage.own_address(second):
        for proto, port in offer.node_ports:
            assert servers(stage.client, proto, second, port, n=5) == {pod.name}
            assert_refused(stage.client, proto, stage.node.ip(family), port, how="reset")
        stage.clear()  # now the Node object exists, with addresses of both families
        offer = stage.offer(family, [at(pod, family)], type="NodePort")
        for proto, port in offer.node_ports:
            assert servers(stage.client, proto, second, port, n=5) == {pod.name}
            assert_refused(stage.client, proto, stage.node.ip(family), port, how="reset")


@pytest.mark.behaviour("Node ports: `--nodeport-addresses=CIDR`")
def test_a_range_of_everything_is_as_no_range(stage_with: StageWith, family: int) -> None:
    stage = stage_with(nodeport_addresses="0.0.0.0/0,::/0")
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family)], type="NodePort")
    for proto, port in offer.node_ports:
        for address in (stage.node.ip(family), stage.node.bridge_ips[0 if family == 4 else 1]):
            assert servers(stage.client, proto, address, port, n=5) == {pod.name}
        if family == 4 and stage.variant != "ipvs":
            assert servers(stage.node, proto, "127.0.0.1", port, n=5) == {pod.name}
        else:
            loopback = "127.0.0.1" if family == 4 else "::1"
            assert_refused(stage.node, proto, loopback, port, how="reset")


@pytest.mark.localhost
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "1"),
        ({"iptables_localhost_nodeports": "false"}, "0"),
        ({"nodeport_addresses": "192.168.50.0/24"}, "0"),
        ({"nodeport_addresses": "primary"}, "0"),
        ({"nodeport_addresses": "127.0.0.0/8"}, "1"),
    ],
    ids=["no flag", "localhost off", "range", "primary", "loopback range"],
)
@pytest.mark.behaviour("Node ports: `route_localnet`")
def test_the_node_accepts_loopback_packets_only_if_it_must(
    stage_with: StageWith, cluster: Cluster, flags: dict[str, str], expected: str
) -> None:
    """``route_localnet`` opens 127.0.0.0/8 to the network but for a rule; it is set if needed."""
    node = cluster.nodes[0]
    node.netns.sysctl({"ipv4/conf/all/route_localnet": "0"})
    stage_with(**flags)
    shown = node.netns.run("sysctl", "-n", "net.ipv4.conf.all.route_localnet").stdout
    assert shown.strip() == expected
