"""The metrics of the daemon: kube-proxy's names and meanings, and a few of our own.

Dashboards and alerts made for kube-proxy keep working: names, labels, types and histogram
buckets are those of pkg/proxy/metrics/metrics.go in Kubernetes 1.36. Nothing here is global;
every ``Metrics`` brings its own registry.
"""

from collections.abc import Callable, Iterator
from itertools import chain

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import Collector

from svcproxy import __version__

_SYNC_BUCKETS = tuple(0.001 * 2**power for power in range(15))
_PROGRAMMING_BUCKETS = tuple(
    map(float, chain((0.25, 0.5), range(1, 60), range(60, 120, 5), range(120, 301, 30)))
)
_FAMILY = ("ip_family",)


class Metrics:
    """All metrics of one daemon, each a public attribute of the library's own type.

    Times are in seconds; ``ip_family`` is ``IPv4`` or ``IPv6``. Attributes are named after
    their metric without the ``kubeproxy_`` or ``svcproxy_`` prefix and the unit.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._add_syncs()
        self._add_changes()
        self._add_rules()
        self._add_conntrack()
        self._add_probes()
        self._add_own()
        ProcessCollector(registry=self.registry)

    def _add_syncs(self) -> None:
        self.sync_proxy_rules_duration = self._histogram(
            "sync_proxy_rules_duration_seconds", "Duration of a sync of one family."
        )
        self.sync_full_proxy_rules_duration = self._histogram(
            "sync_full_proxy_rules_duration_seconds",
            "Duration of a sync that wrote the whole rule set.",
        )
        self.sync_partial_proxy_rules_duration = self._histogram(
            "sync_partial_proxy_rules_duration_seconds",
            "Duration of a sync that wrote only what had changed.",
        )
        self.network_programming_duration = self._histogram(
            "network_programming_duration_seconds",
            "Time from the change of an endpoint in the API to its arrival in the kernel.",
            _PROGRAMMING_BUCKETS,
        )
        self.sync_proxy_rules_last_timestamp = self._gauge(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the last successful sync ended, since the epoch.",
            _FAMILY,
        )
        self.sync_proxy_rules_last_queued_timestamp = self._gauge(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a sync was last asked for, since the epoch.",
            _FAMILY,
        )

    def _add_changes(self) -> None:
        self.endpoint_changes_pending = self._gauge(
            "sync_proxy_rules_endpoint_changes_pending", "Endpoint changes not yet synced."
        )
        self.endpoint_changes = self._counter(
            "sync_proxy_rules_endpoint_changes", "Endpoint changes seen."
        )
        self.service_changes_pending = self._gauge(
            "sync_proxy_rules_service_changes_pending", "Service changes not yet synced."
        )
        self.service_changes = self._counter(
            "sync_proxy_rules_service_changes", "Service changes seen."
        )

    def _add_rules(self) -> None:
        # Three of these are gauges although their names end in _total: kube-proxy's choice.
        self.iptables_rules = self._gauge(
            "sync_proxy_rules_iptables_total",
            "iptables rules that belong to the proxy.",
            ("table", "ip_family"),
        )
        self.iptables_rules_last = self._gauge(
            "sync_proxy_rules_iptables_last",
            "iptables rules written in the last sync.",
            ("table", "ip_family"),
        )
        self.no_local_endpoints = self._gauge(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with a Local traffic policy and no usable endpoint on this node.",
            ("traffic_policy", "ip_family"),
        )
        self.iptables_restore_failures = self._counter(
            "sync_proxy_rules_iptables_restore_failures", "Failed iptables restores.", _FAMILY
        )
        self.iptables_partial_restore_failures = self._counter(
            "sync_proxy_rules_iptables_partial_restore_failures",
            "Failed iptables restores of single changes, each followed by a full one.",
            _FAMILY,
        )

    def _add_conntrack(self) -> None:
        self.conntrack_duration = self._histogram(
            "conntrack_reconciler_sync_duration_seconds", "Duration of a clean-up of stale flows."
        )
        self.conntrack_deleted = self._counter(
            "conntrack_reconciler_deleted_entries", "Stale flows deleted.", _FAMILY
        )

    def _add_probes(self) -> None:
        self.proxy_healthz = self._counter(
            "proxy_healthz", "Answers of /healthz by HTTP status.", ("code",)
        )
        self.proxy_livez = self._counter(
            "proxy_livez", "Answers of /livez by HTTP status.", ("code",)
        )

    def _add_own(self) -> None:
        registry = self.registry
        self.skipped_objects = Counter(
            "svcproxy_skipped_objects",
            "API objects and manifests skipped because they are malformed.",
            ("kind",),
            registry=registry,
        )
        self.watch_restarts = Counter(
            "svcproxy_watch_restarts",
            "Watches of the API that had to be started anew.",
            ("kind",),
            registry=registry,
        )
        self.kernel_operations = Counter(
            "svcproxy_kernel_operations",
            "Changes asked of the kernel.",
            ("ip_family", "operation"),
            registry=registry,
        )
        self.drift_repairs = Counter(
            "svcproxy_drift_repairs",
            "Comparisons that found and undid changes of others in the kernel.",
            _FAMILY,
            registry=registry,
        )
        self.address_conflicts = Gauge(
            "svcproxy_address_conflicts",
            "Addresses that a Service asks for while another one holds them.",
            _FAMILY,
            registry=registry,
        )
        self.build_info = Gauge(
            "svcproxy_build_info", "Always 1; the labels tell.", ("version",), registry=registry
        )
        self.build_info.labels(version=__version__).set(1)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...] = _SYNC_BUCKETS
    ) -> Histogram:
        return Histogram(
            f"kubeproxy_{name}", text, _FAMILY, buckets=buckets, registry=self.registry
        )

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"kubeproxy_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        """Make a counter; the library appends ``_total`` to its name."""
        return Counter(f"kubeproxy_{name}", text, labels, registry=self.registry)

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """Return the content type and the body of /metrics for an ``Accept`` header.

        Clients that accept OpenMetrics get it; all others get the text format 0.0.4.
        """
        encode, content_type = _encoder(accept)
        return content_type, encode(_WithoutCreated(self.registry))


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # an unreadable version number in the header
        return generate_latest, "text/plain; version=0.0.4; charset=utf-8"


class _WithoutCreated:
    """A registry as seen without ``_created`` samples.

    kube-proxy has none and they double the counters. The library can leave them out only for
    the whole process, by a global switch.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the registry's metrics, each without its ``_created`` samples."""
        for metric in self._registry.collect():
            created = f"{metric.name}_created"
            metric.samples = [sample for sample in metric.samples if sample.name != created]
            yield metric
