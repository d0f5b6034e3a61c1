"""The loop of one family, stepped manually, with a dict as the kernel."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from svcproxy.backends.base import (
    Backend,
    BackendError,
    Desired,
    ExternalChange,
    Maintenance,
    Outcome,
    TransactionError,
)
from svcproxy.backends.settings import Settings
from svcproxy.kube.event_recorder import LoggingRecorder
from svcproxy.model.names import IPFamily, Kind, NamespacedName, Protocol
from svcproxy.model.objects import EndpointSlice, Node, Service, ServicePortSpec
from svcproxy.observe.health import HealthState
from svcproxy.observe.metrics import Metrics
from svcproxy.state.desired import Changes, DesiredState
from svcproxy.sync.after_sync import SyncResult
from svcproxy.sync.core.schedule import Schedule
from svcproxy.sync.loop import FamilyLoop
from svcproxy.sync.report import Reporter
from tests.fakes.sink import key_of

Content = dict[str, int]
STAGES = ("queued", "computed", "applied", "total")


class DictBackend:
    """A backend whose kernel is a dict: the number of frontends of each Service port."""

    family = IPFamily.IPV4
    max_skipped_resyncs = 9
    settings = Settings(IPFamily.IPV4)

    def __init__(self) -> None:
        self.kernel: Content = {}
        self.steps: list[str] = []
        self.broken = False
        self.unchanged = False
        self.takes: dict[str, float] = {}
        self.pauses: list[Maintenance] = []
        self.should_yield: Callable[[], bool] = lambda: False
        self.maintained = 0
        self.pass_time: Callable[[float], None] = lambda _: None

    def probe(self) -> None:
        pass

    def is_unchanged(self) -> bool:
        return self.unchanged

    def read(self) -> Content:
        self._step("read")
        return dict(self.kernel)

    def plan(self, desired: Desired, observed: Content) -> Content:
        return {str(name): len(port.frontends) for name, port in desired.ports.items()}

    def plan_changes(self, changes: Changes, settings: Settings) -> Content | None:
        self.pass_time(self.takes.get("plan_changes", 0.0))
        if changes.node_changed and settings.node_address:
            return None
        kept = dict(self.kernel)
        for name, port in changes.ports.items():
            kept.pop(str(name), None)
            if port is not None:
                kept[str(name)] = len(port.frontends)
        return kept

    def apply(self, plan: Content) -> Outcome:
        self._step("apply")
        self.pass_time(self.takes.get("apply", 0.0))
        self.kernel = plan
        return Outcome(operations={"written": len(plan)})

    def maintain(self, should_yield: Callable[[], bool]) -> Maintenance:
        self.maintained += 1
        self.should_yield = should_yield
        return self.pauses.pop(0) if self.pauses else Maintenance()

    def _step(self, name: str) -> None:
        if self.broken:
            raise TransactionError("the kernel refused")
        self.steps.append(name)


def _settings(node: Node | None) -> Settings:
    cidrs = node.pod_cidrs if node else ()
    return Settings(IPFamily.IPV4, node_address=cidrs[0] if cidrs else "")


class Stage:
    """A loop, its backend, and a clock that only tests move."""

    def __init__(self, backend: DictBackend | None = None) -> None:
        self.now = 1000.0
        self.backend = backend or DictBackend()
        self.backend.pass_time = self.spend
        self.metrics = Metrics()
        self.health = HealthState(
            sync_period=30.0, clock=lambda: self.now, wall=lambda: self.now, needs_node=False
        )
        self.results: list[SyncResult] = []
        checked: Backend[Content, Content] = self.backend
        self.loop = FamilyLoop(
            checked,
            DesiredState(IPFamily.IPV4, "node1"),
            Schedule(1.0, 30.0),
            Reporter(IPFamily.IPV4, self.metrics, self.health, LoggingRecorder()),
            settings_for=_settings,
            hooks=(self.results.append,),
            clock=lambda: self.now,
        )

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def stage_sum(self, stage: str) -> float:
        labels = {"ip_family": "IPv4", "stage": stage}
        return self.value("svcproxy_change_duration_seconds_sum", labels)

    def put(self, *objects: Any) -> None:
        for obj in objects:
            self.loop.inbox.put({key_of(obj): obj})

    def remove(self, name: str) -> None:
        self.loop.inbox.put({(Kind.SERVICE, NamespacedName("ns", name)): None})

    def synced(self) -> None:
        for kind in Kind:
            self.loop.inbox.synced(kind)

    def step(self, later: float = 0.0) -> list[str]:
        """Let time pass, step, and return the backend methods that were called."""
        self.now += later
        self.backend.steps.clear()
        self.loop.step()
        return list(self.backend.steps)

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        return self.metrics.registry.get_sample_value(name, dict(labels or {})) or 0.0


def service(name: str, number: int = 1) -> Service:
    ports = (ServicePortSpec("http", Protocol.TCP, 80, 0),)
    return Service(NamespacedName("ns", name), ports, (f"10.96.0.{number}",))


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def running(stage: Stage) -> Stage:
    """A stage after its first sync."""
    stage.put(service("a"))
    stage.synced()
    stage.step()
    return stage


def test_nothing_is_programmed_before_all_lists_are_complete(stage: Stage) -> None:
    stage.put(service("a"))
    assert stage.step() == []
    for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE):
        stage.loop.inbox.synced(kind)
        assert stage.step(100.0) == []
    stage.loop.inbox.synced(Kind.NODE)
    assert stage.step() == ["read", "apply"]
    assert stage.backend.kernel == {"ns/a:http": 1}


def test_a_change_is_applied_without_reading(running: Stage) -> None:
    running.put(service("b", 2))
    assert running.step(5.0) == ["apply"]
    assert set(running.backend.kernel) == {"ns/a:http", "ns/b:http"}


def test_changes_within_the_minimum_interval_share_a_sync(running: Stage) -> None:
    running.put(service("b", 2))
    assert running.step(0.5) == []
    running.put(service("c", 3))
    assert running.step(0.6) == ["apply"]
    assert len(running.backend.kernel) == 3


def test_a_change_that_was_undone_needs_no_sync(running: Stage) -> None:
    running.put(service("b", 2))
    running.step(0.1)
    running.remove("b")
    assert running.step(5.0) == []
    assert running.health.healthz().status == 200


def test_objects_of_the_other_family_need_no_sync(running: Stage) -> None:
    name = NamespacedName("ns", "other-family")
    running.put(EndpointSlice(name, NamespacedName("ns", "a"), IPFamily.IPV6, (), ()))
    assert running.step(5.0) == []
    running.now += 100.0
    assert running.health.healthz().status == 200, "no change is waiting"


def test_a_failed_sync_is_retried_by_a_resync_with_all_changes(running: Stage) -> None:
    running.backend.broken = True
    running.put(service("b", 2))
    assert running.step(5.0) == []
    running.results.clear()
    running.backend.broken = False
    running.put(service("c", 3))
    assert running.step(0.5) == [], "the first retry is after one second"
    assert running.step(0.6) == ["read", "apply"]
    assert len(running.backend.kernel) == 3
    assert {str(n) for n in running.results[0].changes.ports} == {"ns/b:http", "ns/c:http"}
    labels = {"ip_family": "IPv4"}
    assert running.value("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", labels) == 1


def test_repeated_failures_make_the_proxy_unhealthy(running: Stage) -> None:
    running.backend.broken = True
    running.put(service("b", 2))
    for _ in range(30):
        running.step(3.0)
    assert running.health.livez().status == 503
    running.backend.broken = False
    running.step(60.0)
    assert running.health.livez().status == 200


def test_the_latency_of_a_change_is_measured_by_stages(running: Stage) -> None:
    running.results.clear()
    before = {stage: running.stage_sum(stage) for stage in STAGES}
    running.put(service("b", 2))
    running.now += 0.25
    running.put(service("b", 3))
    running.backend.takes = {"plan_changes": 0.5, "apply": 2.0}
    assert running.step(1.0) == ["apply"]
    spent = {stage: running.stage_sum(stage) - before[stage] for stage in STAGES}
    assert spent == {"queued": 1.25, "computed": 0.5, "applied": 2.0, "total": 3.75}
    count = "svcproxy_change_duration_seconds_count"
    assert running.value(count, {"ip_family": "IPv4", "stage": "total"}) == 2, "one for each sync"


def test_a_resync_without_changes_has_no_latency(running: Stage) -> None:
    before = running.stage_sum("total")
    assert running.step(31.0) == ["read", "apply"]
    assert running.stage_sum("total") == before


def test_the_age_of_the_oldest_waiting_change(running: Stage) -> None:
    age = ("svcproxy_queue_age_seconds", {"ip_family": "IPv4"})
    assert running.value(*age) == 0
    running.backend.broken = True
    running.put(service("b", 2))
    running.step(5.0)
    running.put(service("c", 3))
    running.now += 2.0
    assert running.value(*age) == 7
    running.backend.broken = False
    running.step(1.0)
    assert running.value(*age) == 0
    failures = ("svcproxy_sync_failures_total", {"ip_family": "IPv4", "kind": "partial"})
    assert running.value(*failures) == 1


def test_a_resync_runs_every_period_and_repairs(running: Stage) -> None:
    running.backend.kernel = {"external change": 1}
    assert running.step(29.0) == []
    assert running.step(1.1) == ["read", "apply"]
    assert running.backend.kernel == {"ns/a:http": 1}
    labels = {"ip_family": "IPv4"}
    assert running.value("svcproxy_drift_repairs_total", labels) == 1


def test_nine_of_ten_resyncs_of_an_unchanged_kernel_are_skipped(running: Stage) -> None:
    running.backend.unchanged = True
    steps = [bool(running.step(30.1)) for _ in range(20)]
    assert steps == ([False] * 9 + [True]) * 2
    running.backend.unchanged = False
    assert running.step(30.1)


def test_resyncs_of_an_unchanged_kernel_are_skipped_among_changes_too(
    running: Stage,
) -> None:
    running.backend.unchanged = True
    resynced = []
    for number in range(20):
        running.put(service("b", 2 + number))
        resynced.append(running.step(30.1) == ["read", "apply"])
    assert resynced == ([False] * 9 + [True]) * 2
    assert len(running.backend.kernel) == 2


def test_a_resync_after_a_failure_is_never_skipped(running: Stage) -> None:
    running.backend.broken = True
    running.put(service("b", 2))
    running.step(5.0)
    running.remove("b")
    running.backend.broken = False
    running.backend.unchanged = True
    assert running.step(2.0) == ["read", "apply"]


def test_a_reported_external_change_is_repaired_immediately(running: Stage) -> None:
    running.backend.unchanged = True
    running.backend.kernel = {"external change": 1}
    running.loop.inbox.request_resync(ExternalChange("nft", 1))
    assert running.step(1.1) == ["read", "apply"]
    assert running.backend.kernel == {"ns/a:http": 1}


@pytest.mark.parametrize(("affects_inputs", "repairs"), [(False, 1), (True, 0)])
def test_applying_a_changed_input_is_no_repair(
    running: Stage, repairs: int, *, affects_inputs: bool
) -> None:
    running.backend.kernel = {"another address": 1}
    running.loop.inbox.request_resync(
        ExternalChange("another program", 0, affects_inputs=affects_inputs)
    )
    assert running.step(1.1) == ["read", "apply"]
    assert running.value("svcproxy_drift_repairs_total", {"ip_family": "IPv4"}) == repairs


def test_changed_settings_lead_to_a_resync(running: Stage) -> None:
    running.put(Node("node1", pod_cidrs=("10.244.1.0/24",)))
    assert running.step(5.0) == ["read", "apply"]


def test_hooks_get_the_former_state_of_changed_ports(running: Stage) -> None:
    assert running.results[0].first
    running.results.clear()
    running.remove("a")
    running.step(5.0)
    (result,) = running.results
    assert not result.first
    (name,) = result.changes.ports
    assert result.changes.ports[name] is None
    assert result.changes.previous[name].frontends[0].address == "10.96.0.1"


def test_a_failing_hook_does_not_fail_the_sync(running: Stage) -> None:
    def fail(_: SyncResult) -> None:
        raise OSError("no such table")

    running.loop._hooks._hooks = (fail, running.results.append)
    running.results.clear()
    running.put(service("b", 2))
    assert running.step(5.0) == ["apply"]
    assert running.results


def test_the_loop_survives_an_unexpected_exception(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> Content:
        raise KeyError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(running.backend, "plan_changes", defect)
        running.put(service("b", 2))
        assert running.step(5.0) == ["read", "apply"], "a full sync succeeds"
    assert len(running.backend.kernel) == 2
    running.put(service("c", 3))
    assert running.step(2.0) == ["apply"]


RESTORES = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total"


def test_an_unexpected_exception_is_no_restore_failure(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> Outcome:
        raise KeyError("a defect")

    monkeypatch.setattr(running.backend, "apply", defect)
    running.put(service("b", 2))
    running.step(5.0)
    assert running.value(RESTORES, {"ip_family": "IPv4"}) == 0
    assert running.value("svcproxy_defects_total", {"where": "sync"}) == 1
    failures = {"ip_family": "IPv4", "kind": "full"}
    assert running.value("svcproxy_sync_failures_total", failures) == 1


def test_a_failed_read_is_no_restore_failure(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable() -> Content:
        raise BackendError("iptables-save failed")

    monkeypatch.setattr(running.backend, "read", unreadable)
    running.step(31.0)
    assert running.value(RESTORES, {"ip_family": "IPv4"}) == 0
    assert running.value("svcproxy_defects_total", {"where": "sync"}) == 0
    failures = {"ip_family": "IPv4", "kind": "full"}
    assert running.value("svcproxy_sync_failures_total", failures) == 1


def test_merged_changes_keep_the_state_before_the_first(running: Stage) -> None:
    state = DesiredState(IPFamily.IPV4, "node1")
    state.update_service(service("a"))
    created = state.checkout()
    state.update_service(service("a", 2))
    moved = state.checkout()
    state.delete_service(NamespacedName("ns", "a"))
    gone = state.checkout()
    (name,) = created.ports
    assert created.then(moved).previous == {}, "the port did not exist before both"
    assert moved.then(gone).previous[name].frontends[0].address == "10.96.0.1"
    assert moved.then(gone).ports == {name: None}


def test_maintenance_runs_after_the_delay_that_the_backend_asked_for(running: Stage) -> None:
    running.backend.pauses = [Maintenance(5.0), Maintenance(5.0)]
    running.put(service("b", 2))
    running.step(later=1.0)
    maintained = running.backend.maintained
    running.step(later=4.9)
    assert running.backend.maintained == maintained
    running.step(later=0.2)
    assert running.backend.maintained == maintained + 1
    running.step(later=5.1)
    assert running.backend.maintained == maintained + 2
    running.step(later=10.0)
    assert running.backend.maintained == maintained + 2, "it asked for no further call"


def test_there_is_no_maintenance_while_syncs_fail(running: Stage) -> None:
    running.backend.pauses = [Maintenance(1.5)]
    running.put(service("b", 2))
    running.step(later=1.0)
    maintained = running.backend.maintained
    running.backend.broken = True
    running.put(service("c", 3))
    running.step(later=1.0)
    running.step(later=0.6)
    assert running.backend.maintained == maintained, "the state of the kernel is unknown"
    running.backend.broken = False
    running.step(later=1.1)
    assert running.backend.maintained == maintained + 1


def test_a_change_that_maintenance_finds_leads_to_a_resync_and_counts_as_a_repair(
    running: Stage,
) -> None:
    running.backend.unchanged = True
    running.backend.pauses = [
        Maintenance(3.0),
        Maintenance(0.0, ExternalChange("", 0, certain=False)),
        Maintenance(4.0),
    ]
    running.put(service("b", 2))
    running.step(later=1.0)
    assert running.step(later=3.1) == []
    maintained = running.backend.maintained
    assert running.step(later=0.1) == ["read", "apply"]
    assert running.backend.maintained > maintained
    assert running.value("svcproxy_drift_repairs_total", {"ip_family": "IPv4"}) == 1


def test_maintenance_continues_after_it_found_a_change(running: Stage) -> None:
    """The backend may have other work to do before the resync, which may have to wait."""
    running.backend.pauses = [
        Maintenance(3.0),
        Maintenance(0.0, ExternalChange("", 0, certain=False)),
        Maintenance(0.02),
    ]
    running.put(service("b", 2))
    running.step(later=1.0)
    maintained = running.backend.maintained
    running.step(later=3.1)
    running.step()
    running.step(later=0.05)
    assert running.backend.maintained == maintained + 3


def test_maintenance_should_yield_while_changes_wait(running: Stage) -> None:
    running.put(service("b", 2))
    running.step(later=1.0)
    assert not running.backend.should_yield()
    running.put(service("c", 3))
    assert running.backend.should_yield()
    running.step(later=1.0)
    assert not running.backend.should_yield()
    running.loop.inbox.close()
    assert running.backend.should_yield()


def test_hooks_get_the_changes_of_a_sync_whose_report_failed(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.results.clear()
    running.put(service("b", 2))
    with monkeypatch.context() as patch:
        patch.setattr(running.health, "updated", lambda _: 1 / 0)
        running.step(5.0)
    assert running.results == []
    running.step(5.0)
    (result,) = running.results
    assert {name.service.name for name in result.changes.ports} == {"b"}
