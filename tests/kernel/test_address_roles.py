"""Addresses that a Service, or two Services, name in more than one field.

kube-proxy's nftables and IPVS modes apply ``loadBalancerSourceRanges`` by address. Its iptables
mode applies them in the rule of the load-balancer IP, which follows those of the cluster IP and
the external IPs, so an address that is one of those as well is open to all clients.
"""

from typing import Any

import pytest

from testbed import manifests as m
from testbed.cluster import Host
from testbed.manifests import Object
from tests.kernel.conftest import (
    IPTABLES,
    Offer,
    Stage,
    ask,
    assert_dropped,
    at,
    client_addresses,
    servers,
)

pytestmark = pytest.mark.kernel


def _only(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def _balanced(stage: Stage, family: int, address: str, ranges: list[str], **spec: Any) -> Offer:
    return stage.offer(
        family,
        [at(stage.here[0], family)],
        type="LoadBalancer",
        load_balancer_ips=[address],
        loadBalancerSourceRanges=ranges,
        **spec,
    )


def _assert_restricted(
    stage: Stage, host: Host, proto: str, address: str, port: int, source: str = ""
) -> None:
    """A client outside the ranges is dropped in modes that apply ranges by address, else served."""
    if stage.variant in IPTABLES:
        seen = ask(host, proto, address, port, n=3, source=source)
        assert {server for server, _ in seen} == {stage.here[0].name}
    else:
        assert_dropped(host, proto, address, port, source=source)


@pytest.mark.behaviour(
    "Load balancers and external IPs: Source ranges and an address with two roles",
)
def test_ranges_hold_at_an_address_that_is_an_external_ip_too(stage: Stage, family: int) -> None:
    first, second = client_addresses(stage.cluster, family)[:2]
    address = stage.address(family, outside=True)
    offer = _balanced(stage, family, address, [_only(first)], externalIPs=[address])
    for proto, port in offer.ports:
        seen = ask(stage.client, proto, address, port, n=3, source=first)
        assert {server for server, _ in seen} == {"pod1a"}
        _assert_restricted(stage, stage.client, proto, address, port, second)
        for host in (stage.here[1], stage.node):
            _assert_restricted(stage, host, proto, address, port)
    for proto, port in offer.node_ports:
        assert servers(stage.here[1], proto, stage.node.ip(family), port, n=3) == {"pod1a"}
    offer.change(externalIPs=None)
    assert_dropped(stage.client, "tcp", address, 80, source=second)


@pytest.mark.behaviour(
    "Load balancers and external IPs: Source ranges and an address with two roles",
)
def test_ranges_that_hold_the_node_admit_it_at_such_an_address(stage: Stage, family: int) -> None:
    address, node = stage.address(family, outside=True), stage.node.ip(family)
    offer = _balanced(stage, family, address, [_only(node)], externalIPs=[address])
    for proto, port in offer.ports:
        assert servers(stage.node, proto, address, port, n=3) == {"pod1a"}
        _assert_restricted(stage, stage.client, proto, address, port)


@pytest.mark.behaviour(
    "Load balancers and external IPs: Source ranges and an address with two roles",
)
def test_ranges_and_the_local_policy_hold_at_such_an_address(stage: Stage, family: int) -> None:
    first, second = client_addresses(stage.cluster, family)[:2]
    address = stage.address(family, outside=True)
    offer = _balanced(
        stage,
        family,
        address,
        [_only(first)],
        externalIPs=[address],
        externalTrafficPolicy="Local",
    )
    for proto, port in offer.ports:
        seen = ask(stage.client, proto, address, port, n=3, source=first)
        assert seen == {("pod1a", first)}
        _assert_restricted(stage, stage.client, proto, address, port, second)


@pytest.mark.behaviour(
    "Load balancers and external IPs: Source ranges and an address with two roles",
)
def test_ranges_hold_at_a_cluster_ip_that_is_a_load_balancers_too(
    stage: Stage, family: int
) -> None:
    vip = stage.address(family)
    client = stage.client.ip(family)
    offer = _balanced(stage, family, vip, [_only(client)], vip=vip)
    for proto, port in offer.ports:
        assert servers(stage.client, proto, vip, port, n=3) == {"pod1a"}
        _assert_restricted(stage, stage.here[1], proto, vip, port)


@pytest.mark.behaviour(
    "Load balancers and external IPs: Source ranges and an address with two roles",
)
def test_ranges_hold_at_an_address_of_the_node(stage: Stage, family: int) -> None:
    """The address is the node's, an external IP and a load balancer's; other ports stay open."""
    first, second = client_addresses(stage.cluster, family)[:2]
    node = stage.node.ip(family)
    ports: list[Object] = [m.port(8443, name="https", target=8080)]
    _balanced(stage, family, node, [_only(first)], externalIPs=[node], ports=ports)
    stage.node.traffic.serve(tcp=[9401])
    seen = ask(stage.client, "tcp", node, 8443, n=3, source=first)
    assert {server for server, _ in seen} == {"pod1a"}
    _assert_restricted(stage, stage.client, "tcp", node, 8443, second)
    assert servers(stage.client, "tcp", node, 9401, n=3) == {"node1"}


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
@pytest.mark.behaviour("Load balancers and external IPs: External IP equal to the cluster IP")
def test_a_cluster_ip_named_as_external_ip_stays_a_cluster_ip(
    stage: Stage, family: int, policy: str
) -> None:
    """Pods keep their source, and ``internalTrafficPolicy`` decides, not the external one."""
    vip, pods = stage.address(family), [stage.here[0], stage.there[0]]
    offer = stage.offer(
        family,
        [at(pod, family) for pod in pods],
        vip=vip,
        externalIPs=[vip],
        externalTrafficPolicy=policy,
    )
    for proto, port in offer.ports:
        assert ask(stage.here[1], proto, vip, port) == stage.kept(stage.here[1], pods, family)
        assert ask(stage.client, proto, vip, port) == stage.masqueraded(pods, family)


@pytest.mark.parametrize("older", ["external", "balanced"])
@pytest.mark.behaviour(
    "Conflicts and invalid objects: External IP of one Service, load-balancer IP of another",
)
def test_two_services_name_one_address_in_different_fields(
    stage: Stage, family: int, older: str
) -> None:
    """The older Service gets the port, with its own ranges or none; other ports are independent."""
    address = stage.address(family, outside=True)
    unused_range = _only(stage.address(family, outside=True))
    times = {"external": "2024-01-01T00:00:00Z", "balanced": "2024-01-01T00:00:00Z"}
    times[older] = "2023-01-01T00:00:00Z"
    http, https = m.port(80, name="http", target=8080), m.port(443, name="https", target=8080)
    _balanced(
        stage, family, address, [unused_range], ports=[http, https], created=times["balanced"]
    )
    stage.offer(
        family,
        [at(stage.there[0], family)],
        ports=[http, m.port(8443, name="other", target=8080)],
        externalIPs=[address],
        created=times["external"],
    )
    assert servers(stage.client, "tcp", address, 8443, n=3) == {"pod2a"}
    assert_dropped(stage.client, "tcp", address, 443)
    if older == "external":
        assert servers(stage.client, "tcp", address, 80, n=3) == {"pod2a"}
    else:
        assert_dropped(stage.client, "tcp", address, 80)
