"""The flags of IPVS mode."""

import signal
import sys
import time

import pytest

from svcproxy.model.names import Protocol
from svcproxy.netlink.core.kernel_objects import VirtualServerKey
from svcproxy.netlink.core.operations import SetRealServer
from svcproxy.netlink.ipvs import IpvsSocket
from testbed.waiting import eventually
from tests.kernel.conftest import PORTS, StageWith, all_at, at, servers
from tests.kernel.virtual_servers import Servers

pytestmark = pytest.mark.kernel

VARIANTS = ("ipvs",)
RESYNCS = "kubeproxy_sync_full_proxy_rules_duration_seconds_count"


@pytest.mark.behaviour("IPVS mode: End of draining")
def test_a_limit_ends_connections_to_endpoints_that_left(
    stage_with: StageWith, family: int
) -> None:
    stage = stage_with(svcproxy_ipvs_graceful_termination_limit="3s")
    servers = Servers(stage.node, family)
    stays, leaves = stage.here
    offer = stage.offer(family, [at(leaves, family)], ports=PORTS[:1])
    with stage.client.traffic.hold("tcp", offer.vip, 80):
        began = time.monotonic()
        offer.endpoints(at(stays, family))
        eventually(
            lambda: leaves.ip(family) not in servers.weights(offer.vip),
            "the end of the real server",
        )
        assert time.monotonic() - began > 2.9


@pytest.mark.behaviour("IPVS mode: `--ipvs-strict-arp`")
def test_arp_can_be_strict(stage_with: StageWith) -> None:
    stage = stage_with(ipvs_strict_arp="true")
    show = ("cat", *(f"/proc/sys/net/ipv4/conf/all/{n}" for n in ("arp_ignore", "arp_announce")))
    assert stage.node.netns.run(*show).stdout.split() == ["1", "2"]


@pytest.mark.behaviour("IPVS mode: Schedulers")
def test_the_default_scheduler_can_be_chosen(stage_with: StageWith, family: int) -> None:
    stage = stage_with(ipvs_scheduler="lc")
    offer = stage.offer(family, [at(stage.here[0], family)], ports=PORTS[:1])
    found = Servers(stage.node, family).at(offer.vip)
    assert found is not None
    assert found.scheduler == "lc"


@pytest.mark.behaviour("IPVS mode: Virtual servers of other programs")
def test_excluded_addresses_are_left_alone(stage_with: StageWith, family: int) -> None:
    """Other addresses on ``kube-ipvs0`` that no Service has are removed."""
    kept, removed = ("10.97.0.1", "10.98.0.1") if family == 4 else ("fd97::1", "fd98::1")
    stage = stage_with(ipvs_exclude_cidrs="10.97.0.0/16,fd97::/16")
    bits = 32 if family == 4 else 128
    for address in (kept, removed):
        stage.node.netns.run("ip", "addr", "add", f"{address}/{bits}", "dev", "kube-ipvs0")
    stage.daemon.stop()
    stage.daemon.start()
    stage.daemon.wait_ready()
    shown = stage.node.netns.run("ip", "addr", "show", "dev", "kube-ipvs0").stdout
    assert kept in shown
    assert removed not in shown


_DAMAGE = {
    "virtual servers": ("ipvsadm", "--clear"),
    "nat rules": ("{iptables}-legacy", "-t", "nat", "-F"),
    "filter rules": ("{iptables}-legacy", "-F"),
    "set entries": ("ipset", "flush", "{set}"),
    "addresses": ("ip", "-{family}", "addr", "flush", "dev", "kube-ipvs0"),
}


@pytest.mark.parametrize("what", _DAMAGE)
def test_damage_is_repaired_within_a_sync_period(
    stage_with: StageWith, family: int, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel sends no events about it, so the state is checked every period."""
    period = 1.0
    stage = stage_with(ipvs_sync_period=f"{period:g}s")
    offer = stage.offer(family, [at(stage.here[0], family)], type="NodePort")
    space = stage.node.netns
    bound = "ip -o addr show dev kube-ipvs0 | awk '{print $4}' | sort"
    listing = ("sh", "-c", f"ipvsadm -Sn | sort; ipset save -sorted; {bound}")

    def state() -> list[str]:
        rules = stage.iptables(family, "-S"), stage.iptables(family, "-t", "nat", "-S")
        return [*rules, space.run(*listing).stdout]

    eventually(lambda: state() == state(), "a stable state")
    before = state()
    names = {
        "family": str(family),
        "iptables": "iptables" if family == 4 else "ip6tables",
        "set": "KUBE-CLUSTER-IP" if family == 4 else "KUBE-6-CLUSTER-IP",
    }
    stage.daemon.signal(signal.SIGSTOP)
    try:
        space.run(*(word.format(**names) for word in _DAMAGE[what]))
        assert state() != before
    finally:
        stage.daemon.signal(signal.SIGCONT)
    began = time.monotonic()
    eventually(lambda: state() == before, f"the {what} again", timeout=period + 5.0)
    with capsys.disabled():
        sys.stdout.write(f" [{what}: {time.monotonic() - began:.1f} s]")
    assert servers(stage.client, "tcp", offer.vip, 80, 3) == {stage.here[0].name}


def test_damage_does_not_hide_behind_our_own_changes(stage_with: StageWith, family: int) -> None:
    """The numbers of virtual servers and real servers are as expected all the time."""
    period = 1.0
    stage = stage_with(ipvs_sync_period=f"{period:g}s")
    node = Servers(stage.node, family)
    damaged = stage.offer(family, all_at(stage.here, family), ports=PORTS[:1])
    other = stage.offer(family, all_at(stage.here, family), ports=PORTS[:1])
    right = dict.fromkeys((pod.ip(family) for pod in stage.here), 1)
    assert node.weights(damaged.vip) == right
    key = VirtualServerKey(Protocol.TCP, damaged.vip, 80)

    def damage(ipvs: IpvsSocket) -> object:
        return ipvs.execute([SetRealServer(key, real, 7) for real in ipvs.real_servers(key)])

    assert node.ask(damage) == []

    def repaired() -> bool:
        other.endpoints(at(stage.here[0], family))
        other.endpoints(*all_at(stage.here, family))
        return node.weights(damaged.vip) == right

    eventually(repaired, "the weights again", timeout=period + 5.0)


def test_what_a_start_has_written_is_not_read_again(stage_with: StageWith) -> None:
    """Reading everything takes long and delays changes, so the result is verified by numbers."""
    stage = stage_with(ipvs_sync_period="1s")
    for family in (4, 6):
        stage.offer(family, [at(stage.here[0], family)], type="NodePort")
    stage.daemon.stop()
    stage.node.netns.run("ipvsadm", "--clear")
    stage.daemon.start()
    stage.daemon.wait_ready()

    def value(name: str) -> float:
        return stage.daemon.metrics().value(name)

    eventually(lambda: value(RESYNCS) == 2, "a resync of each family")
    eventually(lambda: value("svcproxy_kernel_operations_total") > 0, "a write")
    time.sleep(3.5)  # three periods without a resync
    assert value(RESYNCS) == 2, "\n".join(stage.daemon.logs())
