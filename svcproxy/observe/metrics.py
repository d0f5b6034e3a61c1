"""The metrics of the daemon: those of kube-proxy, and additional ones of svcproxy.

Dashboards and alerts made for kube-proxy keep working: names, labels, types, histogram buckets and
stability levels are those of pkg/proxy/metrics/metrics.go in Kubernetes 1.36, and each mode has
the metrics that kube-proxy has in that mode; docs/compatibility.md has the list. There is no
global state: each ``Metrics`` has its own registry.
"""

import platform
from collections.abc import Collection
from itertools import chain

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
)

from svcproxy import __version__, threads
from svcproxy.model.names import Kind
from svcproxy.observe.nfacct_metrics import PACKET_COUNTS, NfacctCollector
from svcproxy.observe.process_metrics import GoProcessCollector, process_start_time
from svcproxy.observe.refused_inputs import RefusedInputsCollector
from svcproxy.observe.slis import HealthCheckResults
from svcproxy.refusals import REFUSALS

_SYNC_BUCKETS = tuple(0.001 * 2**power for power in range(15))
_PROGRAMMING_BUCKETS = tuple(
    map(float, chain((0, 0.25, 0.5), range(1, 60), range(60, 120, 5), range(120, 301, 30)))
)
# Processing a change takes a millisecond or less, but it may wait for a minute: 0.1 ms to 52 s.
_STAGE_BUCKETS = tuple(0.0001 * 2**power for power in range(20))
# component-base/metrics/prometheus/restclient/metrics.go
_REQUEST_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
_FAMILY = ("ip_family",)
_PROCESS_NAMES = 20

DEFECT_PLACES = ("object", "service", "planning", "sync", "after_sync")
"""The activities in which svcproxy catches unexpected exceptions: a label of
``svcproxy_defects_total``."""


class Metrics:
    """All metrics of one daemon, as public attributes of ``prometheus_client`` types.

    Times are in seconds; ``ip_family`` is ``IPv4`` or ``IPv6``. Attributes are named after
    their metric without the ``kubeproxy_`` or ``svcproxy_`` prefix and the unit. Metrics that
    kube-proxy does not have in the mode can be set, but are not exported.

    Args:
        mode: the name of the mode that runs.
        shown: the mode-specific metrics to export (``ModeSpec.metrics``); all if not given.
        registry: registers the metrics; by default a new one.
    """

    def __init__(
        self,
        mode: str = "iptables",
        shown: Collection[str] | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self.slis = HealthCheckResults()
        self.started = process_start_time()
        self._mode = mode
        self._shown = shown
        self._process_names: set[str] = set()
        self._add_syncs()
        self._add_changes()
        self._add_rules()
        self._add_conntrack()
        self._add_probes()
        self._add_client()
        self._add_stages()
        self._add_kernel()
        self._add_own()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(GoProcessCollector())
        self.registry.register(RefusedInputsCollector(REFUSALS))
        if self._is_shown(PACKET_COUNTS[0]):
            self.registry.register(NfacctCollector())

    def _add_syncs(self) -> None:
        self.sync_proxy_rules_duration = self._histogram(
            "sync_proxy_rules_duration_seconds", "Duration of a sync of one family."
        )
        self.sync_full_proxy_rules_duration = self._histogram(
            "sync_full_proxy_rules_duration_seconds",
            "Duration of a sync that compared all rules.",
        )
        self.sync_partial_proxy_rules_duration = self._histogram(
            "sync_partial_proxy_rules_duration_seconds",
            "Duration of a sync that processed changes only.",
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
            "When a sync was last requested, since the epoch.",
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
        # As in kube-proxy, two of these are gauges although their names end in _total.
        self.iptables_rules = self._gauge(
            "sync_proxy_rules_iptables_total",
            "iptables rules owned by the proxy.",
            ("table", "ip_family"),
            mode_specific=True,
        )
        self.iptables_rules_last = self._gauge(
            "sync_proxy_rules_iptables_last",
            "iptables rules written in the last sync.",
            ("table", "ip_family"),
            mode_specific=True,
        )
        self.no_local_endpoints = self._gauge(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with a Local traffic policy and no usable endpoint on this node.",
            ("traffic_policy", "ip_family"),
        )
        self.iptables_restore_failures = self._counter(
            "sync_proxy_rules_iptables_restore_failures",
            "Failed iptables restores.",
            _FAMILY,
            mode_specific=True,
        )
        self.iptables_partial_restore_failures = self._counter(
            "sync_proxy_rules_iptables_partial_restore_failures",
            "Failed iptables restores of incremental changes, each followed by a full one.",
            _FAMILY,
            mode_specific=True,
        )
        self.nftables_sync_failures = self._counter(
            "sync_proxy_rules_nftables_sync_failures",
            "Failed nftables transactions.",
            _FAMILY,
            mode_specific=True,
        )
        self.nftables_cleanup_failures = self._counter(
            "sync_proxy_rules_nftables_cleanup_failures",
            "Always 0: stale objects are removed in the transaction of the sync itself.",
            _FAMILY,
            mode_specific=True,
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

    def _add_client(self) -> None:
        """Create those of client-go's metrics that apply to svcproxy."""
        self.rest_client_requests = Counter(
            "rest_client_requests",
            "[ALPHA] Requests to the API server; the code is <error> if there was no response.",
            ("code", "method", "host"),
            registry=self.registry,
        )
        self.rest_client_request_duration = Histogram(
            "rest_client_request_duration_seconds",
            "[ALPHA] Time from a request to the headers of its response.",
            ("verb", "host"),
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )

    def _add_stages(self) -> None:
        self.change_duration = Histogram(
            "svcproxy_change_duration_seconds",
            "Latency of the oldest change of each sync by stage: queued from its arrival to the"
            " start of the sync, computed until the plan was ready, applied until the kernel had"
            " it; total is the sum.",
            ("ip_family", "stage"),
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.queue_age = Gauge(
            "svcproxy_queue_age_seconds",
            "How long the oldest change that is not yet in the kernel has waited; 0 if none.",
            _FAMILY,
            registry=self.registry,
        )

    def _add_kernel(self) -> None:
        registry = self.registry
        self.kernel_operations = Counter(
            "svcproxy_kernel_operations",
            "Write operations sent to the kernel.",
            ("ip_family", "operation"),
            registry=registry,
        )
        self.kernel_objects = Gauge(
            "svcproxy_kernel_objects",
            "Objects of the proxy in the kernel: rules by table, or objects by kind.",
            ("ip_family", "kind"),
            registry=registry,
        )
        self.sync_failures = Counter(
            "svcproxy_sync_failures",
            "Failed syncs; the next sync compares everything.",
            ("ip_family", "kind"),
            registry=registry,
        )
        self.refused_service_ports = Gauge(
            "svcproxy_refused_service_ports",
            "Service ports that the kernel refused; each is retried separately.",
            _FAMILY,
            registry=registry,
        )
        self.drift_repairs = Counter(
            "svcproxy_drift_repairs",
            "Resyncs that found and repaired changes that other programs made in the kernel.",
            _FAMILY,
            registry=registry,
        )
        self.foreign_changes = Counter(
            "svcproxy_foreign_changes",
            "Kernel notifications of changes by other processes, by process name.",
            ("process",),
            registry=registry,
        )

    def _add_own(self) -> None:
        registry = self.registry
        self.skipped_objects = Counter(
            "svcproxy_skipped_objects",
            "Malformed API objects and manifests that were skipped.",
            ("kind",),
            registry=registry,
        )
        self.watch_restarts = Counter(
            "svcproxy_watch_restarts",
            "Restarts of API watches.",
            ("kind",),
            registry=registry,
        )
        for kind in Kind:  # export 0, so that rate() sees the first increase
            self.skipped_objects.labels(kind)
            self.watch_restarts.labels(kind)
        self.address_conflicts = Gauge(
            "svcproxy_address_conflicts",
            "Addresses that a Service requests but another Service already has.",
            _FAMILY,
            registry=registry,
        )
        self.defects = Counter(
            "svcproxy_defects",
            "Unexpected exceptions in svcproxy itself, by activity; please report them.",
            ("where",),
            registry=registry,
        )
        for where in DEFECT_PLACES:
            self.defects.labels(where)
        self.stalled_threads = Gauge(
            "svcproxy_stalled_threads",
            "Threads that are overdue to report progress; /livez names them.",
            registry=registry,
        )
        self.stalled_threads.set_function(lambda: len(threads.stalled()))
        self.build_info = Gauge(
            "svcproxy_build_info",
            "Always 1; the information is in the labels.",
            ("version", "python_version", "mode"),
            registry=registry,
        )
        self.build_info.labels(__version__, platform.python_version(), self._mode).set(1)

    def requested(self, method: str, host: str, code: str, seconds: float) -> None:
        """Count a request to the API server.

        Args:
            method: the HTTP method.
            host: host and port of the API server.
            code: the HTTP status, ``<error>`` if there was no response.
            seconds: the time until the headers of the response.
        """
        self.rest_client_requests.labels(code, method, host).inc()
        self.rest_client_request_duration.labels(method, host).observe(seconds)

    def count_external_change(self, process: str) -> None:
        """Count a change by another process; after 20 distinct names, new ones count as "other".

        Processes choose their names, and a series lasts for as long as the daemon runs.
        """
        if len(self._process_names) < _PROCESS_NAMES:
            self._process_names.add(process)
        name = process if process in self._process_names else "other"
        self.foreign_changes.labels(name).inc()

    def _histogram(
        self,
        name: str,
        text: str,
        buckets: tuple[float, ...] = _SYNC_BUCKETS,
        *,
        mode_specific: bool = False,
    ) -> Histogram:
        return Histogram(
            f"kubeproxy_{name}",
            f"[ALPHA] {text}",
            _FAMILY,
            buckets=buckets,
            registry=self._registry_of(name, mode_specific=mode_specific),
        )

    def _gauge(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...] = (),
        *,
        mode_specific: bool = False,
    ) -> Gauge:
        registry = self._registry_of(name, mode_specific=mode_specific)
        return Gauge(f"kubeproxy_{name}", f"[ALPHA] {text}", labels, registry=registry)

    def _counter(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...] = (),
        *,
        mode_specific: bool = False,
    ) -> Counter:
        """Create a counter; the library appends ``_total`` to its name."""
        registry = self._registry_of(name, mode_specific=mode_specific)
        return Counter(f"kubeproxy_{name}", f"[ALPHA] {text}", labels, registry=registry)

    def _registry_of(self, name: str, *, mode_specific: bool) -> CollectorRegistry | None:
        return self.registry if not mode_specific or self._is_shown(name) else None

    def _is_shown(self, name: str) -> bool:
        """Whether the present mode shows a metric that only some modes have."""
        return self._shown is None or name in self._shown
