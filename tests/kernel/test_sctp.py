"""The rules for SCTP; ``test_sctp_traffic.py`` sends packets."""

import pytest

from testbed import manifests as m
from tests.kernel.conftest import Stage, at

pytestmark = pytest.mark.kernel

PORTS = [m.port(36412, name="s1ap", target=36412, protocol="SCTP")]


def _elements(stage: Stage, family: int, what: str) -> str:
    kind, name = what.split()
    table = ["ip" if family == 4 else "ip6", "svcproxy"]
    return stage.node.netns.run("nft", "list", kind, *table, name).stdout


@pytest.mark.nftables_only
@pytest.mark.behaviour("Kinds of Services, and IP families: SCTP")
def test_sctp_ports_are_elements_in_nftables_mode(stage: Stage, family: int) -> None:
    offer = stage.offer(family, ports=PORTS, type="NodePort")
    (node_port,) = (port for _, port in offer.node_ports)
    frontends = {"": f"{offer.vip} . sctp . 36412", "node-port-": f"sctp . {node_port}"}
    for prefix, frontend in frontends.items():
        assert frontend in _elements(stage, family, f"set {prefix}rejected")
    pod = stage.here[0]
    offer.endpoints(at(pod, family))
    for prefix, frontend in frontends.items():
        assert frontend not in _elements(stage, family, f"set {prefix}rejected")
        target = f"{frontend} . 0 : {pod.ip(family)} . 36412"
        assert target in _elements(stage, family, f"map {prefix}all1")
    offer.remove()


def _sctp(stage: Stage, family: int, word: str) -> list[str]:
    return [rule for rule in stage.rules(family) if "-p sctp" in rule and word in rule]


@pytest.mark.iptables_only
@pytest.mark.behaviour("Kinds of Services, and IP families: SCTP")
def test_sctp_ports_are_translated(stage: Stage, family: int) -> None:
    pod = stage.here[0]
    offer = stage.offer(family, [at(pod, family)], ports=PORTS, type="NodePort")
    target = f"{pod.ipv4}:36412" if family == 4 else f"[{pod.ipv6}]:36412"
    assert len(_sctp(stage, family, f"-j DNAT --to-destination {target}")) == 1
    (node_port,) = (port for _, port in offer.node_ports)
    for match in (f"-d {offer.vip}/{32 if family == 4 else 128} ", f"--dport {node_port} "):
        assert any("-j KUBE-" in rule for rule in _sctp(stage, family, match))
    offer.remove()
    assert not _sctp(stage, family, "")


@pytest.mark.iptables_only
@pytest.mark.behaviour("Kinds of Services, and IP families: SCTP")
def test_sctp_ports_without_endpoints_are_refused(stage: Stage, family: int) -> None:
    offer = stage.offer(family, ports=PORTS, type="NodePort")
    (node_port,) = (port for _, port in offer.node_ports)
    for port in (36412, node_port):
        assert len(_sctp(stage, family, f"--dport {port} -j REJECT")) == 1
    assert not _sctp(stage, family, "DNAT")
    offer.remove()
