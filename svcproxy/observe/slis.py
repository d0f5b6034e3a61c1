"""/metrics/slis: what the health checks had to say, as all Kubernetes components tell it.

Source: component-base/metrics/prometheus/slis of Kubernetes 1.36 (KEP-3466).
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from svcproxy.observe.process import started_at

_TYPE = "healthz"


class HealthChecks:
    """The results of health checks, in a registry of their own; safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._last = Gauge(
            "kubernetes_healthcheck",
            "[STABLE] Whether a health check was passed when it was last made.",
            ("name", "type"),
            registry=self.registry,
        )
        self._count = Counter(
            "kubernetes_healthchecks",
            "[STABLE] How often a health check was made, by its result.",
            ("name", "type", "status"),
            registry=self.registry,
        )
        self.registry.register(_StartTime())

    def passed(self, name: str) -> None:
        """Note that a check was passed."""
        self._last.labels(name, _TYPE).set(1)
        self._count.labels(name, _TYPE, "success").inc()

    def reset(self) -> None:
        """Forget all results."""
        self._last.clear()
        self._count.clear()


class _StartTime(Collector):
    """When the process was started, and nothing else of it."""

    def collect(self) -> Iterator[Metric]:
        """Yield that one metric."""
        yield GaugeMetricFamily(
            "process_start_time_seconds",
            "[ALPHA] When the process was started, since the epoch.",
            started_at(),
        )
