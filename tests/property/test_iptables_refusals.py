"""All Service ports that the kernel accepts are programmed, whichever others it refuses."""

from collections.abc import Mapping

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svcproxy.backends.base import Desired, Outcome
from svcproxy.backends.iptables.bisection import Bisection, KernelAccess
from svcproxy.backends.iptables.core.plan import Observed, Plan
from svcproxy.backends.iptables.core.planner import Planner
from svcproxy.backends.iptables.core.restore_inputs import restore_inputs
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.xtables.core.restoretext import RestoreRefused, refusal
from svcproxy.backends.xtables.core.rule_text import NAT
from svcproxy.backends.xtables.core.savefile import Saved
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from tests.examples import examples
from tests.fakes.restored_tables import BUILT_IN, RestoredTables
from tests.property.test_iptables_incremental import canonical

SETTINGS = IptablesSettings(IPFamily.IPV4)
BAD = 6666
State = tuple[tuple[int, ...], Verdict]
Step = tuple[bool, Mapping[int, State | None]]
Ports = Mapping[ServicePortName, ServicePort | None]


class Refusing:
    """Fake tables that refuse every rule with a certain port, in the way of the real programs."""

    def __init__(self, *, names_lines: bool) -> None:
        self.tables = RestoredTables()
        self.planner = Planner(SETTINGS)
        self.names_lines = names_lines
        self.kernel = KernelAccess(self.execute, self.observed, lambda: None)
        self.restores = 0

    def observed(self) -> Observed:
        return Observed(self.tables.saved(), frozenset(self.tables.sets))

    def execute(self, plan: Plan) -> Outcome:
        self.tables.create_sets(plan.create_sets)
        for text in restore_inputs(plan, size=3):
            self.restores += 1
            self.restore(text)
        self.tables.destroy_sets(plan.destroy_sets)
        return Outcome({"restore": 1}, refused=plan.refused)

    def restore(self, text: str) -> None:
        lines = text.split("\n")
        bad = [n for n, line in enumerate(lines) if line.endswith(f":{BAD}")]
        if not bad:
            self.tables.restore(text)
            return
        commit = lines.index("COMMIT", bad[0])
        before = max((n for n in range(bad[0]) if lines[n] == "COMMIT"), default=-1)
        self.tables.restore("\n".join(lines[: before + 1]))
        number = (bad[0] if self.names_lines else commit) + 1
        raise refusal("restore", f"iptables-restore: line {number} failed", text)

    def change(self, ports: Ports) -> Mapping[ServicePortName, str]:
        plan = self.planner.plan_changes(ports)
        try:
            return self.execute(plan).refused
        except RestoreRefused as error:
            outcome = Bisection(self.planner, self.kernel, error).apply_changes(ports)
            self.planner.note_refused(ports, outcome.refused)
            return outcome.refused

    def compare(
        self, ports: Mapping[ServicePortName, ServicePort]
    ) -> Mapping[ServicePortName, str]:
        desired = Desired(ports, SETTINGS)
        plan = self.planner.plan(desired, SETTINGS, self.observed())
        try:
            return self.execute(plan).refused
        except RestoreRefused as error:
            outcome = Bisection(self.planner, self.kernel, error).apply_all(desired, SETTINGS)
            self.planner.note_refused(ports, outcome.refused)
            return outcome.refused


def made(number: int, targets: tuple[int, ...], verdict: Verdict, key: int) -> ServicePort:
    """Return a Service port; ``key`` selects its cluster IP, which another port may have had."""
    frontends = (
        Frontend(FrontendKind.CLUSTER_IP, f"10.96.0.{key}", 80, local=False, verdict=verdict),
    )
    name = ServicePortName("ns", f"s{number}", "", Protocol.TCP)
    endpoints = tuple(Endpoint(f"10.244.0.{n}", target) for n, target in enumerate(targets))
    affinity = 60 if len(targets) == 2 else 0
    return ServicePort(name, frontends, endpoints, (), affinity_seconds=affinity)


numbers = st.integers(1, 8)
port_states = st.tuples(
    st.lists(st.sampled_from((80, 81, BAD)), min_size=1, max_size=3).map(tuple),
    st.sampled_from((Verdict.FORWARD, Verdict.FORWARD, Verdict.REJECT)),
)
batches = st.dictionaries(numbers, st.none() | port_states, max_size=8)


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.booleans(), batches), min_size=1, max_size=5), st.data())
def test_all_other_ports_are_programmed(steps: list[Step], data: st.DataObject) -> None:
    machine = Refusing(names_lines=data.draw(st.booleans()))
    machine.compare({})
    wanted: dict[ServicePortName, ServicePort] = {}
    good: dict[ServicePortName, ServicePort] = {}
    for from_scratch, batch in steps:
        changes: dict[ServicePortName, ServicePort | None] = {}
        for number, state in batch.items():
            targets, verdict = state or ((80,), Verdict.FORWARD)
            port = made(number, targets, verdict, key=number)
            changes[port.name] = port if state else None
        wanted = {n: p for n, p in (wanted | changes).items() if p is not None}
        refused = machine.compare(wanted) if from_scratch else machine.change(changes)
        for name in list(good):
            if name not in wanted:
                del good[name]
        concerned = wanted if from_scratch else {n: p for n, p in changes.items() if p is not None}
        for name, port in concerned.items():
            if is_bad(port):
                assert name in refused
            else:
                assert name not in refused
                good[name] = port
        fresh = Refusing(names_lines=True)
        fresh.compare(good)
        assert in_use(machine) == in_use(fresh)
        assert machine.restores < 200


def in_use(machine: Refusing) -> Saved:
    """Return all chains that can be reached from the built-in chains.

    New chains that were loaded before a refused input stay until the next resync.
    """
    saved = canonical(machine.tables.saved())
    nat = saved[NAT]
    reached, waiting = set[str](), list(BUILT_IN[NAT])
    while waiting:
        chain = waiting.pop()
        if chain in nat and chain not in reached:
            reached.add(chain)
            waiting.extend(rule.rpartition("-j ")[2] for rule in nat[chain])
    return {**saved, NAT: {chain: rules for chain, rules in nat.items() if chain in reached}}


def is_bad(port: ServicePort) -> bool:
    forwarded = any(f.verdict is not Verdict.REJECT for f in port.frontends)
    return forwarded and any(e.port == BAD for e in port.cluster_endpoints)


def test_a_frontend_that_moves_to_another_port_stays_there() -> None:
    """The kernel refused the former owner's update; its retry must not remove the frontend."""
    machine = Refusing(names_lines=True)
    first = made(1, (80,), Verdict.FORWARD, key=1)
    machine.compare({first.name: first})
    moved = made(1, (BAD,), Verdict.FORWARD, key=2)
    other = made(3, (80,), Verdict.FORWARD, key=1)
    assert set(machine.change({first.name: moved, other.name: other})) == {first.name}
    assert set(machine.change({first.name: moved})) == {first.name}
    right = made(1, (81,), Verdict.FORWARD, key=2)
    assert not machine.change({first.name: right})
    fresh = Refusing(names_lines=True)
    fresh.compare({right.name: right, other.name: other})
    assert in_use(machine) == in_use(fresh)
