import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from svcproxy import __version__
from svcproxy.observe.metrics import Metrics

EXPONENTIAL = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128]
EXPONENTIAL += [0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384]
PROGRAMMING = [0.25, 0.5, *range(1, 60), *range(60, 120, 5)]
PROGRAMMING += [120, 150, 180, 210, 240, 270, 300]

# name as scraped, type, labels
KUBE_PROXY = """
kubeproxy_sync_proxy_rules_duration_seconds histogram ip_family
kubeproxy_sync_full_proxy_rules_duration_seconds histogram ip_family
kubeproxy_sync_partial_proxy_rules_duration_seconds histogram ip_family
kubeproxy_network_programming_duration_seconds histogram ip_family
kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge ip_family
kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds gauge ip_family
kubeproxy_sync_proxy_rules_endpoint_changes_pending gauge
kubeproxy_sync_proxy_rules_endpoint_changes_total counter
kubeproxy_sync_proxy_rules_service_changes_pending gauge
kubeproxy_sync_proxy_rules_service_changes_total counter
kubeproxy_sync_proxy_rules_iptables_total gauge ip_family table
kubeproxy_sync_proxy_rules_iptables_last gauge ip_family table
kubeproxy_sync_proxy_rules_iptables_restore_failures_total counter ip_family
kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total counter ip_family
kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge ip_family traffic_policy
kubeproxy_conntrack_reconciler_sync_duration_seconds histogram ip_family
kubeproxy_conntrack_reconciler_deleted_entries_total counter ip_family
kubeproxy_proxy_healthz_total counter code
kubeproxy_proxy_livez_total counter code
"""
OURS = """
svcproxy_skipped_objects_total counter kind
svcproxy_watch_restarts_total counter kind
svcproxy_kernel_operations_total counter ip_family operation
svcproxy_build_info gauge version
svcproxy_address_conflicts gauge ip_family
svcproxy_drift_repairs_total counter ip_family
"""
PROCESS = """
process_virtual_memory_bytes gauge
process_resident_memory_bytes gauge
process_start_time_seconds gauge
process_cpu_seconds_total counter
process_open_fds gauge
process_max_fds gauge
"""


def entries(*tables: str) -> list[str]:
    return [line for table in tables for line in table.splitlines() if line]


def touched() -> Metrics:
    """Metrics in which every series has a value."""
    metrics = Metrics()
    for histogram in (
        metrics.sync_proxy_rules_duration,
        metrics.sync_full_proxy_rules_duration,
        metrics.sync_partial_proxy_rules_duration,
        metrics.network_programming_duration,
        metrics.conntrack_duration,
    ):
        histogram.labels(ip_family="IPv4").observe(0.003)
    metrics.sync_proxy_rules_last_timestamp.labels(ip_family="IPv4").set(5)
    metrics.sync_proxy_rules_last_queued_timestamp.labels(ip_family="IPv4").set(4)
    metrics.endpoint_changes_pending.set(1)
    metrics.endpoint_changes.inc()
    metrics.service_changes_pending.set(1)
    metrics.service_changes.inc()
    metrics.iptables_rules.labels(table="nat", ip_family="IPv4").set(12)
    metrics.iptables_rules_last.labels(table="nat", ip_family="IPv4").set(3)
    metrics.no_local_endpoints.labels(traffic_policy="internal", ip_family="IPv4").set(1)
    metrics.iptables_restore_failures.labels(ip_family="IPv4").inc()
    metrics.iptables_partial_restore_failures.labels(ip_family="IPv4").inc()
    metrics.proxy_healthz.labels(code="200").inc()
    metrics.proxy_livez.labels(code="503").inc()
    metrics.skipped_objects.labels(kind="Service").inc()
    metrics.watch_restarts.labels(kind="Node").inc()
    metrics.conntrack_deleted.labels(ip_family="IPv4").inc()
    metrics.drift_repairs.labels(ip_family="IPv4").inc()
    metrics.address_conflicts.labels(ip_family="IPv4").set(1)
    metrics.kernel_operations.labels(ip_family="IPv6", operation="add").inc()
    return metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    _, body = metrics.render()
    found = text_string_to_metric_families(body.decode())
    return {f"{f.name}_total" if f.type == "counter" else f.name: f for f in found}


def test_names_types_and_labels() -> None:
    found = {
        f"{name} {' '.join([family.type, *sorted({*family.samples[0].labels} - {'le'})])}"
        for name, family in families(touched()).items()
    }
    assert found == {*entries(KUBE_PROXY, OURS, PROCESS)}


def test_names_stand_in_the_text_exactly_so() -> None:
    lines = touched().render()[1].decode().splitlines()
    for entry in entries(KUBE_PROXY, OURS):
        name, kind = entry.split()[:2]
        assert f"# TYPE {name} {kind}" in lines
        sample = f"{name}_bucket" if kind == "histogram" else name
        assert any(line.startswith((f"{sample}{{", f"{sample} ")) for line in lines)


@pytest.mark.parametrize(
    ("name", "buckets"),
    [
        ("sync_proxy_rules_duration_seconds", EXPONENTIAL),
        ("sync_full_proxy_rules_duration_seconds", EXPONENTIAL),
        ("sync_partial_proxy_rules_duration_seconds", EXPONENTIAL),
        ("network_programming_duration_seconds", PROGRAMMING),
    ],
)
def test_buckets(name: str, buckets: list[float]) -> None:
    family = families(touched())[f"kubeproxy_{name}"]
    found = [float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")]
    assert found == [*buckets, float("inf")]


def test_no_created_series_in_any_format() -> None:
    metrics = touched()
    for accept in ("", "application/openmetrics-text; version=1.0.0"):
        assert b"_created" not in metrics.render(accept)[1]


def test_process_wide_settings_of_the_library_stay_as_they_are() -> None:
    from prometheus_client import CollectorRegistry, Counter, generate_latest  # noqa: PLC0415

    Metrics()
    registry = CollectorRegistry()
    Counter("other", "Of somebody else.", registry=registry)
    assert b"other_created" in generate_latest(registry)


def test_two_daemons_in_one_process_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.service_changes.inc()
    assert families(other)["kubeproxy_sync_proxy_rules_service_changes_total"].samples[0].value == 0


def test_build_info_tells_the_version() -> None:
    (sample,) = families(Metrics())["svcproxy_build_info"].samples
    assert (sample.labels, sample.value) == ({"version": __version__}, 1)


def test_openmetrics_for_those_who_ask() -> None:
    content_type, body = touched().render("application/openmetrics-text;version=1.0.0,*/*;q=0.1")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    parsed = openmetrics_families(body.decode())  # type: ignore[no-untyped-call]
    names = {family.name for family in parsed}
    assert "kubeproxy_sync_proxy_rules_iptables_total" in names
    assert "kubeproxy_proxy_healthz" in names


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/html", "application/openmetrics-text;version=one", "text/plain"]
)
def test_plain_text_for_all_others(accept: str) -> None:
    content_type, body = touched().render(accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert body.startswith(b"# HELP ")


def test_every_family_has_a_help_text_of_one_sentence() -> None:
    for family in families(touched()).values():
        assert family.documentation.endswith(".")
