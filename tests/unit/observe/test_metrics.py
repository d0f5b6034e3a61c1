"""The metrics against the table in docs/compatibility.md, which was measured at kube-proxy 1.36."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry, Counter, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from svcproxy import __version__
from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.accounting.core.readings import Reading
from svcproxy.accounting.service_metrics import ServiceCollector
from svcproxy.config import ProxyMode
from svcproxy.kube.event_recorder import LoggingRecorder
from svcproxy.model.names import IPFamily, Kind, Protocol, ServicePortName
from svcproxy.modes import mode_spec
from svcproxy.netlink import nfacct
from svcproxy.observe.exposition import render
from svcproxy.observe.health import HealthState
from svcproxy.observe.metrics import Metrics
from svcproxy.sync.report import Reporter
from tests.fakes.compatibility import rows

EXPONENTIAL = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128]
EXPONENTIAL += [0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384]
PROGRAMMING = [0, 0.25, 0.5, *range(1, 60), *range(60, 120, 5)]
PROGRAMMING += [120, 150, 180, 210, 240, 270, 300]
RECORDED = Path(__file__).parents[2] / "fakes" / "kube_proxy_1_36_metrics.txt"


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate nfacct counters; tests/kernel/test_metrics.py uses real ones."""
    monkeypatch.setattr(nfacct, "packets", lambda names: dict.fromkeys(names, 1))


class Listed(NamedTuple):
    """A row of the table."""

    name: str
    type: str
    labels: frozenset[str]
    modes: frozenset[ProxyMode]
    here: str

    @property
    def served(self) -> bool:
        return not self.here.startswith("not applicable")


def listed() -> list[Listed]:
    """The rows of "Metrics", with "all" written out."""
    return [
        Listed(
            name,
            kind,
            frozenset(re.findall(r"\w+", labels)),
            frozenset(ProxyMode)
            if modes == "all"
            else frozenset(map(ProxyMode, modes.split(", "))),
            here,
        )
        for name, kind, labels, modes, here in rows("Metrics", columns=5)
    ]


def recorded() -> Iterator[Listed]:
    """The metrics that a real kube-proxy has served."""
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, kind, labels, modes = line.split()
            yield Listed(
                name,
                kind,
                frozenset(labels.split(",")) - {"-"},
                frozenset(ProxyMode)
                if modes == "all"
                else frozenset(map(ProxyMode, modes.split(","))),
                "",
            )


def touched(mode: ProxyMode = ProxyMode.IPTABLES) -> Metrics:
    """Metrics in which every series has a value."""
    metrics = Metrics(mode, mode_spec(mode).metrics)
    health = HealthState(sync_period=30.0, clock=lambda: 0.0, wall=lambda: 0.0)
    Reporter(IPFamily.IPV4, metrics, health, LoggingRecorder())
    web = FrontendKey(IPFamily.IPV4, "10.96.0.10", 80, Protocol.TCP)
    port = ServicePortName("default", "web", "http", Protocol.TCP)
    metrics.registry.register(
        ServiceCollector(
            lambda: {IPFamily.IPV4: {web: port}},
            lambda: 0,
            connections=True,
            read=lambda *_: {web: Reading(1, 1, 1)},
        )
    )
    for attribute in vars(metrics).values():
        names = getattr(attribute, "_labelnames", ())
        child = attribute.labels(*("x" for _ in names)) if names else attribute
        for act in ("inc", "observe"):
            if hasattr(child, act):
                child.inc() if act == "inc" else child.observe(0.003)
    return metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    found = text_string_to_metric_families(render(metrics.registry).body.decode())
    return {f"{f.name}_total" if f.type == "counter" else f.name: f for f in found}


@pytest.mark.parametrize("mode", ProxyMode)
def test_each_mode_has_exactly_the_metrics_of_the_table(mode: ProxyMode) -> None:
    found = {
        (name, family.type, frozenset(key for s in family.samples for key in s.labels) - {"le"})
        for name, family in families(touched(mode)).items()
    }
    wanted = {
        (row.name, row.type, row.labels) for row in listed() if row.served and mode in row.modes
    }
    assert found == wanted


def test_the_table_has_all_metrics_of_kube_proxy() -> None:
    exact = {row.name: row for row in listed()}
    prefixes = tuple(name.removesuffix("*") for name in exact if name.endswith("*"))
    for theirs in recorded():
        row = exact.get(theirs.name)
        if row is None:
            assert theirs.name.startswith(prefixes), theirs.name
        elif row.served:
            assert row[:3] == theirs[:3]
            assert row.modes >= theirs.modes
            words = ("same", "better: ") if row.modes == theirs.modes else ("better: ",)
            assert row.here.startswith(words)
        else:
            assert row.here.startswith("not applicable, because ")


def test_kube_proxy_s_metrics_state_their_stability() -> None:
    for name, family in families(touched()).items():
        own = not name.startswith(("kubeproxy_", "rest_client_"))
        assert family.documentation.startswith("[ALPHA] ") is not own


@pytest.mark.parametrize(
    ("name", "buckets"),
    [
        ("sync_proxy_rules_duration_seconds", EXPONENTIAL),
        ("sync_full_proxy_rules_duration_seconds", EXPONENTIAL),
        ("sync_partial_proxy_rules_duration_seconds", EXPONENTIAL),
        ("conntrack_reconciler_sync_duration_seconds", EXPONENTIAL),
        ("network_programming_duration_seconds", PROGRAMMING),
    ],
)
def test_buckets(name: str, buckets: list[float]) -> None:
    family = families(touched())[f"kubeproxy_{name}"]
    found = [s.labels["le"] for s in family.samples if s.name.endswith("_bucket")]
    wanted = [f"{end:g}" for end in buckets]
    assert found[: len(wanted) + 1] == [*wanted, "+Inf"]


def test_global_settings_of_the_library_are_not_changed() -> None:
    Metrics()
    registry = CollectorRegistry()
    Counter("other", "A metric of another program.", registry=registry)
    assert b"other_created" in generate_latest(registry)


def test_two_daemons_in_one_process_have_separate_metrics() -> None:
    one, other = Metrics(), Metrics()
    one.service_changes.inc()
    assert families(other)["kubeproxy_sync_proxy_rules_service_changes_total"].samples[0].value == 0


def test_build_info_has_the_version() -> None:
    (sample,) = families(Metrics(ProxyMode.NFTABLES))["svcproxy_build_info"].samples
    assert (sample.labels["version"], sample.labels["mode"]) == (__version__, "nftables")
    assert sample.value == 1


def test_every_family_has_a_help_text_of_one_sentence() -> None:
    for family in families(touched()).values():
        assert family.documentation.endswith(".") or family.name.startswith("python_gc")


def test_counters_are_exported_before_the_first_failure() -> None:
    metrics = Metrics(ProxyMode.NFTABLES)
    health = HealthState(sync_period=30.0, clock=lambda: 0.0, wall=lambda: 0.0)
    Reporter(IPFamily.IPV6, metrics, health, LoggingRecorder())
    text = render(metrics.registry).body.decode()
    for name in ("nftables_sync_failures", "nftables_cleanup_failures"):
        assert f'kubeproxy_sync_proxy_rules_{name}_total{{ip_family="IPv6"}} 0\n' in text
    for kind in Kind:
        assert f'svcproxy_skipped_objects_total{{kind="{kind}"}} 0\n' in text
        assert f'svcproxy_watch_restarts_total{{kind="{kind}"}} 0\n' in text
    assert "last_timestamp_seconds{" not in text, "it would be taken for 1970"


def test_process_names_cannot_create_unlimited_series() -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.count_external_change(f"process-{number}")
    metrics.count_external_change("process-3")
    samples = families(metrics)["svcproxy_foreign_changes_total"].samples
    counts = {sample.labels["process"]: sample.value for sample in samples}
    assert (len(counts), counts["process-3"], counts["other"]) == (21, 2, 80)
