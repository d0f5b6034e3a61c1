"""The backend plans without I/O, and probes ipsets before it applies the first plan with them."""

from collections.abc import Iterable
from typing import Any

import pytest

from svcproxy.backends.base import BackendError, Desired
from svcproxy.backends.iptables import probing
from svcproxy.backends.iptables.backend import IptablesBackend
from svcproxy.backends.iptables.core.plan import Plan
from svcproxy.backends.settings import Settings
from svcproxy.backends.xtables import change_tracker
from svcproxy.backends.xtables.commands import Variant
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.state.desired import Changes
from tests.fakes.restored_tables import RestoredTables

SETTINGS = Settings(IPFamily.IPV4)


class Programs:
    """Stands for iptables; ``calls`` lists what the backend asked of the kernel, in order."""

    variant = Variant.NFT
    family = IPFamily.IPV4

    def __init__(self, *, ipset: bool) -> None:
        self.tables = RestoredTables()
        self.ipset = ipset
        self.locked = False
        self.calls: list[str] = []

    def save(self, *_tables: str) -> str:
        self.calls.append("save")
        lines = []
        for table, chains in self.tables.tables.items():
            lines.append(f"*{table}")
            lines += [f":{chain} - [0:0]" for chain in chains]
            lines += [f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules]
        return "\n".join((*lines, ""))

    def list_chain(self, _table: str, _chain: str) -> str:
        self.calls.append("list chain")
        return ""

    def restore(self, text: str) -> None:
        self.calls.append("restore")
        self.tables.restore(text)

    def accepts(self, _table: str, *matches: str) -> bool:
        self.calls.append("accepts")
        if self.locked:
            raise BackendError("locked")
        return self.ipset or not any("--match-set" in match for match in matches)


class Sets:
    """Stands for ipset."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs

    def names(self) -> frozenset[str]:
        self.programs.calls.append("list sets")
        return frozenset(self.programs.tables.sets)

    def create(self, names: Iterable[str]) -> None:
        self.programs.calls.append("create sets")
        self.programs.tables.create_sets(names)

    def destroy(self, names: Iterable[str]) -> list[str]:
        self.programs.calls.append("destroy sets")
        self.programs.tables.destroy_sets(names)
        return []


@pytest.fixture(params=[True, False], ids=["ipset", "no ipset"])
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs(ipset=request.param)

    def record(call: str, result: Any) -> Any:
        def called(*_arguments: Any) -> Any:
            made.calls.append(call)
            return result

        return called

    monkeypatch.setattr(change_tracker, "generation", record("generation", 1))
    monkeypatch.setattr(probing, "conntrack_is_liberal", record("sysctl", False))  # noqa: FBT003
    monkeypatch.setattr(probing, "_create_counters", record("nfacct", False))  # noqa: FBT003
    monkeypatch.setattr("svcproxy.backends.iptables.backend.AffinitySets", lambda _: Sets(made))
    monkeypatch.setattr("svcproxy.backends.iptables.backend.sysctl.ensure", lambda _: True)
    return made


@pytest.fixture
def backend(programs: Programs) -> IptablesBackend:
    made = IptablesBackend(programs, SETTINGS)  # type: ignore[arg-type]
    made.probe()
    return made


def port(number: int, affinity: int = 0) -> ServicePort:
    name = ServicePortName("ns", f"s{number}", "", Protocol.TCP)
    address = f"10.96.0.{number}"
    frontend = Frontend(FrontendKind.CLUSTER_IP, address, 80, local=False, verdict=Verdict.FORWARD)
    endpoints = (Endpoint(f"10.244.0.{number}", 80),)
    return ServicePort(name, (frontend,), endpoints, (), affinity_seconds=affinity)


def desired(*ports: ServicePort) -> Desired:
    return Desired({port.name: port for port in ports}, SETTINGS)


def changes(*ports: ServicePort) -> Changes:
    return Changes({port.name: port for port in ports})


def planned(backend: IptablesBackend, *ports: ServicePort) -> Plan:
    plan = backend.plan_changes(changes(*ports), SETTINGS)
    assert plan is not None
    return plan


def test_planning_does_not_touch_the_kernel(backend: IptablesBackend, programs: Programs) -> None:
    observed = backend.read()
    programs.calls.clear()
    whole = backend.plan(desired(port(1), port(2, affinity=60)), observed)
    assert programs.calls == []
    backend.apply(whole)
    programs.calls.clear()
    planned(backend, port(3, affinity=60))
    assert (
        backend.plan_changes(changes(port(4)), Settings(IPFamily.IPV4, masquerade_all=True)) is None
    )
    assert programs.calls == []


def test_ipsets_are_not_probed_without_affinity(
    backend: IptablesBackend, programs: Programs
) -> None:
    backend.apply(backend.plan(desired(port(1)), backend.read()))
    backend.apply(planned(backend, port(2)))
    assert not any("sets" in call for call in programs.calls)


@pytest.mark.parametrize("incremental", [True, False])
def test_ipsets_are_probed_once_before_the_first_plan_with_affinity(
    backend: IptablesBackend, programs: Programs, *, incremental: bool
) -> None:
    if incremental:
        backend.apply(backend.plan(desired(port(1)), backend.read()))
        programs.calls.clear()
        outcome = backend.apply(planned(backend, port(2, affinity=60)))
    else:
        observed = backend.read()
        programs.calls.clear()
        outcome = backend.apply(backend.plan(desired(port(1), port(2, affinity=60)), observed))
    kernel = [call for call in programs.calls if call != "generation"]
    probe = ["create sets", "accepts", "destroy sets"]
    if programs.ipset:
        assert kernel == [*probe, "create sets", "restore"]
    else:
        assert kernel == [*probe, "save", "restore"], "planned again, from scratch"
    assert not outcome.refused
    programs.calls.clear()
    backend.apply(planned(backend, port(3, affinity=60)))
    assert "accepts" not in programs.calls
    rules = [rule for chain in programs.tables.tables["nat"].values() for rule in chain]
    assert any("--match-set" in rule for rule in rules) == programs.ipset
    assert any("-m recent" in rule for rule in rules) != programs.ipset
    assert bool(programs.tables.sets) == programs.ipset


def test_a_change_of_the_settings_needs_a_plan_from_scratch_once(backend: IptablesBackend) -> None:
    backend.apply(backend.plan(desired(port(1)), backend.read()))
    other = Settings(IPFamily.IPV4, masquerade_all=True)
    assert backend.plan_changes(changes(port(2)), other) is None
    backend.apply(backend.plan(Desired({}, other), backend.read()))
    assert backend.plan_changes(changes(port(2)), other) is not None
    equal = Settings(IPFamily.IPV4, masquerade_all=True)
    assert backend.plan_changes(changes(port(2)), equal) is not None


def test_settings_are_extended_once_for_each_settings_object(
    backend: IptablesBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.apply(backend.plan(desired(port(1)), backend.read()))
    monkeypatch.setattr("svcproxy.backends.iptables.backend.extend", None)
    planned(backend, port(2))
    backend.apply(backend.plan(desired(port(1)), backend.read()))


def test_a_failed_probe_is_repeated(backend: IptablesBackend, programs: Programs) -> None:
    plan = backend.plan(desired(port(1, affinity=60)), backend.read())

    programs.locked = True
    with pytest.raises(BackendError, match="locked"):
        backend.apply(plan)
    programs.locked = False
    backend.apply(backend.plan(desired(port(1, affinity=60)), backend.read()))
    assert bool(programs.tables.sets - {"KUBE-SEP-PROBE-IPv4"}) == programs.ipset
