"""Detection of traffic from pods (``--detect-local-mode``), and its effects."""

import pytest

from testbed import manifests as m
from tests.kernel.conftest import Stage, StageWith, all_at, ask, at, servers

pytestmark = pytest.mark.kernel


def _node(stage: Stage, *pod_cidrs: str) -> m.Object:
    return m.node(
        stage.node.name, addresses=[stage.node.ipv4, stage.node.ipv6], pod_cidrs=pod_cidrs
    )


@pytest.mark.behaviour("Masquerading: `ClusterCIDR`")
def test_cluster_cidr_takes_all_pods_for_local(stage_with: StageWith, family: int) -> None:
    stage = stage_with(detect_local_mode="ClusterCIDR")
    offer = stage.offer(family, all_at(stage.here, family))
    for proto, port in offer.ports:
        for pod in (stage.here[0], stage.there[0]):
            assert ask(pod, proto, offer.vip, port) == stage.kept(pod, stage.here, family)
        seen = ask(stage.client, proto, offer.vip, port)
        assert seen == stage.masqueraded(stage.here, family)


@pytest.mark.behaviour("Masquerading: `ClusterCIDR`")
def test_cluster_cidr_may_be_given_for_one_family(stage_with: StageWith) -> None:
    stage = stage_with(cluster_cidr="10.244.0.0/16")
    for family in (4, 6):
        offer = stage.offer(family, all_at(stage.here, family))
        expected = (
            stage.masqueraded(stage.here, family)
            if family == 4
            else stage.kept(stage.client, stage.here, family)  # detection is off
        )
        assert ask(stage.client, "tcp", offer.vip, 80) == expected


@pytest.mark.behaviour("Masquerading: `NodeCIDR`")
def test_node_cidr_takes_pods_of_this_node_for_local(stage_with: StageWith, family: int) -> None:
    stage = stage_with(detect_local_mode="NodeCIDR", cluster_cidr=None)
    stage.put_node(_node(stage, *stage.node.pod_cidrs))
    offer = stage.offer(family, all_at(stage.here, family))
    near, far = stage.here[0], stage.there[0]
    for proto, port in offer.ports:
        assert ask(near, proto, offer.vip, port) == stage.kept(near, stage.here, family)
        for host in (far, stage.client, stage.node):
            assert ask(host, proto, offer.vip, port) == stage.masqueraded(stage.here, family)


@pytest.mark.behaviour("Masquerading: `NodeCIDR` after the start")
def test_node_cidr_appears_while_the_daemon_runs(stage_with: StageWith, family: int) -> None:
    """Services work from the start; masquerading begins with the Node's ``podCIDRs``."""
    stage = stage_with(detect_local_mode="NodeCIDR", cluster_cidr=None)
    offer = stage.offer(family, all_at(stage.here, family))
    pod = stage.here[0]
    off, on = stage.kept(stage.client, stage.here, family), stage.masqueraded(stage.here, family)
    for node, expected in (
        (_node(stage), off),
        (_node(stage, *stage.node.pod_cidrs), on),
        # The ranges stay when the Node is deleted, because it may be registered again.
        (None, on),
    ):
        stage.put_node(node)
        for proto, port in offer.ports:
            assert ask(stage.client, proto, offer.vip, port) == expected
            assert ask(pod, proto, offer.vip, port) == stage.kept(pod, stage.here, family)


@pytest.mark.behaviour("Masquerading: `NodeCIDR` after the start")
def test_changed_node_cidrs_are_followed(stage_with: StageWith, family: int) -> None:
    stage = stage_with(detect_local_mode="NodeCIDR", cluster_cidr=None)
    offer = stage.offer(family, all_at(stage.here, family))
    near, far = stage.here[0], stage.there[0]
    for cidrs, local, other in (
        (stage.node.pod_cidrs, near, far),
        (stage.other.pod_cidrs, far, near),
    ):
        stage.put_node(_node(stage, *cidrs))
        for proto, port in offer.ports:
            assert ask(local, proto, offer.vip, port) == stage.kept(local, stage.here, family)
            assert ask(other, proto, offer.vip, port) == stage.masqueraded(stage.here, family)


@pytest.mark.parametrize("detection", ["on", "off"])
@pytest.mark.behaviour("Traffic policies: `externalTrafficPolicy: Local`, pods")
def test_detection_decides_who_is_a_pod_for_external_addresses(
    stage_with: StageWith, family: int, detection: str
) -> None:
    """With ``externalTrafficPolicy: Local``, only known pods reach endpoints elsewhere."""
    stage = stage_with(detect_local_mode="NodeCIDR", cluster_cidr=None)
    stage.put_node(_node(stage, *(stage.node.pod_cidrs if detection == "on" else ())))
    near, asking, far = *stage.here, stage.there[0]
    offer = stage.offer(
        family, all_at([near, far], family), type="NodePort", externalTrafficPolicy="Local"
    )
    pods = [near, far] if detection == "on" else [near]
    for proto, port in offer.node_ports:
        seen = ask(asking, proto, stage.node.ip(family), port)
        assert seen == stage.kept(asking, pods, family)
        # Pods of other nodes count as outside clients in either case.
        seen = ask(stage.there[1], proto, stage.node.ip(family), port)
        assert seen == stage.kept(stage.there[1], [near], family)


@pytest.mark.behaviour("Masquerading: `NodeCIDR`")
def test_the_other_nodes_object_does_not_matter(stage_with: StageWith, family: int) -> None:
    stage = stage_with(detect_local_mode="NodeCIDR", cluster_cidr=None)
    stage.put_node(m.node(stage.other.name, pod_cidrs=stage.node.pod_cidrs))
    offer = stage.offer(family, [at(stage.here[0], family)])
    seen = ask(stage.client, "tcp", offer.vip, 80, n=5)
    assert seen == stage.kept(stage.client, stage.here[:1], family)
    assert servers(stage.here[1], "tcp", offer.vip, 80, n=5) == {"pod1a"}


# In the test bed, the links of node1's pods are ports of its bridge br0, so iptables sees br0 as
# the incoming interface and not a pod's link.
INTERFACES = {
    "BridgeInterface": {"pod_bridge_interface": "br0"},
    "InterfaceNamePrefix": {"pod_interface_name_prefix": "br"},
}


@pytest.mark.parametrize("mode", INTERFACES)
@pytest.mark.behaviour("Masquerading: `BridgeInterface`, `InterfaceNamePrefix`")
def test_interfaces_take_pods_of_this_node_for_local(
    stage_with: StageWith, family: int, mode: str
) -> None:
    stage = stage_with(detect_local_mode=mode, cluster_cidr=None, **INTERFACES[mode])
    pods = [*stage.here, stage.there[0]]
    offer = stage.offer(family, all_at(pods, family))
    near, far = stage.here[0], stage.there[0]
    for proto, port in offer.ports:
        assert ask(near, proto, offer.vip, port) == stage.kept(near, pods, family)
        for host in (far, stage.client, stage.node):
            assert ask(host, proto, offer.vip, port) == stage.masqueraded(pods, family)


@pytest.mark.parametrize("mode", INTERFACES)
@pytest.mark.behaviour("Masquerading: `BridgeInterface`, `InterfaceNamePrefix`")
def test_interfaces_decide_who_is_a_pod_for_external_addresses(
    stage_with: StageWith, family: int, mode: str
) -> None:
    stage = stage_with(detect_local_mode=mode, cluster_cidr=None, **INTERFACES[mode])
    near, asking, far = *stage.here, stage.there[0]
    offer = stage.offer(
        family, all_at([near, far], family), type="NodePort", externalTrafficPolicy="Local"
    )
    address = stage.node.ip(family)
    for proto, port in offer.node_ports:
        assert ask(asking, proto, address, port) == stage.kept(asking, [near, far], family)
        assert ask(near, proto, address, port) == stage.kept(near, [near, far], family)
        for host in (stage.client, stage.there[1]):
            assert ask(host, proto, address, port) == stage.kept(host, [near], family)


@pytest.mark.parametrize("mode", INTERFACES)
@pytest.mark.behaviour("Masquerading: `BridgeInterface`, `InterfaceNamePrefix`")
def test_with_a_missing_interface_all_clients_are_outside(
    stage_with: StageWith, family: int, mode: str
) -> None:
    (flag,) = INTERFACES[mode]
    stage = stage_with(detect_local_mode=mode, cluster_cidr=None, **{flag: "cni"})
    offer = stage.offer(family, all_at(stage.here, family))
    for proto, port in offer.ports:
        seen = ask(stage.here[0], proto, offer.vip, port)
        assert seen == stage.masqueraded(stage.here, family)
