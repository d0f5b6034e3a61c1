"""With the nft variant, changes by other processes are noticed by nf_tables events and repaired.

``test_repair`` covers periodic resyncs, ``test_drift_nftables`` covers nftables mode.
"""

import sys
import time
from collections.abc import Callable

import pytest

from benchmarks.usage import usage
from testbed.waiting import eventually
from tests.kernel.conftest import Flags, Stage, all_at

pytestmark = pytest.mark.kernel

VARIANTS = ("nft",)

Say = Callable[[str], None]

FULL = "kubeproxy_sync_full_proxy_rules_duration_seconds_count"
JUMP = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
# At a reload, firewalld's iptables backend replaces whole tables, one after another.
RELOAD = (
    r"printf '*nat\n:FW_PRE - [0:0]\n-A PREROUTING -j FW_PRE\nCOMMIT\n"
    r"*filter\n:FW_IN - [0:0]\n-A INPUT -j FW_IN\nCOMMIT\n' | {program}-restore"
)


@pytest.fixture(scope="module")
def flags() -> Flags:
    return {"iptables-sync-period": "1h", "iptables-min-sync-period": "1s"}


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Write a line to the terminal, bypassing pytest's capture."""

    def write(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{line}\n")

    return write


@pytest.fixture
def quiet(stage: Stage) -> None:
    """Wait until a repair would not be delayed by the minimum interval between syncs."""
    stage.daemon.wait_idle(1.6)


def repairs(stage: Stage) -> float:
    return stage.daemon.metrics().value("svcproxy_drift_repairs_total")


def comparisons(stage: Stage) -> float:
    return stage.daemon.metrics().value(FULL)


def noticed(stage: Stage) -> int:
    return sum("changed_by_others" in line for line in stage.daemon.logs())


def own_rules(stage: Stage) -> list[str]:
    return sorted(rule for family in (4, 6) for rule in stage.rules(family) if "KUBE" in rule)


@pytest.mark.parametrize(
    "damage",
    [
        "{program} -t nat -F",
        "{program} -t nat -F KUBE-SERVICES",
        "{program} -t filter -F",
        f"{{program}} -t nat -D PREROUTING {JUMP}",
        "nft flush ruleset",
        RELOAD,
    ],
)
@pytest.mark.behaviour("The kernel: Repair")
def test_damage_is_repaired_within_a_second(
    stage: Stage, damage: str, say: Say, request: pytest.FixtureRequest
) -> None:
    with stage.at_once():
        offers = [stage.offer(family, all_at(stage.here, family)) for family in (4, 6)]
    request.getfixturevalue("quiet")
    before, whole = repairs(stage), own_rules(stage)
    dial = stage.client.traffic.load
    loads = [dial("tcp", offer.vip, 80, rate=150, timeout=0.2) for offer in offers]
    began = time.monotonic()
    for program in ("iptables-nft", "ip6tables-nft"):
        stage.node.netns.run("sh", "-c", damage.format(program=program))
    done = time.monotonic()
    eventually(lambda: own_rules(stage) == whole, "the same rules", timeout=3.0)
    say(f"{damage}: repaired after at most {time.monotonic() - began:.2f} s")
    time.sleep(max(0.0, done + 1.2 - time.monotonic()))  # the loads measure until 1.2 s
    for load in loads:
        result = load.stop()
        assert max((s.at - done for s in result.failures), default=0.0) < 1.0
        assert result.between(done + 0.4).ok, "traffic flows"
    assert repairs(stage) >= before + 2
    culprit = "process=nft" if damage.startswith("nft") else "tables-nft"
    assert any(culprit in line for line in stage.daemon.logs() if "kernel.repaired" in line)


def test_own_changes_are_not_repaired(stage: Stage, quiet: None) -> None:
    before, seen = (repairs(stage), comparisons(stage)), noticed(stage)
    for _ in range(3):
        stage.offer(4, all_at(stage.here, 4))
    assert (repairs(stage), comparisons(stage)) == before
    assert noticed(stage) == seen


@pytest.mark.behaviour("The kernel: Busy neighbours")
def test_changes_of_other_chains_cause_no_resync(stage: Stage, quiet: None) -> None:
    stage.offer(4, all_at(stage.here, 4))
    stage.daemon.wait_idle(1.6)
    before, seen, repaired = comparisons(stage), noticed(stage), repairs(stage)
    for arguments in (["-N", "CNI"], ["-A", "CNI", "-j", "RETURN"], ["-F", "CNI"], ["-X", "CNI"]):
        stage.iptables(4, "-t", "nat", *arguments)
    stage.iptables(4, "-A", "FORWARD", "-j", "ACCEPT")
    # The kernel's events arrive in order: once this change is repaired, those above were seen.
    stage.iptables(4, "-t", "nat", "-F", "KUBE-SERVICES")
    eventually(lambda: repairs(stage) > repaired, "a repair", timeout=2.0)
    assert noticed(stage) == seen + 1
    assert comparisons(stage) == before + 1


@pytest.mark.behaviour("The kernel: Busy neighbours")
def test_frequent_changes_by_another_process_cause_few_resyncs(
    stage: Stage, quiet: None, say: Say
) -> None:
    """Deletions in built-in chains may concern svcproxy's jumps: they are checked with back-off."""
    pid = stage.daemon.pid
    before, cpu, began = comparisons(stage), usage(pid).cpu, time.monotonic()
    changes = 0
    while time.monotonic() - began < 4.0:
        for command in ("-A", "-D"):
            stage.iptables(4, "-t", "nat", command, "PREROUTING", "-s", "192.0.2.1", "-j", "RETURN")
            changes += 1
    made, used = comparisons(stage) - before, usage(pid).cpu - cpu
    took = time.monotonic() - began
    say(f"{changes} changes in {took:.1f} s: {made:.0f} comparisons, {used / took:.1%} of a core")
    assert changes > 20
    # One family is checked immediately, and then after 1, 2 and 4 s.
    assert 1 <= made <= 4
    # Damage to svcproxy's own chains is still repaired without back-off.
    earlier, done = repairs(stage), time.monotonic()
    stage.iptables(4, "-t", "nat", "-F", "KUBE-SERVICES")
    eventually(lambda: repairs(stage) > earlier, "a repair", timeout=2.0)
    say(f"repaired after at most {time.monotonic() - done:.2f} s")
