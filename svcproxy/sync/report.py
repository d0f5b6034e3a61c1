"""Telling people and Prometheus what the sync loops do."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime

import structlog

from svcproxy.backends.base import Outcome
from svcproxy.kube.recorder import EventRecorder
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import FrontendKind, ServicePort, Verdict
from svcproxy.observe.health import HealthState
from svcproxy.observe.metrics import Metrics
from svcproxy.state.desired import Changes

log = structlog.get_logger()


class Reporter:
    """Metrics, health and log lines of one family's loop.

    Only ``queued`` may be called from other threads than that loop's.
    """

    def __init__(
        self, family: IPFamily, metrics: Metrics, health: HealthState, events: EventRecorder
    ) -> None:
        self._family = family
        self._events = events
        self._metrics = metrics
        self._health = health
        self._started = time.time()
        self._without_local: dict[str, set[ServicePortName]] = {
            "internal": set(),
            "external": set(),
        }

    def begun(self) -> None:
        """Note that the loop may program from now on."""
        self._health.started(self._family)

    def queued(self) -> None:
        """Note that a change waits for the kernel; safe from any thread."""
        self._health.queued(self._family)
        self._metrics.sync_proxy_rules_last_queued_timestamp.labels(
            self._family
        ).set_to_current_time()

    def idle(self) -> None:
        """Note that what was queued needs no sync."""
        self._health.updated(self._family)

    def changes(self, changes: Changes, conflicts: int) -> None:
        """Note what a checkout found; ``conflicts`` is how many there are in all."""
        for name, port in changes.ports.items():
            for policy, waiting in self._without_local.items():
                waiting.discard(name)
                if port is not None and _drops(port, internal=policy == "internal"):
                    waiting.add(name)
        self._metrics.address_conflicts.labels(self._family).set(conflicts)
        for conflict in changes.conflicts:
            log.warning(
                "service.conflict",
                service=str(conflict.loser),
                address=str(conflict.address),
                held_by=str(conflict.winner),
                effect="not served there until the other Service gives it up",
            )
            self._events.service(
                conflict.loser,
                "AddressConflict",
                f"{conflict.address} is held by Service {conflict.winner}, which is older or has it"
                " as its cluster IP; this Service is not served there until the other gives it up",
            )

    def done(
        self, outcome: Outcome, *, thorough: bool, seconds: float, triggered: tuple[datetime, ...]
    ) -> None:
        """Note a successful sync that took ``seconds``."""
        metrics, family = self._metrics, self._family
        metrics.sync_proxy_rules_duration.labels(family).observe(seconds)
        kind = "full" if thorough else "partial"
        getattr(metrics, f"sync_{kind}_proxy_rules_duration").labels(family).observe(seconds)
        metrics.sync_proxy_rules_last_timestamp.labels(family).set_to_current_time()
        for table, count in outcome.sizes.items():
            metrics.iptables_rules.labels(table, family).set(count)
        for table, count in outcome.written.items():
            metrics.iptables_rules_last.labels(table, family).set(count)
        for operation, count in outcome.operations.items():
            metrics.kernel_operations.labels(family, operation).inc(count)
        for policy, names in self._without_local.items():
            metrics.no_local_endpoints.labels(policy, family).set(len(names))
        metrics.service_changes_pending.set(0)
        metrics.endpoint_changes_pending.set(0)
        self._programming_latency(triggered)
        self._health.updated(family)
        self._line(outcome.operations, thorough=thorough, seconds=seconds)

    def _programming_latency(self, triggered: tuple[datetime, ...]) -> None:
        now = time.time()
        for moment in triggered:
            changed = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            if changed >= self._started:  # what happened before our time says nothing about us
                latency = max(0.0, now - changed)
                self._metrics.network_programming_duration.labels(self._family).observe(latency)

    def _line(self, operations: Mapping[str, int], *, thorough: bool, seconds: float) -> None:
        say = log.info if operations else log.debug
        kind = "full" if thorough else "partial"
        say("sync.done", family=self._family, kind=kind, ms=round(seconds * 1000, 1), **operations)

    def repaired(self) -> None:
        """Note that the sync undid what others had done to the kernel."""
        self._metrics.drift_repairs.labels(self._family).inc()
        log.warning("kernel.repaired", family=self._family)

    def failed(self, error: Exception, *, thorough: bool, retry: float) -> None:
        """Note a failed sync; the next attempt is in ``retry`` seconds."""
        self._metrics.iptables_restore_failures.labels(self._family).inc()
        if not thorough:
            self._metrics.iptables_partial_restore_failures.labels(self._family).inc()
        log.error("sync.failed", family=self._family, error=str(error), retry_in_s=retry)


def _drops(port: ServicePort, *, internal: bool) -> bool:
    return any(
        f.verdict is Verdict.DROP and (f.kind is FrontendKind.CLUSTER_IP) is internal
        for f in port.frontends
    )
