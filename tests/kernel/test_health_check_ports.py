"""``healthCheckNodePort``: load balancers probe whether a node has local endpoints."""

import json
from collections.abc import Iterator

import pytest

from testbed import manifests as m
from testbed.waiting import eventually
from tests.kernel.conftest import Offer, Stage, all_at, at, servers

pytestmark = pytest.mark.kernel


def _checked(stage: Stage, family: int) -> tuple[Offer, int]:
    (entry,) = stage.with_node_ports([{}])
    port = int(entry["nodePort"])
    offer = stage.offer(
        family,
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=port,
        load_balancer_ips=[stage.address(family, outside=True)],
    )
    return offer, port


def _says(stage: Stage, family: int, port: int, status: int, local: int) -> None:
    """Assert that the client soon gets this answer at the node's address."""

    def answered() -> bool:
        code, body = stage.client.traffic.fetch(port, address=stage.node.ip(family), timeout=1.0)
        assert code == status, (code, body)
        return bool(json.loads(body)["localEndpoints"] == local)

    eventually(answered, f"status {status}, {local} local endpoints")


def _is_closed(stage: Stage, family: int, port: int) -> bool:
    return stage.client.traffic.fetch(port, address=stage.node.ip(family), timeout=1.0)[0] == 0


@pytest.mark.behaviour("Load balancers and external IPs: `healthCheckNodePort`")
def test_the_node_is_healthy_while_it_has_ready_endpoints(stage: Stage, family: int) -> None:
    near, also_near, far = *stage.here, stage.there[0]
    offer, port = _checked(stage, family)
    _says(stage, family, port, 503, 0)
    offer.endpoints(*all_at([near, far], family))
    _says(stage, family, port, 200, 1)
    offer.endpoints(*all_at([near, also_near, far], family))
    _says(stage, family, port, 200, 2)
    offer.endpoints(at(far, family), at(near, family, ready=False, serving=True, terminating=True))
    _says(stage, family, port, 503, 0)
    offer.remove()
    eventually(lambda: _is_closed(stage, family, port), "the closed port")


@pytest.mark.behaviour("Load balancers and external IPs: `healthCheckNodePort`")
def test_the_port_goes_with_the_local_policy(stage: Stage, family: int) -> None:
    offer, port = _checked(stage, family)
    offer.endpoints(at(stage.here[0], family))
    _says(stage, family, port, 200, 1)
    offer.change(externalTrafficPolicy="Cluster")
    eventually(lambda: _is_closed(stage, family, port), "the closed port")


@pytest.fixture
def closed_node(stage: Stage, family: int) -> Iterator[None]:
    """A firewall on the node that accepts only replies and the node's own traffic."""
    rules = [
        ["INPUT", "-i", "lo", "-j", "ACCEPT"],
        ["INPUT", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"],
        *([["INPUT", "-p", "ipv6-icmp", "-j", "ACCEPT"]] if family == 6 else []),
    ]
    for rule in rules:
        stage.iptables(family, "-A", *rule)
    stage.iptables(family, "-P", "INPUT", "DROP")
    yield
    stage.iptables(family, "-P", "INPUT", "ACCEPT")
    for rule in rules:
        stage.iptables(family, "-D", *rule)


@pytest.mark.iptables_only
@pytest.mark.behaviour(
    "Load balancers and external IPs: `healthCheckNodePort` behind a firewall",
)
def test_a_firewall_does_not_hide_the_port(stage: Stage, family: int, closed_node: None) -> None:
    offer, port = _checked(stage, family)
    offer.endpoints(at(stage.here[0], family))
    stage.node.traffic.serve(tcp=[9500])
    assert _is_closed(stage, family, 9500)
    _says(stage, family, port, 200, 1)


@pytest.mark.nftables_only
@pytest.mark.behaviour("nftables mode: `healthCheckNodePort` behind a firewall")
def test_a_firewall_has_to_open_the_port_for_nftables_mode(
    stage: Stage, family: int, closed_node: None
) -> None:
    """An ``accept`` in svcproxy's chain does not end the firewall's chain: it needs its own."""
    offer, port = _checked(stage, family)
    offer.endpoints(at(stage.here[0], family))
    assert _is_closed(stage, family, port)
    rule = ["INPUT", "-p", "tcp", "--dport", str(port), "-j", "ACCEPT"]
    stage.iptables(family, "-A", *rule)
    try:
        _says(stage, family, port, 200, 1)
    finally:
        stage.iptables(family, "-D", *rule)
    # Traffic to Services does not pass INPUT.
    assert servers(stage.client, "tcp", offer.vip, 80, n=3)


@pytest.mark.behaviour(
    "Load balancers and external IPs: `healthCheckNodePort` and unknown port names",
)
def test_endpoints_of_a_port_that_the_service_lacks_do_not_count(stage: Stage, family: int) -> None:
    """They get no traffic, so they do not count. kube-proxy counts them, and answers 200."""
    offer, port = _checked(stage, family)
    endpoints = [at(stage.here[0], family)]
    renamed = m.endpoint_slice(offer.service, endpoints)
    for entry in renamed["ports"]:
        entry["name"] = f"no-{entry['name']}"
    offer.put_slices(renamed=renamed)
    _says(stage, family, port, 503, 0)
    offer.endpoints(*endpoints)
    _says(stage, family, port, 200, 1)
