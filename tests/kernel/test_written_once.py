"""Rules read back equal the rules to write, for every configuration: a resync writes nothing."""

import pytest

from testbed import manifests as m
from testbed.waiting import eventually
from tests.kernel.conftest import PORTS, Stage, StageWith, all_at, another_address, period_flags

pytestmark = pytest.mark.kernel

FLAGS: dict[str, dict[str, str | None]] = {
    "defaults": {},
    "masquerade all": {"masquerade_all": "true", "iptables_masquerade_bit": "31"},
    "no detection": {"cluster_cidr": None, "iptables_localhost_nodeports": "false"},
    "any pod": {"cluster_cidr": "0.0.0.0/0,::/0"},
    "bridge": {"detect_local_mode": "BridgeInterface", "pod_bridge_interface": "br0"},
    "all node addresses": {"nodeport_addresses": "0.0.0.0/0,::/0"},
    "some node addresses": {"nodeport_addresses": "192.168.50.77/24,10.0.0.0/8,fd00::1/48"},
}


def _everything(stage: Stage, family: int) -> None:
    """Services of every kind."""
    sctp = m.port(36412, name="a-rather-long-name", target=36412, protocol="SCTP")
    pods = all_at([*stage.here, stage.there[0]], family)
    far = all_at(stage.there, family)
    ranges = ["192.168.50.77/24", "10.0.0.0/8", "fd00:192:168:50::7/64", "fd00:0:0:1::/64"]
    stage.offer(family, pods, ports=[*PORTS, sctp])
    for policy in ("Cluster", "Local"):
        for endpoints in (pods, far, []):
            stage.offer(
                family,
                endpoints,
                type="LoadBalancer",
                load_balancer_ips=[stage.address(family, outside=True)],
                loadBalancerSourceRanges=ranges,
                externalIPs=[stage.address(family, outside=True)],
                externalTrafficPolicy=policy,
                internalTrafficPolicy=policy,
                sessionAffinity="ClientIP" if endpoints is pods else "None",
                healthCheckNodePort=33000 + len(stage.offers),
            )


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.behaviour("The kernel: Idle")
def test_nothing_is_written_while_nothing_is_wrong(
    stage_with: StageWith, variant: str, flags: dict[str, str | None]
) -> None:
    periods = period_flags(variant, longest="200ms")
    stage = stage_with(
        **flags, **{name.replace("-", "_"): value for name, value in periods.items()}
    )
    with stage.at_once():
        for family in (4, 6):
            _everything(stage, family)

    def value(name: str) -> float:
        return stage.daemon.metrics().value(name)

    def foreign_change() -> None:
        """Force a full comparison with a change, because some variants would skip it otherwise."""
        if variant == "ipvs":
            with another_address(stage.node, "127.0.0.77"):
                return
        for action in ("-N", "-X"):
            stage.iptables(4, "-t", "nat", action, "OTHER-PROGRAM")

    def compare() -> None:
        full = "kubeproxy_sync_full_proxy_rules_duration_seconds_count"
        before = value(full)

        def compared() -> bool:
            foreign_change()
            return value(full) >= before + 3

        eventually(compared, "a comparison of each family", timeout=10.0, every=0.1)

    compare()  # wait for the resync after the last change
    before = value("svcproxy_kernel_operations_total")
    compare()
    assert value("svcproxy_kernel_operations_total") == before, stage.daemon.logs()[-4:]
