"""Rules that other programs remove are restored; rules stay without the daemon."""

import contextlib
import signal
from collections.abc import Iterator

import pytest

from testbed.outcomes import Answer
from testbed.waiting import PATIENCE, eventually
from tests.kernel.conftest import IPTABLES, Flags, Offer, Stage, at

pytestmark = pytest.mark.kernel

VARIANTS = IPTABLES

PERIOD = 0.5
REPAIR = PERIOD + 10.0
"""Seconds until a repair, on a machine that runs iptables slowly; the default period is 30."""


@pytest.fixture(scope="module")
def flags() -> Flags:
    return {"iptables-sync-period": f"{PERIOD:g}s"}


def _served(stage: Stage, offer: Offer) -> bool:
    """Return whether the client is served at cluster IP and node port, over TCP and UDP."""
    places = [(offer.vip, offer.ports), (stage.node.ip(offer.family), offer.node_ports)]
    return all(
        isinstance(stage.client.traffic.connect(proto, address, port, timeout=1.0), Answer)
        for address, ports in places
        for proto, port in ports
    )


@contextlib.contextmanager
def _damage(stage: Stage) -> Iterator[None]:
    """Stop the daemon for the duration of the block, so that it cannot repair the damage yet."""
    stage.daemon.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        stage.daemon.signal(signal.SIGCONT)


def _assert_repaired(stage: Stage, family: int, *damages: list[str]) -> None:
    """Damage rules that traffic needs, and check that they are repaired within a sync period."""
    offer = stage.offer(family, [at(stage.here[0], family)], type="NodePort")
    assert _served(stage, offer)
    before = sorted(stage.rules(family))
    with _damage(stage):
        for damage in damages:
            stage.iptables(family, *damage)
        assert sorted(stage.rules(family)) != before
    eventually(lambda: sorted(stage.rules(family)) == before, "the same rules", timeout=REPAIR)
    assert _served(stage, offer)


@pytest.mark.behaviour("The kernel: Repair")
def test_a_flushed_nat_table_is_repaired(stage: Stage, family: int) -> None:
    _assert_repaired(stage, family, ["-t", "nat", "-F"])


@pytest.mark.behaviour("The kernel: Repair")
def test_removed_nat_chains_are_repaired(stage: Stage, family: int) -> None:
    _assert_repaired(stage, family, ["-t", "nat", "-F"], ["-t", "nat", "-X"])


@pytest.mark.behaviour("The kernel: Repair")
def test_a_flushed_filter_table_is_repaired(stage: Stage, family: int) -> None:
    _assert_repaired(stage, family, ["-t", "filter", "-F"], ["-t", "filter", "-X"])


@pytest.mark.behaviour("The kernel: Repair")
def test_a_deleted_jump_is_repaired(stage: Stage, family: int) -> None:
    jump = ["-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"]
    _assert_repaired(stage, family, ["-t", "nat", "-D", "PREROUTING", *jump])


@pytest.mark.behaviour("The kernel: Repair")
def test_a_single_deleted_rule_is_repaired(stage: Stage, family: int) -> None:
    _assert_repaired(stage, family, ["-t", "nat", "-D", "KUBE-NODEPORTS", "1"])


@pytest.mark.behaviour("The kernel: Repair")
def test_a_rule_of_another_program_in_our_chains_is_removed(stage: Stage, family: int) -> None:
    _assert_repaired(stage, family, ["-t", "nat", "-I", "KUBE-SERVICES", "-j", "RETURN"])


@pytest.mark.behaviour("The kernel: Repair")
def test_traffic_stops_while_the_damage_lasts(stage: Stage, family: int) -> None:
    """The rules that are repaired are those that traffic needs."""
    offer = stage.offer(family, [at(stage.here[0], family)], type="NodePort")
    with _damage(stage):
        stage.iptables(family, "-t", "nat", "-F")
        assert not _served(stage, offer)
    eventually(lambda: _served(stage, offer), "the repair", timeout=REPAIR)


@pytest.mark.behaviour("The kernel: Rules of other programs")
def test_rules_of_other_programs_stay(stage: Stage, family: int) -> None:
    foreign = [
        ["-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "9999", "-j", "RETURN"],
        ["-t", "filter", "-A", "FORWARD", "-p", "tcp", "--dport", "9999", "-j", "DROP"],
    ]
    for rule in foreign:
        stage.iptables(family, *rule)
    _assert_repaired(stage, family, ["-t", "nat", "-F", "KUBE-SERVICES"])
    rules = stage.rules(family)
    assert sum("--dport 9999" in rule for rule in rules) == 2
    for rule in foreign:
        stage.iptables(family, *["-D" if word == "-A" else word for word in rule])


@pytest.mark.behaviour("The kernel: SIGTERM")
def test_rules_stay_when_the_daemon_is_terminated(stage: Stage, family: int) -> None:
    offer = stage.offer(family, [at(stage.here[0], family)], type="NodePort")
    before = stage.rules(family)
    assert stage.daemon.stop() < 2 * PATIENCE
    assert stage.rules(family) == before
    assert _served(stage, offer)
    stage.daemon.start()
    stage.daemon.wait_ready()
    assert _served(stage, offer)
