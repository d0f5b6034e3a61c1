"""Which connections are masqueraded, and the flags that change it."""

import json
from pathlib import Path

import pytest

from testbed.cluster import CLUSTER_CIDRS
from testbed.daemon import METRICS_PORT
from tests.kernel.conftest import Stage, StageWith, all_at, ask, assert_dropped

pytestmark = pytest.mark.kernel


@pytest.mark.behaviour("Cluster IPs: Sources")
def test_outside_traffic_is_masqueraded_and_pods_are_not(
    stage_with: StageWith, family: int
) -> None:
    stage = stage_with()
    pods = [stage.here[1], stage.there[0]]
    offer = stage.offer(family, all_at(pods, family))
    for proto, port in offer.ports:
        assert ask(stage.client, proto, offer.vip, port) == stage.masqueraded(pods, family)
        assert ask(stage.node, proto, offer.vip, port) == stage.masqueraded(pods, family)
        pod = stage.here[0]
        assert ask(pod, proto, offer.vip, port) == stage.kept(pod, pods, family)


@pytest.mark.behaviour("Masquerading: `--masquerade-all`")
def test_masquerade_all_hides_pods_too(stage_with: StageWith, family: int) -> None:
    stage = stage_with(masquerade_all="true")
    pods = [*stage.here, stage.there[0]]
    offer = stage.offer(family, all_at(pods, family))
    for host in (stage.here[0], stage.client, stage.node):
        for proto, port in offer.ports:
            assert ask(host, proto, offer.vip, port) == stage.masqueraded(pods, family)


def _with_mark_bit(stage_with: StageWith, variant: str, bit: int, folder: Path) -> Stage:
    """A stage with another mark bit; nftables mode has no flag for it, only the file."""
    if variant != "nftables":
        return stage_with(iptables_masquerade_bit=str(bit))
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "nftables": {"masqueradeBit": bit},
        "clusterCIDR": ",".join(CLUSTER_CIDRS),
        "metricsBindAddress": f"127.0.0.1:{METRICS_PORT}",
        "conntrack": {"maxPerCore": 0},
        "oomScoreAdj": 0,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return stage_with(config=str(path))


@pytest.mark.parametrize("bit", [0, 31])
@pytest.mark.behaviour("Masquerading: `--iptables-masquerade-bit`")
def test_the_mark_bit_can_be_chosen(
    stage_with: StageWith, variant: str, family: int, bit: int, tmp_path: Path
) -> None:
    stage = _with_mark_bit(stage_with, variant, bit, tmp_path)
    pods = [stage.here[1], stage.there[0]]
    offer = stage.offer(family, all_at(pods, family))
    for proto, port in offer.ports:
        assert ask(stage.client, proto, offer.vip, port) == stage.masqueraded(pods, family)
        pod = stage.here[0]
        assert ask(pod, proto, offer.vip, port) == stage.kept(pod, pods, family)
    # A rule that drops marked packets drops masqueraded connections, and no others.
    mark = f"{1 << bit:#x}"
    rule = ["POSTROUTING", "-m", "mark", "--mark", f"{mark}/{mark}", "-j", "DROP"]
    stage.iptables(family, "-t", "mangle", "-A", *rule)
    try:
        for proto, port in offer.ports:
            assert_dropped(stage.client, proto, offer.vip, port)
            assert ask(pod, proto, offer.vip, port) == stage.kept(pod, pods, family)
    finally:
        stage.iptables(family, "-t", "mangle", "-D", *rule)


@pytest.mark.behaviour("Masquerading: Other traffic")
def test_what_is_not_for_a_service_keeps_its_source(stage_with: StageWith, family: int) -> None:
    """Direct traffic to pods through the node is not masqueraded."""
    stage = stage_with(masquerade_all="true")
    pod = stage.here[0]
    for proto, port in (("tcp", 8080), ("udp", 5353)):
        for host in (stage.client, stage.here[1], stage.there[0]):
            seen = ask(host, proto, pod.ip(family), port, n=5)
            assert seen == {(pod.name, host.ip(family))}


@pytest.mark.behaviour("Masquerading: No detection")
def test_without_detection_only_hairpins_are_masqueraded(
    stage_with: StageWith, family: int
) -> None:
    stage = stage_with(cluster_cidr=None)
    pods = [*stage.here, stage.there[0]]
    offer = stage.offer(family, all_at(pods, family))
    pod = stage.here[0]
    for proto, port in offer.ports:
        assert ask(pod, proto, offer.vip, port) == stage.kept(pod, pods, family)
    # Only pods of this node can reply to the client through it.
    here = stage.offer(family, all_at(stage.here, family))
    for proto, port in here.ports:
        assert ask(stage.client, proto, here.vip, port) == stage.kept(
            stage.client, stage.here, family
        )


@pytest.mark.behaviour("Masquerading: Marks of other programs")
def test_the_mark_of_others_is_left_alone(stage_with: StageWith, family: int) -> None:
    """Other bits of a packet's mark neither cause nor prevent masquerading."""
    stage = stage_with()
    pods = stage.here
    offer = stage.offer(family, all_at(pods, family))
    rule = ["PREROUTING", "-d", offer.vip, "-j", "MARK", "--set-xmark", "0x8000/0x8000"]
    stage.iptables(family, "-t", "mangle", "-A", *rule)
    try:
        for proto, port in offer.ports:
            assert ask(stage.client, proto, offer.vip, port) == stage.masqueraded(pods, family)
            assert ask(pods[0], proto, offer.vip, port) == stage.kept(pods[0], pods, family)
    finally:
        stage.iptables(family, "-t", "mangle", "-D", *rule)
