"""Services that claim the same address: which one serves it, and which one takes over."""

import pytest

from testbed import manifests as m
from testbed.manifests import Object
from tests.kernel.conftest import Offer, Stage, at, servers

pytestmark = pytest.mark.kernel

OLD, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
ways = pytest.mark.parametrize("way", ["node port", "load balancer", "external IP"])


class Rivals:
    """An older Service on pod1a and a younger one on pod1b, both with the same address."""

    def __init__(self, stage: Stage, family: int, way: str) -> None:
        self.stage, self.family, self.way = stage, family, way
        self.node_port = way == "node port"
        self.shared = stage.address(family, outside=True)
        self.target = stage.node.ip(family) if self.node_port else self.shared
        ports = [m.port(80, name="http", target=8080)]
        self.ports = stage.with_node_ports(ports) if self.node_port else ports
        self.port = self.ports[0].get("nodePort", 80)

    def offer(self, pod: int, created: str, name: str = "") -> Offer:
        specs: dict[str, Object] = {
            "node port": {"type": "NodePort"},
            "load balancer": {"type": "LoadBalancer", "load_balancer_ips": [self.shared]},
            "external IP": {"externalIPs": [self.shared]},
        }
        spec = specs[self.way]
        if name:
            spec["name"] = name
        endpoint = at(self.stage.here[pod], self.family)
        return self.stage.offer(self.family, [endpoint], ports=self.ports, created=created, **spec)

    def servers(self) -> set[str]:
        return servers(self.stage.client, "tcp", self.target, self.port, n=20)


@ways
@pytest.mark.behaviour(
    "Conflicts and invalid objects: Two Services with the same node port, load-balancer IP or external IP",
)
def test_the_older_service_keeps_the_address(stage: Stage, family: int, way: str) -> None:
    """Regardless of the order of arrival; the younger takes over when the older is deleted."""
    rivals = Rivals(stage, family, way)
    younger = rivals.offer(1, NEW)
    assert rivals.servers() == {"pod1b"}
    older = rivals.offer(0, OLD)
    assert rivals.servers() == {"pod1a"}
    older.remove()
    assert rivals.servers() == {"pod1b"}
    older = rivals.offer(0, OLD)
    assert rivals.servers() == {"pod1a"}
    younger.remove()
    assert rivals.servers() == {"pod1a"}
    # Each always kept its own cluster IP.
    assert servers(stage.client, "tcp", older.vip, 80, n=3) == {"pod1a"}


@ways
@pytest.mark.behaviour("Conflicts and invalid objects: The Service that loses a conflict")
def test_the_loser_works_at_its_other_addresses(stage: Stage, family: int, way: str) -> None:
    rivals = Rivals(stage, family, way)
    rivals.offer(0, OLD)
    loser = rivals.offer(1, NEW)
    assert servers(stage.client, "tcp", loser.vip, 80, n=5) == {"pod1b"}


@ways
@pytest.mark.behaviour(
    "Conflicts and invalid objects: Two Services with the same node port, load-balancer IP or external IP",
)
def test_an_older_service_gives_up_its_claim(stage: Stage, family: int, way: str) -> None:
    """The Service stays, without the disputed address."""
    rivals = Rivals(stage, family, way)
    older = rivals.offer(0, OLD)
    rivals.offer(1, NEW)
    assert rivals.servers() == {"pod1a"}
    if way == "node port":
        older.change(type="ClusterIP", ports=[m.port(80, name="http", target=8080)])
    elif way == "load balancer":
        older.load_balancer()
    else:
        older.change(externalIPs=None)
    assert rivals.servers() == {"pod1b"}


@pytest.mark.behaviour(
    "Conflicts and invalid objects: Two Services with the same node port, load-balancer IP or external IP",
)
def test_of_equal_age_the_first_by_name_wins(stage: Stage, family: int) -> None:
    rivals = Rivals(stage, family, "external IP")
    second = rivals.offer(1, OLD, name="name-b")
    first = rivals.offer(0, OLD, name="name-a")
    assert rivals.servers() == {"pod1a"}
    first.remove()
    assert rivals.servers() == {"pod1b"}
    second.remove()


@pytest.mark.behaviour("Conflicts and invalid objects: Cluster IPs")
def test_no_service_takes_over_a_cluster_ip(stage: Stage, family: int) -> None:
    """Not even an older Service that names it as its external or load balancer IP."""
    victim = stage.offer(family, [at(stage.here[0], family)], created=NEW)
    claims: list[Object] = [
        {"externalIPs": [victim.vip]},
        {"type": "LoadBalancer", "load_balancer_ips": [victim.vip]},
    ]
    for claim in claims:
        thief = stage.offer(family, [at(stage.here[1], family)], created=OLD, **claim)
        for host in (stage.client, stage.here[1], stage.node):
            for proto, port in victim.ports:
                assert servers(host, proto, victim.vip, port, n=20) == {"pod1a"}
        thief.remove()
    victim.endpoints()
    stage.offer(family, [at(stage.here[1], family)], created=OLD, externalIPs=[victim.vip])
    victim.endpoints(at(stage.here[0], family))
    assert servers(stage.client, "tcp", victim.vip, 80, n=20) == {"pod1a"}


@pytest.mark.behaviour("Conflicts and invalid objects: Different ports")
def test_different_ports_of_one_address_are_no_conflict(stage: Stage, family: int) -> None:
    shared = stage.address(family, outside=True)
    for pod, number in zip(stage.here, (80, 443), strict=True):
        stage.offer(
            family,
            [at(pod, family)],
            ports=[m.port(number, name="web", target=8080)],
            externalIPs=[shared],
        )
    assert servers(stage.client, "tcp", shared, 80, n=10) == {"pod1a"}
    assert servers(stage.client, "tcp", shared, 443, n=10) == {"pod1b"}


@pytest.mark.behaviour("Conflicts and invalid objects: The Service that loses a conflict")
def test_a_conflict_is_logged_once(stage: Stage, family: int) -> None:
    rivals = Rivals(stage, family, "external IP")
    rivals.offer(0, OLD)
    loser = rivals.offer(1, NEW)
    loser.change(sessionAffinity="ClientIP")
    name = f"default/{loser.service['metadata']['name']}"
    lines = [
        line
        for line in stage.daemon.logs()
        if "service.conflict" in line and f"service={name} " in line
    ]
    assert len(lines) == 1
    assert rivals.shared in lines[0]
