"""Hostile or impossible Service ports on the real kernel: each costs itself and no other.

The backend is driven directly, with finished Service ports, so that nothing before it has validated
them. Whether packets follow the rules is for the traffic tests to show.
"""

import contextlib
import fcntl
import os
import re
import resource
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from pyroute2 import IPSet

from svcproxy.backends.base import BackendError, Desired, Outcome
from svcproxy.backends.iptables.backend import IptablesBackend
from svcproxy.backends.iptables.naming import CLUSTER_PREFIX
from svcproxy.backends.settings import Settings
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.hashing import port_hash
from svcproxy.backends.xtables.savefile import parse
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.state.desired import Changes
from testbed import netns
from testbed.netns import NetNS

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parametrize("variant", [pytest.param(v, id=v.value) for v in Variant]),
]

INPUT_JUMPS = 4
"""Three of ours, and the one that kubelet lays as well."""

HOSTILE = (
    'a"\n-A INPUT -p tcp --dport 22 -j DROP\n-A INPUT -m comment --comment "',
    'one"quote',
    "one'quote\\",
    "line\nCOMMIT\n*filter\n:INPUT DROP [0:0]",
    "carriage\rreturn\ttab\0nul",
    "Ünïcode \u2028 \udcff",
    "-j ACCEPT -m comment --comment x",
    "x" * 5000,
    "",
    " ",
    "%s $(reboot) `id` !",
)


class Bench:
    """A backend in a namespace of its own."""

    def __init__(self, space: NetNS, variant: Variant, family: IPFamily) -> None:
        self.space = space
        self.programs = Iptables(variant, family)
        self.family = family
        self.ports: dict[ServicePortName, ServicePort] = {}
        self.start()

    def start(self) -> None:
        """Begin as a fresh process does."""
        settings = Settings(family=self.family)
        self.backend = IptablesBackend(self.programs, lambda _: settings)
        self.space.call(self.backend.probe)

    def put(self, *ports: ServicePort) -> Outcome:
        """Change Service ports step by step, as the loop does."""
        changed: dict[ServicePortName, ServicePort | None] = {port.name: port for port in ports}
        self.ports.update({port.name: port for port in ports})

        def sync() -> Outcome:
            plan = self.backend.plan_changes(Changes(changed), None)
            assert plan is not None
            return self.backend.apply(plan)

        return self.space.call(sync)

    def compare(self, ports: Mapping[ServicePortName, ServicePort] | None = None) -> Outcome:
        """Compare from scratch."""
        if ports is not None:
            self.ports = dict(ports)
        desired = Desired(dict(self.ports), None)
        return self.space.call(
            lambda: self.backend.apply(self.backend.plan(desired, self.backend.read()))
        )

    def saved(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        return parse(self.space.call(lambda: self.programs.save("filter", "nat")))

    def serves(self, port: ServicePort) -> bool:
        """Whether a cluster IP leads to this port's chain, and rules to all its endpoints."""
        nat = self.saved()["nat"]
        chain = CLUSTER_PREFIX + port_hash(port.name)
        text = "\n".join(rule for name, rules in nat.items() for rule in rules)
        leads = f"-j {chain}" in text and nat.get(chain)
        return bool(leads) and all(
            f"--to-destination {e.address}:{e.port}" in text for e in port.cluster_endpoints
        )


@pytest.fixture
def space() -> Iterator[NetNS]:
    made = NetNS(f"svp-refuse-{os.getpid()}")
    netns.ip_batch([f"netns add {made.name}"])
    netns.ip_batch(["link set lo up"], netns=made.name)
    yield made
    netns.remove([made.name])


@pytest.fixture
def bench(space: NetNS, variant: Variant) -> Bench:
    made = Bench(space, variant, IPFamily.IPV4)
    made.compare({})
    return made


def frontend(
    kind: FrontendKind, address: str, number: int, verdict: Verdict = Verdict.FORWARD
) -> Frontend:
    return Frontend(kind, address, number, local=verdict is Verdict.DROP, verdict=verdict)


def port(
    number: int,
    name: str = "",
    *,
    protocol: Protocol = Protocol.TCP,
    target: int = 8080,
    affinity: int = 0,
    address: str = "",
    endpoint: str = "",
) -> ServicePort:
    """A Service port with a cluster IP, a load-balancer IP with no endpoint here, and a health port."""
    key = ServicePortName("ns", name or f"s{number}", "http", protocol)
    frontends = (
        frontend(FrontendKind.CLUSTER_IP, address or f"10.96.0.{number}", 80),
        frontend(FrontendKind.EXTERNAL_IP, f"203.0.113.{number}", 80, Verdict.DROP),
    )
    return ServicePort(
        key,
        frontends,
        (Endpoint(endpoint or f"10.244.1.{number}", target),),
        (),
        affinity_seconds=affinity,
        health_check_node_port=31000 + number,
    )


def by_name(*ports: ServicePort) -> dict[ServicePortName, ServicePort]:
    return {port.name: port for port in ports}


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("step", ["incremental", "scratch"])
def test_a_hostile_name_writes_no_rule_of_its_own(bench: Bench, name: str, step: str) -> None:
    before = bench.saved()["filter"]
    hostile = port(1, name)
    hostile = structs.replace(hostile, name=ServicePortName(name, name, name, Protocol.TCP))
    others = [port(number) for number in range(2, 6)]
    if step == "scratch":
        outcome = bench.compare(by_name(hostile, *others))
    else:
        outcome = bench.put(hostile, *others)
    assert all(map(bench.serves, others))
    tables = bench.saved()
    for chain in ("INPUT", "FORWARD", "OUTPUT"):
        assert tables["filter"][chain] == before[chain]
    assert set(tables["filter"]) == set(before)
    served = 5 - len(outcome.refused)
    assert len(tables["filter"]["KUBE-NODEPORTS"]) == served
    assert len(tables["filter"]["KUBE-EXTERNAL-SERVICES"]) == served
    # Read back, the rules are the very ones that were written.
    bench.start()
    again = bench.compare()
    assert not again.operations
    assert set(again.refused) == set(outcome.refused)


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1, max_size=8, unique=True))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_names_read_back_as_written(bench: Bench, names: list[tuple[str, str, str]]) -> None:
    ports = [port(number) for number in range(1, len(names) + 1)]
    named = [
        structs.replace(made, name=ServicePortName(*name, Protocol.TCP))
        for made, name in zip(ports, names, strict=True)
    ]
    assert not bench.compare(by_name(*named)).refused
    filters = bench.saved()["filter"]
    assert len(filters["KUBE-NODEPORTS"]) == len(names)
    assert len(filters["KUBE-EXTERNAL-SERVICES"]) == len(names)
    assert len(filters["INPUT"]) == INPUT_JUMPS
    bench.start()
    assert not bench.compare().operations


REFUSED: Mapping[str, Callable[[], ServicePort]] = {
    "a port that is none": lambda: port(1, target=70000),
    "affinity out of range": lambda: port(1, affinity=2**40),
    "an endpoint of the other family": lambda: port(1, endpoint="fd00::1"),
    "an address that is none": lambda: port(1, address="kubernetes.default"),
    "an endpoint that is none": lambda: port(1, endpoint="10.0.0.1/8 -j ACCEPT"),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_in_steps_blocks_nobody(
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
    # Others go on changing, the refused one comes back when it is right, and nothing is left over.
    assert not bench.put(port(2, target=9090)).refused
    assert set(bench.put(bad).refused) == {bad.name}
    bench.ports[bad.name] = good
    assert not bench.compare().operations
    assert not bench.put(port(1, "bad", target=9091)).refused
    assert not bench.compare().operations


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_at_the_start_blocks_nobody(
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


def test_many_refused_among_many(bench: Bench) -> None:
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

    It names COMMIT, and what comes before that table is committed.
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


def test_iptables_that_takes_nothing_is_a_failure(bench: Bench, tmp_path: Path) -> None:
    """Not a refusal of every Service port: nothing would say that nothing is served."""
    bench.programs._restore = wrapper(tmp_path, bench.programs._restore, "COMMIT")
    with pytest.raises(BackendError):
        bench.put(port(1))
    with pytest.raises(BackendError):
        bench.compare()


def test_a_kernel_that_others_changed_is_compared_first(bench: Bench) -> None:
    """An edit that fails because others flushed the chain is not the Service port's fault."""
    bench.put(port(1), port(2))
    bench.space.run(*bench_command(bench, "-t", "filter", "-F", "KUBE-NODEPORTS"))
    gone = ServicePort(port(1).name, port(1).frontends, port(1).cluster_endpoints, ())
    assert not bench.put(gone).refused
    assert not bench.compare().operations
    assert len(bench.saved()["filter"]["KUBE-NODEPORTS"]) == 1


def bench_command(bench: Bench, *arguments: str) -> tuple[str, ...]:
    return (bench.programs._list, *arguments)


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


COMPATIBLE = (
    "::1.2.3.4",
    "::ffff:0:1.2.3.4",
    "::102:304",
    "::1",
    "::5:0",
    "fd00::1.2.3.4",
    "::ffff:1.2.3.4",
)


def test_ipv6_addresses_are_written_once(space: NetNS, variant: Variant) -> None:
    bench = Bench(space, variant, IPFamily.IPV6)
    ports = []
    for number, address in enumerate(dict.fromkeys(COMPATIBLE)):
        frontends = (
            frontend(FrontendKind.CLUSTER_IP, address, 80 + number),
            frontend(FrontendKind.LOAD_BALANCER, address, 180 + number),
            frontend(FrontendKind.EXTERNAL_IP, address, 280 + number, Verdict.REJECT),
        )
        ports.append(
            ServicePort(
                ServicePortName("ns", f"s{number}", "", Protocol.TCP),
                frontends,
                (Endpoint(address, 8080),),
                (),
                affinity_seconds=60 * (number % 2),
                source_ranges=("::102:0/112", "::1.2.3.0/120", "::ffff:0:0/96", "fd00::/8"),
            )
        )
    many = [
        ServicePort(
            ServicePortName("ns", f"m{number}", "", Protocol.TCP),
            (frontend(FrontendKind.CLUSTER_IP, f"::1:{number:x}", 80),),
            (Endpoint(f"::2:{number:x}", 80),),
            (),
        )
        for number in range(1, 100)
    ]
    assert not bench.compare(by_name(*ports, *many)).refused
    bench.start()
    again = bench.compare()
    assert not again.operations
    assert not again.refused


FOREIGN = (
    "a\n-A INPUT -j KUBE-EXTERNAL-SERVICES\nCOMMIT\n*nat\n:KUBE-SVC-FORGED - [0:0]",
    "q\"\\'\nCOMMIT\n*nat\n-A KUBE-SERVICES -j ACCEPT",
    "cr\r-A KUBE-SERVICES -j ACCEPT\rCOMMIT",
)


def test_foreign_rules_do_not_disturb(bench: Bench) -> None:
    """Comments with newlines and bytes that are no UTF-8, interfaces and chains with quotes."""
    bench.put(port(1), port(2))
    for note in (*(text.encode() for text in FOREIGN), b"\xff\xfe \x80"):
        os_run(bench, b"-A", b"INPUT", b"-m", b"comment", b"--comment", note, b"-j", b"ACCEPT")
    os_run(bench, b"-A", b"FORWARD", b"-i", b'"odd', b"-j", b"ACCEPT")
    os_run(bench, b"-A", b"FORWARD", b"-i", b'a"b', b"-m", b"comment", b"--comment", b"x\nCOMMIT")
    os_run(bench, b"-N", b'"chain')
    os_run(bench, b"-A", b"OUTPUT", b"-j", b'"chain')
    bench.start()
    again = bench.compare()
    assert not again.operations
    assert bench.serves(port(1))
    assert not bench.put(port(3)).refused
    # Nor do they hide that something of ours is missing.
    bench.space.run(*bench_command(bench, "-t", "filter", "-F", "FORWARD"))
    bench.space.run(*bench_command(bench, "-t", "filter", "-F", "KUBE-NODEPORTS"))
    assert bench.compare().operations["rule_written"]
    assert len(bench.saved()["filter"]["KUBE-NODEPORTS"]) == 3
    assert any("-j KUBE-FORWARD" in rule for rule in bench.saved()["filter"]["FORWARD"])
    bench.space.call(bench.backend.clean_up)
    assert not any(re.match("KUBE-(SVC|SEP|SERV)", c) for t in bench.saved().values() for c in t)


def os_run(bench: Bench, *arguments: bytes) -> None:
    command = [bench.programs._list.encode(), b"-t", b"filter", *arguments]
    bench.space.call(lambda: subprocess.run(command, check=True))


def test_without_descriptors_a_sync_fails_and_the_next_succeeds(bench: Bench) -> None:
    bench.put(port(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))

    def starved() -> Outcome:
        plan = bench.backend.plan_changes(Changes({port(2).name: port(2)}), None)
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
