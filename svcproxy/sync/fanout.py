"""The daemon's ``Sink``: it passes API objects to the inbox of each family."""

from collections import Counter
from collections.abc import Mapping, Sequence

import structlog

from svcproxy.model.names import Kind
from svcproxy.model.objects import ApiObject, Node, ObjectKey, Problem
from svcproxy.observe.health import HealthState
from svcproxy.observe.metrics import Metrics
from svcproxy.sync.inbox import Inbox

log = structlog.get_logger()


class Fanout:
    """Implements ``svcproxy.kube.source.Sink`` for the family loops."""

    def __init__(self, inboxes: Sequence[Inbox], metrics: Metrics, health: HealthState) -> None:
        self._inboxes = inboxes
        self._metrics = metrics
        self._health = health
        self._node_seen = False

    def take(self, objects: Mapping[ObjectKey, ApiObject | None]) -> None:
        """Pass on the current state of objects."""
        for kind, number in Counter(kind for kind, _ in objects).items():
            if kind is Kind.SERVICE:
                self._metrics.service_changes.inc(number)
                self._metrics.service_changes_pending.inc(number)
            elif kind is Kind.ENDPOINT_SLICE:
                self._metrics.endpoint_changes.inc(number)
                self._metrics.endpoint_changes_pending.inc(number)
        for (kind, _), obj in objects.items():
            if kind is Kind.NODE:
                self._node_seen = True
                self._health.node_changed(obj if isinstance(obj, Node) else None)
        for inbox in self._inboxes:
            inbox.put(objects)

    def synced(self, kind: Kind) -> None:
        """Pass on that the first list of a kind is complete."""
        if kind is Kind.NODE and not self._node_seen:
            self._health.node_changed(None)
        self._health.listed(kind)
        log.info("source.synced", kind=kind)
        for inbox in self._inboxes:
            inbox.synced(kind)

    def rejected(self, problem: Problem) -> None:
        """Report a malformed object."""
        self._metrics.skipped_objects.labels(problem.kind or "unknown").inc()
        log.warning(
            "object.skipped",
            kind=problem.kind or "unknown",
            name=str(problem.name or ""),
            field=problem.field,
            reason=problem.reason,
            origin=problem.origin,
        )

    def restarted(self, kind: Kind, reason: str) -> None:
        """Count and log the restart of a watch."""
        self._metrics.watch_restarts.labels(kind).inc()
        log.info("watch.restarted", kind=kind, reason=reason)
