"""Service ports that iptables or the kernel refuses: the backend applies all others.

``test_refused_traffic`` shows the same with the whole daemon and with traffic.
"""

import contextlib
import fcntl
import resource
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pyroute2 import IPSet

from svcproxy.backends.base import BackendError, Outcome
from svcproxy.backends.iptables.core.naming import CLUSTER_PREFIX
from svcproxy.backends.xtables.commands import Variant
from svcproxy.backends.xtables.core.hashing import port_hash
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes
from tests.kernel.benches import Bench, bench, by_name, command, port, space

__all__ = ["bench", "space"]

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parametrize("variant", [pytest.param(v, id=v.value) for v in Variant]),
]


REFUSED: Mapping[str, Callable[[], ServicePort]] = {
    "a port that is none": lambda: port(1, target=70000),
    "affinity out of range": lambda: port(1, affinity=2**40),
    "an endpoint of the other family": lambda: port(1, endpoint="fd00::1"),
    "an address that is none": lambda: port(1, address="kubernetes.default"),
    "an endpoint that is none": lambda: port(1, endpoint="10.0.0.1/8 -j ACCEPT"),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
@pytest.mark.behaviour("The kernel: Refused Service port")
def test_a_refused_change_blocks_no_other_port(
    bench: Bench, make: Callable[[], ServicePort]
) -> None:
    good = port(1, "bad")
    bad = make()
    bad = ServicePort(
        good.name, bad.frontends, bad.cluster_endpoints, (), affinity_seconds=bad.affinity_seconds
    )
    bench.put(good)
    before = bench.saved()
    others = [port(number) for number in range(2, 8)]
    outcome = bench.put(bad, *others)
    assert set(outcome.refused) == {bad.name}
    assert all(map(bench.serves, others))
    # The last good state stays in force.
    assert bench.serves(good)
    chain = CLUSTER_PREFIX + port_hash(good.name)
    assert bench.saved()["nat"][chain] == before["nat"][chain]
    # Other ports keep changing, the refused one is added once it is valid, and no object is stale.
    assert not bench.put(port(2, target=9090)).refused
    assert set(bench.put(bad).refused) == {bad.name}
    bench.ports[bad.name] = good
    assert not bench.compare().operations
    assert not bench.put(port(1, "bad", target=9091)).refused
    assert not bench.compare().operations


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
@pytest.mark.behaviour("The kernel: Refused Service port")
def test_a_port_refused_at_the_start_blocks_no_other_port(
    bench: Bench, make: Callable[[], ServicePort]
) -> None:
    bad = make()
    others = [port(number) for number in range(2, 30)]
    outcome = bench.compare(by_name(*others[:10], bad, *others[10:]))
    assert set(outcome.refused) == {bad.name}
    assert all(map(bench.serves, others))
    again = bench.compare()
    assert set(again.refused) == {bad.name}
    assert not again.operations


@pytest.mark.behaviour("The kernel: Refused Service port")
def test_many_refused_ports_block_no_other_port(bench: Bench) -> None:
    """Those that need what the kernel lacks cost a bounded number of restores."""
    bad = [port(number, affinity=2**40) for number in range(2, 92)]
    others = [port(number) for number in range(92, 250)]
    outcome = bench.compare(
        by_name(*(p for pair in zip(bad, others, strict=False) for p in pair), *others)
    )
    assert set(outcome.refused) == {p.name for p in bad}
    nat = bench.saved()["nat"]
    assert all(CLUSTER_PREFIX + port_hash(p.name) in nat for p in others)


def wrapper(folder: Path, program: str, pattern: str) -> str:
    """A program that refuses a nat table with a certain line as a legacy kernel does.

    The error names COMMIT, and preceding tables are committed.
    """
    path = folder / "restore"
    path.write_text(f"""#!/bin/sh
text=$(mktemp)
trap 'rm "$text"' EXIT
cat > "$text"
grep -q -- '{pattern}' "$text" || exec {program} "$@" < "$text"
sed '/^[*]nat/,$d' "$text" | {program} "$@" || exit
echo "iptables-restore: line $(grep -n COMMIT "$text" | tail -1 | cut -d: -f1) failed" >&2
exit 1
""")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize("step", ["incremental", "scratch"])
@pytest.mark.behaviour("The kernel: Refused Service port")
def test_a_refusal_that_names_no_rule_is_found_by_halving(
    bench: Bench, tmp_path: Path, step: str
) -> None:
    real = bench.programs._restore
    bench.programs._restore = wrapper(tmp_path, real, "^-A .*10.244.1.7:8080")
    ports = [port(number) for number in range(1, 17)]
    outcome = bench.compare(by_name(*ports)) if step == "scratch" else bench.put(*ports)
    assert set(outcome.refused) == {ports[6].name}
    assert all(bench.serves(p) == (p is not ports[6]) for p in ports)
    bench.programs._restore = real
    assert not bench.put(ports[6]).refused
    assert bench.serves(ports[6])
    assert not bench.compare().operations


@pytest.mark.behaviour("The kernel: Refused sync")
def test_iptables_that_takes_nothing_is_a_failure(bench: Bench, tmp_path: Path) -> None:
    """Not a refusal of every Service port: nothing would say that nothing is served."""
    bench.programs._restore = wrapper(tmp_path, bench.programs._restore, "COMMIT")
    with pytest.raises(BackendError):
        bench.put(port(1))
    with pytest.raises(BackendError):
        bench.compare()


@pytest.mark.behaviour("The kernel: Incremental sync on a changed table")
def test_after_a_foreign_change_a_comparison_comes_before_isolation(bench: Bench) -> None:
    """An edit that fails because others flushed the chain is not the Service port's fault."""
    bench.put(port(1), port(2))
    bench.space.run(*command(bench, "-t", "filter", "-F", "KUBE-NODEPORTS"))
    gone = ServicePort(port(1).name, port(1).frontends, port(1).cluster_endpoints, ())
    assert not bench.put(gone).refused
    assert not bench.compare().operations
    assert len(bench.saved()["filter"]["KUBE-NODEPORTS"]) == 1


@pytest.mark.behaviour("The kernel: Refused Service port")
def test_an_ipset_of_another_type_costs_one_service_port(bench: Bench) -> None:
    bad, good = port(1, affinity=60), port(3, affinity=60)
    bench.put(bad)
    nat = bench.saved()["nat"]
    names = [chain for chain in nat if chain.startswith("KUBE-SEP-")]
    assert len(names) == 1
    if not any("--match-set" in rule for rules in nat.values() for rule in rules):
        pytest.skip("the kernel has no ipset")
    bench.compare({})
    bench.space.call(lambda: make_set(names[0]))
    outcome = bench.put(bad, good, port(2))
    assert set(outcome.refused) == {bad.name}
    assert bench.serves(port(2))
    assert bench.serves(good)


def make_set(name: str) -> None:
    with IPSet() as ipset:
        ipset.create(name, stype="hash:net")


@pytest.mark.behaviour("The kernel: Refused sync")
def test_without_descriptors_a_sync_fails_and_the_next_succeeds(bench: Bench) -> None:
    bench.put(port(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))

    def starved() -> Outcome:
        plan = bench.backend.plan_changes(Changes({port(2).name: port(2)}), bench.settings)
        assert plan is not None
        resource.setrlimit(resource.RLIMIT_NOFILE, (used - 1, hard))
        try:
            return bench.backend.apply(plan)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with pytest.raises(BackendError, match="Too many open files"):
        bench.space.call(starved)
    bench.compare(by_name(port(1), port(2)))
    assert bench.serves(port(2))


@pytest.mark.behaviour("The kernel: Refused sync")
def test_a_held_lock_is_no_refusal(
    bench: Bench, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """iptables waits 5 s for the lock of the legacy tables; nftables has none."""
    path = tmp_path / "lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (
            contextlib.nullcontext()
            if variant is Variant.NFT
            else pytest.raises(BackendError, match="lock")
        ):
            bench.put(port(1), port(2))
    assert not bench.compare().refused
    assert bench.serves(port(1))
