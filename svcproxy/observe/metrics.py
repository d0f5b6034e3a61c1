"""The metrics of the daemon: kube-proxy's names and meanings, and more of our own.

Dashboards and alerts made for kube-proxy keep working: names, labels, types, histogram buckets and
stability are those of pkg/proxy/metrics/metrics.go in Kubernetes 1.36, and each mode has those that
kube-proxy has in it. docs/compatibility.md has the list. Nothing here is global; every ``Metrics``
brings its own registry.
"""

import platform
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
from svcproxy.config import ProxyMode
from svcproxy.model.names import Kind
from svcproxy.observe.accounting import PacketCounts
from svcproxy.observe.process import GoProcess, started_at
from svcproxy.observe.refused import RefusedInputs
from svcproxy.observe.slis import HealthChecks
from svcproxy.refusals import REFUSALS

_SYNC_BUCKETS = tuple(0.001 * 2**power for power in range(15))
_PROGRAMMING_BUCKETS = tuple(
    map(float, chain((0, 0.25, 0.5), range(1, 60), range(60, 120, 5), range(120, 301, 30)))
)
# A change takes a millisecond or less of ours, and may wait for a minute: 0.1 ms to 52 s.
_STAGE_BUCKETS = tuple(0.0001 * 2**power for power in range(20))
# component-base/metrics/prometheus/restclient/metrics.go
_REQUEST_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
_FAMILY = ("ip_family",)
_FOREIGN_NAMES = 20

DEFECT_PLACES = ("object", "service", "planning", "sync", "after_sync")
"""Where a defect of svcproxy itself may be met: the label of ``svcproxy_defects_total``."""

_ALL = frozenset(ProxyMode)
_IPTABLES = frozenset({ProxyMode.IPTABLES})
_NFTABLES = frozenset({ProxyMode.NFTABLES})
_RESTORING = frozenset({ProxyMode.IPTABLES, ProxyMode.IPVS})


class Metrics:
    """All metrics of one daemon, each a public attribute of the library's own type.

    Times are in seconds; ``ip_family`` is ``IPv4`` or ``IPv6``. Attributes are named after
    their metric without the ``kubeproxy_`` or ``svcproxy_`` prefix and the unit. Those that
    kube-proxy does not have in a mode can be set in it, but are not shown.

    Args:
        mode: the mode that runs; it decides which of kube-proxy's metrics are shown.
        registry: what they are registered with; one of our own if not given.
    """

    def __init__(
        self,
        mode: ProxyMode = ProxyMode.IPTABLES,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self.slis = HealthChecks()
        self.started = started_at()
        self._mode = mode
        self._foreign: set[str] = set()
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
        self.registry.register(GoProcess())
        self.registry.register(RefusedInputs(REFUSALS))
        if mode is ProxyMode.IPTABLES:
            self.registry.register(PacketCounts())

    def _add_syncs(self) -> None:
        self.sync_proxy_rules_duration = self._histogram(
            "sync_proxy_rules_duration_seconds", "Duration of a sync of one family."
        )
        self.sync_full_proxy_rules_duration = self._histogram(
            "sync_full_proxy_rules_duration_seconds",
            "Duration of a sync that compared the whole rule set.",
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
        # Two of these are gauges although their names end in _total: kube-proxy's choice.
        self.iptables_rules = self._gauge(
            "sync_proxy_rules_iptables_total",
            "iptables rules that belong to the proxy.",
            ("table", "ip_family"),
            modes=_IPTABLES,
        )
        self.iptables_rules_last = self._gauge(
            "sync_proxy_rules_iptables_last",
            "iptables rules written in the last sync.",
            ("table", "ip_family"),
            modes=_IPTABLES,
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
            modes=_RESTORING,
        )
        self.iptables_partial_restore_failures = self._counter(
            "sync_proxy_rules_iptables_partial_restore_failures",
            "Failed iptables restores of single changes, each followed by a full one.",
            _FAMILY,
            modes=_IPTABLES,
        )
        self.nftables_sync_failures = self._counter(
            "sync_proxy_rules_nftables_sync_failures",
            "Failed nftables transactions.",
            _FAMILY,
            modes=_NFTABLES,
        )
        self.nftables_cleanup_failures = self._counter(
            "sync_proxy_rules_nftables_cleanup_failures",
            "Always 0: what is stale goes in the transaction of the sync itself.",
            _FAMILY,
            modes=_NFTABLES,
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
        """Make those of client-go's metrics that have a meaning here."""
        self.rest_client_requests = Counter(
            "rest_client_requests",
            "[ALPHA] Requests to the API server; the code is <error> without an answer.",
            ("code", "method", "host"),
            registry=self.registry,
        )
        self.rest_client_request_duration = Histogram(
            "rest_client_request_duration_seconds",
            "[ALPHA] Time from a request to the head of its answer.",
            ("verb", "host"),
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )

    def _add_stages(self) -> None:
        self.change_duration = Histogram(
            "svcproxy_change_duration_seconds",
            "The way of the oldest change of each sync: queued from its arrival to the begin of the"
            " sync, computed until it was known what to write, applied until the kernel had it;"
            " total is all three.",
            ("ip_family", "stage"),
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.queue_age = Gauge(
            "svcproxy_queue_age_seconds",
            "How long the oldest change that the kernel does not hold yet has waited; 0 if none.",
            _FAMILY,
            registry=self.registry,
        )

    def _add_kernel(self) -> None:
        registry = self.registry
        self.kernel_operations = Counter(
            "svcproxy_kernel_operations",
            "Changes asked of the kernel.",
            ("ip_family", "operation"),
            registry=registry,
        )
        self.kernel_objects = Gauge(
            "svcproxy_kernel_objects",
            "What the kernel holds for the proxy: rules by table, or objects by kind.",
            ("ip_family", "kind"),
            registry=registry,
        )
        self.sync_failures = Counter(
            "svcproxy_sync_failures",
            "Failed syncs; the next one compares everything.",
            ("ip_family", "kind"),
            registry=registry,
        )
        self.refused_service_ports = Gauge(
            "svcproxy_refused_service_ports",
            "Service ports that the kernel refuses; each is retried on its own.",
            _FAMILY,
            registry=registry,
        )
        self.drift_repairs = Counter(
            "svcproxy_drift_repairs",
            "Comparisons that found and undid changes of others in the kernel.",
            _FAMILY,
            registry=registry,
        )
        self.foreign_changes = Counter(
            "svcproxy_foreign_changes",
            "Changes that the kernel reports of other processes, by process name.",
            ("process",),
            registry=registry,
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
        for kind in Kind:  # so that the first of a kind is an increase
            self.skipped_objects.labels(kind)
            self.watch_restarts.labels(kind)
        self.address_conflicts = Gauge(
            "svcproxy_address_conflicts",
            "Addresses that a Service asks for while another one holds them.",
            _FAMILY,
            registry=registry,
        )
        self.defects = Counter(
            "svcproxy_defects",
            "Unexpected exceptions in svcproxy itself, by what it was doing; please report them.",
            ("where",),
            registry=registry,
        )
        for where in DEFECT_PLACES:
            self.defects.labels(where)
        self.stalled_threads = Gauge(
            "svcproxy_stalled_threads",
            "Threads that should have reported progress by now; /livez names them.",
            registry=registry,
        )
        self.stalled_threads.set_function(lambda: len(threads.stalled()))
        self.build_info = Gauge(
            "svcproxy_build_info",
            "Always 1; the labels tell.",
            ("version", "python_version", "mode"),
            registry=registry,
        )
        self.build_info.labels(__version__, platform.python_version(), self._mode).set(1)

    def requested(self, method: str, host: str, code: str, seconds: float) -> None:
        """Count a request to the API server; ``code`` is ``<error>`` if no answer came."""
        self.rest_client_requests.labels(code, method, host).inc()
        self.rest_client_request_duration.labels(method, host).observe(seconds)

    def count_foreign(self, process: str) -> None:
        """Count a change of another process; beyond so many names, all further ones are "other".

        Names are chosen by the processes, and a series stays for as long as the daemon runs.
        """
        if len(self._foreign) < _FOREIGN_NAMES:
            self._foreign.add(process)
        self.foreign_changes.labels(process if process in self._foreign else "other").inc()

    def _histogram(
        self,
        name: str,
        text: str,
        buckets: tuple[float, ...] = _SYNC_BUCKETS,
        *,
        modes: frozenset[ProxyMode] = _ALL,
    ) -> Histogram:
        return Histogram(
            f"kubeproxy_{name}",
            f"[ALPHA] {text}",
            _FAMILY,
            buckets=buckets,
            registry=self._registry_in(modes),
        )

    def _gauge(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...] = (),
        *,
        modes: frozenset[ProxyMode] = _ALL,
    ) -> Gauge:
        registry = self._registry_in(modes)
        return Gauge(f"kubeproxy_{name}", f"[ALPHA] {text}", labels, registry=registry)

    def _counter(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...] = (),
        *,
        modes: frozenset[ProxyMode] = _ALL,
    ) -> Counter:
        """Make a counter; the library appends ``_total`` to its name."""
        registry = self._registry_in(modes)
        return Counter(f"kubeproxy_{name}", f"[ALPHA] {text}", labels, registry=registry)

    def _registry_in(self, modes: frozenset[ProxyMode]) -> CollectorRegistry | None:
        return self.registry if self._mode in modes else None
