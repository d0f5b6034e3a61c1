"""Reporting what the sync loops do: metrics, health, logs and Events."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import NamedTuple

import structlog

from svcproxy.backends.base import ExternalChange, Outcome, TransactionError
from svcproxy.kube.event_recorder import EventRecorder
from svcproxy.limits import SERVICE_TARGETS
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import FrontendKind, ServicePort, Verdict
from svcproxy.observe.health import HealthState
from svcproxy.observe.metrics import Metrics
from svcproxy.refusals import REFUSALS
from svcproxy.state.desired import Changes

log = structlog.get_logger()


class Times(NamedTuple):
    """When a sync began, had a plan, and had applied it; in monotonic seconds."""

    begin: float
    planned: float
    end: float


class Repaired(NamedTuple):
    """A sync that restored kernel objects which another program had changed.

    Attributes:
        operations: the number of kernel operations by kind.
        seconds: from the event that reported the change, or from the begin of the resync that
            found it, until the repair was done.
        change: what is known about the change; ``None`` if only a resync found it.
        reported: whether an event of the kernel reported the change.
    """

    operations: Mapping[str, int]
    seconds: float
    change: ExternalChange | None = None
    reported: bool = False


def _ignore(_family: IPFamily, _repaired: Repaired) -> None:
    """Do nothing."""


class Reporter:
    """Metrics, health, log lines and Events of one family's loop.

    Only ``queued`` and ``taken`` may be called from threads other than the loop's.

    Args:
        family: the IP family.
        metrics: the metrics of the daemon.
        health: the health of the daemon.
        events: the recorder of Events.
        on_repair: called with each repair.
    """

    def __init__(
        self,
        family: IPFamily,
        metrics: Metrics,
        health: HealthState,
        events: EventRecorder,
        *,
        on_repair: Callable[[IPFamily, Repaired], None] = _ignore,
    ) -> None:
        self._on_repair = on_repair
        self._family = family
        self._events = events
        self._metrics = metrics
        self._series = _Series(metrics, family)
        self._health = health
        self._started = time.time()
        self._without_local: dict[str, set[ServicePortName]] = {
            "internal": set(),
            "external": set(),
        }
        metrics.queue_age.labels(family).set_function(partial(health.waiting_seconds, family))

    def lists_complete(self) -> None:
        """Note that the first lists are complete: the loop is about to program for the first time."""
        self._health.started(self._family)
        self.queued()
        self.taken()

    def queued(self) -> None:
        """Note that a change waits to be programmed; safe from any thread."""
        self._health.queued(self._family)
        self._series.last_queued().set(time.time())

    def taken(self) -> None:
        """Note that the loop has taken the queued changes; safe from any thread."""
        self._health.taken(self._family)

    def idle(self) -> None:
        """Note that the queued changes need no sync."""
        self._metrics.service_changes_pending.set(0)
        self._metrics.endpoint_changes_pending.set(0)
        self._health.updated(self._family)

    def changes(self, changes: Changes, conflicts: int) -> None:
        """Report what a checkout found; ``conflicts`` is the number of all present conflicts."""
        for name, port in changes.ports.items():
            for policy, waiting in self._without_local.items():
                waiting.discard(name)
                if port is not None and _drops(port, internal=policy == "internal"):
                    waiting.add(name)
        for service in changes.truncated:
            REFUSALS.count("object", "service_targets")
            log.warning(
                "service.truncated",
                family=self._family,
                service=str(service),
                limit=SERVICE_TARGETS,
                reason="ports times addresses times endpoints exceed the limit",
                effect="each port is served by the first endpoints that fit",
            )
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
        self, outcome: Outcome, times: Times, *, full: bool, triggered: tuple[datetime, ...]
    ) -> None:
        """Note a successful sync."""
        metrics, family, series = self._metrics, self._family, self._series
        seconds = times.end - times.begin
        series.duration.observe(seconds)
        (series.full if full else series.partial).observe(seconds)
        series.last_synced().set(time.time())
        self._stages(times)
        for kind, count in outcome.sizes.items():
            metrics.kernel_objects.labels(family, kind).set(count)
            metrics.iptables_rules.labels(kind, family).set(count)
        for kind, count in outcome.written.items():
            metrics.iptables_rules_last.labels(kind, family).set(count)
        for operation, count in outcome.operations.items():
            metrics.kernel_operations.labels(family, operation).inc(count)
        for policy, names in self._without_local.items():
            series.no_local[policy].set(len(names))
        metrics.service_changes_pending.set(0)
        metrics.endpoint_changes_pending.set(0)
        self._programming_latency(triggered)
        self._health.updated(family)
        self._line(outcome.operations, full=full, seconds=seconds)

    def _stages(self, times: Times) -> None:
        """Observe the stages of the oldest change; a resync without changes has none."""
        queued = self._health.waiting_since(self._family)
        if queued is None:
            return
        stages = self._series.stages
        stages["queued"].observe(max(0.0, times.begin - queued))
        stages["computed"].observe(times.planned - times.begin)
        stages["applied"].observe(times.end - times.planned)
        stages["total"].observe(max(0.0, times.end - queued))

    def _programming_latency(self, triggered: tuple[datetime, ...]) -> None:
        now = time.time()
        for moment in triggered:
            changed = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            if changed >= self._started:  # older changes waited for the start of svcproxy
                latency = max(0.0, now - changed)
                self._series.programming.observe(latency)

    def _line(self, operations: Mapping[str, int], *, full: bool, seconds: float) -> None:
        write = log.info if operations else log.debug
        kind = "full" if full else "partial"
        write(
            "sync.done", family=self._family, kind=kind, ms=round(seconds * 1000, 1), **operations
        )

    def repaired(self, repaired: Repaired) -> None:
        """Report that a sync repaired what other programs changed, and which one if it is known."""
        self._series.repairs.inc()
        self._on_repair(self._family, repaired)
        change, program = repaired.change, {}
        if change is not None and change.process:
            program = {"process": change.process, "pid": change.pid}
        log.warning("kernel.repaired", family=self._family, **program)

    def defect(self, where: str, error: Exception, **about: str) -> None:
        """Log an unexpected exception, and count it as a defect of svcproxy itself.

        Args:
            where: the activity; one of ``DEFECT_PLACES`` in ``observe/metrics.py``.
            error: the exception.
            about: the object concerned, for the log.
        """
        self._metrics.defects.labels(where).inc()
        log.error("sync.defect", family=self._family, where=where, **about, exc_info=error)

    def refused(self, new: Sequence[tuple[ServicePortName, str]], held: int) -> None:
        """Report Service ports that the kernel refused.

        Args:
            new: those that have not been reported yet, with the reason.
            held: the number of all ports that are held back now.
        """
        self._series.refused.set(held)
        for name, reason in new:
            log.warning(
                "service_port.refused",
                family=self._family,
                service_port=str(name),
                reason=reason,
                effect="it stays as it was and is retried; all others are programmed",
            )
            # One Event is sent for all nodes, because many nodes likely refuse the same object.
            self._events.service(
                name.service,
                "ServicePortRefused",
                f"at least one node's kernel refused port {name.port or name.protocol}: {reason};"
                " there the port stays as it was and is retried",
            )

    def failed(self, error: Exception, *, full: bool, retry: float) -> None:
        """Report a failed sync.

        kube-proxy's failure metrics count failures of iptables-restore and of nftables transactions
        only: neither failures to read the kernel's state, nor defects of svcproxy.

        Args:
            error: the reason.
            full: whether it was to compare the whole kernel state.
            retry: seconds until the next attempt.
        """
        series = self._series
        series.failures["full" if full else "partial"].inc()
        if isinstance(error, TransactionError):
            series.restore_failures.inc()
            series.transaction_failures.inc()
            if not full:
                series.partial_restore_failures.inc()
        log.error("sync.failed", family=self._family, error=str(error), retry_in_s=retry)


class _Series:
    """The metric series of one family, looked up once, because a look-up costs as much as counting.

    Counters and histograms start at 0, so that a first failure shows as an increase. Timestamps have
    no series until the event has happened.
    """

    def __init__(self, metrics: Metrics, family: IPFamily) -> None:
        self.duration = metrics.sync_proxy_rules_duration.labels(family)
        self.full = metrics.sync_full_proxy_rules_duration.labels(family)
        self.partial = metrics.sync_partial_proxy_rules_duration.labels(family)
        self.programming = metrics.network_programming_duration.labels(family)
        self.last_queued = cache(
            partial(metrics.sync_proxy_rules_last_queued_timestamp.labels, family)
        )
        self.last_synced = cache(partial(metrics.sync_proxy_rules_last_timestamp.labels, family))
        self.stages = {
            stage: metrics.change_duration.labels(family, stage)
            for stage in ("queued", "computed", "applied", "total")
        }
        self.no_local = {
            policy: metrics.no_local_endpoints.labels(policy, family)
            for policy in ("internal", "external")
        }
        self.refused = metrics.refused_service_ports.labels(family)
        self.repairs = metrics.drift_repairs.labels(family)
        self.failures = {
            kind: metrics.sync_failures.labels(family, kind) for kind in ("full", "partial")
        }
        # Each is exported in some modes only.
        self.restore_failures = metrics.iptables_restore_failures.labels(family)
        self.partial_restore_failures = metrics.iptables_partial_restore_failures.labels(family)
        self.transaction_failures = metrics.nftables_sync_failures.labels(family)
        metrics.nftables_cleanup_failures.labels(family)
        metrics.conntrack_deleted.labels(family)


def _drops(port: ServicePort, *, internal: bool) -> bool:
    return any(
        f.verdict is Verdict.DROP and (f.kind is FrontendKind.CLUSTER_IP) is internal
        for f in port.frontends
    )
