"""/metrics/slis: health check results, in the form that all Kubernetes components use.

Source: component-base/metrics/prometheus/slis of Kubernetes 1.36 (KEP-3466).
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from svcproxy.observe.process_metrics import process_start_time

_TYPE = "healthz"


class HealthCheckResults:
    """Health check results, in a registry of their own; safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._last = Gauge(
            "kubernetes_healthcheck",
            "[STABLE] Result of the last run of a health check: 1 if it passed.",
            ("name", "type"),
            registry=self.registry,
        )
        self._count = Counter(
            "kubernetes_healthchecks",
            "[STABLE] Runs of a health check, by result.",
            ("name", "type", "status"),
            registry=self.registry,
        )
        self.registry.register(_StartTime())

    def passed(self, name: str) -> None:
        """Record that a check passed."""
        self._last.labels(name, _TYPE).set(1)
        self._count.labels(name, _TYPE, "success").inc()

    def reset(self) -> None:
        """Delete all results."""
        self._last.clear()
        self._count.clear()


class _StartTime(Collector):
    """The start time of the process, the only process metric of this page."""

    def collect(self) -> Iterator[Metric]:
        """Yield the start time."""
        yield GaugeMetricFamily(
            "process_start_time_seconds",
            "[ALPHA] Start time of the process since the epoch.",
            process_start_time(),
        )
