"""``internalTrafficPolicy`` and ``externalTrafficPolicy``: Local or Cluster."""

import pytest

from testbed.cluster import Host
from tests.kernel.conftest import (
    Offer,
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


# --- internalTrafficPolicy -----------------------------------------------------------------------


@pytest.mark.behaviour("Traffic policies: `internalTrafficPolicy: Local`")
def test_internal_local_uses_endpoints_of_this_node_only(stage: Stage, family: int) -> None:
    near, asking, far = *stage.here, stage.there[0]
    offer = stage.offer(family, all_at([near, far], family), internalTrafficPolicy="Local")
    for proto, port in offer.ports:
        assert ask(asking, proto, offer.vip, port) == stage.kept(asking, [near], family)
        assert ask(near, proto, offer.vip, port) == stage.kept(near, [near], family)
        for host in (stage.client, stage.node):
            assert ask(host, proto, offer.vip, port) == stage.masqueraded([near], family)


@pytest.mark.behaviour(
    "Traffic policies: `internalTrafficPolicy: Local` without local endpoints",
)
def test_internal_local_without_local_endpoint_drops(stage: Stage, family: int) -> None:
    """Dropped, not refused, and not forwarded to the default gateway."""
    far = stage.there[0]
    offer = stage.offer(family, [at(far, family)], internalTrafficPolicy="Local")
    with Watch(stage.client) as gateway:
        for proto, port in offer.ports:
            for host in (stage.here[0], stage.node, stage.client):
                assert_dropped(host, proto, offer.vip, port)
        assert offer.vip not in gateway.targets()
        offer.remove()
        assert_dropped(stage.here[0], "tcp", offer.vip, 80)
        assert offer.vip in gateway.targets()  # without the Service it would have been seen


@pytest.mark.behaviour(
    "Traffic policies: `internalTrafficPolicy: Local` without local endpoints",
)
def test_internal_local_without_any_endpoint_refuses(stage: Stage, family: int) -> None:
    offer = stage.offer(family, internalTrafficPolicy="Local")
    for proto, port in offer.ports:
        for host in (stage.here[0], stage.node, stage.client):
            assert_refused(host, proto, offer.vip, port)


@pytest.mark.behaviour("Traffic policies: `internalTrafficPolicy: Local` and node ports")
def test_internal_local_says_nothing_about_node_ports(stage: Stage, family: int) -> None:
    far = stage.there[0]
    offer = stage.offer(family, [at(far, family)], internalTrafficPolicy="Local", type="NodePort")
    for proto, port in offer.node_ports:
        seen = ask(stage.client, proto, stage.node.ip(family), port, n=5)
        assert seen == stage.masqueraded([far], family)


@pytest.mark.behaviour("Traffic policies: Changes")
def test_internal_policy_may_change(stage: Stage, family: int) -> None:
    near, far = stage.here[0], stage.there[0]
    offer = stage.offer(family, all_at([near, far], family))
    asking = stage.here[1]
    assert servers(asking, "tcp", offer.vip, 80) == {"pod1a", "pod2a"}
    offer.change(internalTrafficPolicy="Local")
    assert servers(asking, "tcp", offer.vip, 80) == {"pod1a"}
    offer.change(internalTrafficPolicy="Cluster")
    assert servers(asking, "tcp", offer.vip, 80) == {"pod1a", "pod2a"}


# --- externalTrafficPolicy -----------------------------------------------------------------------


class Outside:
    """A Service that is reachable from outside in one of three ways."""

    def __init__(self, stage: Stage, family: int, way: str, pods: list[Host], policy: str) -> None:
        self.stage = stage
        address = stage.address(family, outside=True)
        endpoints = all_at(pods, family)
        if way == "external IP":
            self.offer = stage.offer(
                family, endpoints, externalIPs=[address], externalTrafficPolicy=policy
            )
        else:
            self.offer = stage.offer(
                family,
                endpoints,
                type="NodePort" if way == "node port" else "LoadBalancer",
                load_balancer_ips=[] if way == "node port" else [address],
                externalTrafficPolicy=policy,
            )
        node_port = way == "node port"
        self.address = stage.node.ip(family) if node_port else address
        self.ports = self.offer.node_ports if node_port else self.offer.ports


ways = pytest.mark.parametrize("way", ["node port", "load balancer", "external IP"])


@ways
@pytest.mark.behaviour("Traffic policies: `externalTrafficPolicy: Local`, outside clients")
def test_external_local_keeps_the_source_of_outside_clients(
    stage: Stage, family: int, way: str
) -> None:
    near, far = stage.here[0], stage.there[0]
    outside = Outside(stage, family, way, [near, far], "Local")
    for proto, port in outside.ports:
        for source in client_addresses(stage.cluster, family)[:3]:
            seen = ask(stage.client, proto, outside.address, port, n=10, source=source)
            assert seen == {(near.name, source)}


@ways
@pytest.mark.behaviour(
    "Traffic policies: `externalTrafficPolicy: Local` without local endpoints",
)
def test_external_local_without_local_endpoint_drops(stage: Stage, family: int, way: str) -> None:
    """Outside clients are dropped, while pods and the node still reach the remote endpoint."""
    far, asking = stage.there[0], stage.here[0]
    outside = Outside(stage, family, way, [far], "Local")
    for proto, port in outside.ports:
        assert_dropped(stage.client, proto, outside.address, port)
        seen = ask(asking, proto, outside.address, port, n=5)
        assert seen == stage.kept(asking, [far], family)
        seen = ask(stage.node, proto, outside.address, port, n=5)
        assert seen == stage.masqueraded([far], family)


@ways
@pytest.mark.behaviour("Traffic policies: `externalTrafficPolicy: Local`, pods")
def test_external_local_lets_pods_reach_every_endpoint(stage: Stage, family: int, way: str) -> None:
    near, asking, far = *stage.here, stage.there[0]
    outside = Outside(stage, family, way, [near, far], "Local")
    for proto, port in outside.ports:
        seen = ask(asking, proto, outside.address, port)
        assert seen == stage.kept(asking, [near, far], family)
        seen = ask(near, proto, outside.address, port)  # itself among them
        assert seen == stage.kept(near, [near, far], family)


@ways
@pytest.mark.behaviour("Traffic policies: `externalTrafficPolicy: Local`, pods")
def test_external_local_treats_pods_of_other_nodes_as_pods(
    stage: Stage, family: int, way: str
) -> None:
    """Only to endpoints of this node: others would reply to the pod directly."""
    near, also_near, asking = *stage.here, stage.there[0]
    outside = Outside(stage, family, way, [near, also_near], "Local")
    for proto, port in outside.ports:
        seen = ask(asking, proto, outside.address, port)
        assert seen == stage.kept(asking, [near, also_near], family)


@ways
@pytest.mark.behaviour("Traffic policies: `externalTrafficPolicy: Local`, the node")
def test_external_local_masquerades_the_node_itself(stage: Stage, family: int, way: str) -> None:
    near, far = stage.here[0], stage.there[0]
    outside = Outside(stage, family, way, [near, far], "Local")
    for proto, port in outside.ports:
        seen = ask(stage.node, proto, outside.address, port)
        assert seen == stage.masqueraded([near, far], family)


@ways
@pytest.mark.behaviour(
    "Traffic policies: `externalTrafficPolicy: Local` without local endpoints",
)
def test_external_local_without_any_endpoint_refuses(stage: Stage, family: int, way: str) -> None:
    outside = Outside(stage, family, way, [], "Local")
    for proto, port in outside.ports:
        for host in (stage.client, stage.here[0]):
            assert_refused(host, proto, outside.address, port)


@ways
@pytest.mark.behaviour("Traffic policies: `externalTrafficPolicy: Cluster`")
def test_external_cluster_masquerades_all_clients(stage: Stage, family: int, way: str) -> None:
    near, asking, far = *stage.here, stage.there[0]
    outside = Outside(stage, family, way, [near, far], "Cluster")
    for proto, port in outside.ports:
        for host in (stage.client, asking, stage.node, stage.there[1]):
            seen = ask(host, proto, outside.address, port)
            assert seen == stage.masqueraded([near, far], family)


@pytest.mark.behaviour("Traffic policies: `externalTrafficPolicy: Local` and the cluster IP")
def test_external_local_says_nothing_about_the_cluster_ip(stage: Stage, family: int) -> None:
    far = stage.there[0]
    offer: Offer = stage.offer(
        family, [at(far, family)], type="NodePort", externalTrafficPolicy="Local"
    )
    for proto, port in offer.ports:
        asking = stage.here[0]
        assert ask(asking, proto, offer.vip, port, n=5) == stage.kept(asking, [far], family)
        assert ask(stage.client, proto, offer.vip, port, n=5) == stage.masqueraded([far], family)


@pytest.mark.behaviour("Traffic policies: Changes")
def test_external_policy_may_change(stage: Stage, family: int) -> None:
    near, far = stage.here[0], stage.there[0]
    outside = Outside(stage, family, "node port", [near, far], "Cluster")
    for policy in ("Local", "Cluster", "Local"):
        outside.offer.change(externalTrafficPolicy=policy)
        for proto, port in outside.ports:
            seen = ask(stage.client, proto, outside.address, port)
            assert seen == (
                stage.kept(stage.client, [near], family)
                if policy == "Local"
                else stage.masqueraded([near, far], family)
            )


@pytest.mark.localhost
@pytest.mark.behaviour("Node ports: Localhost, IPv4")
def test_a_local_node_port_answers_on_localhost(stage: Stage) -> None:
    near, far = stage.here[0], stage.there[0]
    offer = stage.offer(4, all_at([near, far], 4), type="NodePort", externalTrafficPolicy="Local")
    for proto, port in offer.node_ports:
        assert ask(stage.node, proto, "127.0.0.1", port) == stage.masqueraded([near, far], 4)
