"""Health and readiness of the proxy: the logic of /healthz, /livez and /readyz, without HTTP.

The rules of health are those of pkg/proxy/healthcheck/proxy_health.go in Kubernetes 1.36: the proxy
is unhealthy while a change has been waiting for the kernel too long. Without a waiting change it
is healthy, however long ago the last sync was, and even if it has not received anything yet.
Readiness is an addition of svcproxy: every family has been synced once, and none is unhealthy.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from svcproxy.model.names import IPFamily, Kind
from svcproxy.model.objects import Node

# Cluster Autoscaler sets this taint before it removes a node; load balancers that probe
# /healthz then drain the node (KEP-3836).
_TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"
# Go's zero time, which kube-proxy returns for "never"
_NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """A reply to a probe: HTTP status (200 or 503) and JSON body."""

    status: int
    body: bytes


class HealthState:
    """Tracks per family which changes wait for the kernel; safe to use from any thread.

    Args:
        sync_period: seconds between full syncs; a change may wait for twice as long.
        clock: returns monotonic seconds, to measure durations.
        wall: returns seconds since the epoch, to show times.
        needs_node: whether the node is ineligible until its Node object is known. False without an
            API server, where there may be no Node object at all.
        families: the families that the mode serves; not ready before each has been synced.
        kinds: the watched kinds of objects, to report which first list is missing.
        stalled: returns the names of stalled threads; /livez and /readyz fail if there are any.
    """

    def __init__(
        self,
        *,
        sync_period: float,
        clock: Callable[[], float],
        wall: Callable[[], float],
        needs_node: bool = True,
        families: Collection[IPFamily] = (),
        kinds: Collection[Kind] = (),
        stalled: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self._timeout = 2 * sync_period
        self._clock = clock
        self._wall = wall
        self._lock = Lock()
        self._last_updated: dict[IPFamily, float] = {}
        self._oldest_queued: dict[IPFamily, float] = {}
        self._in_work: dict[IPFamily, float] = {}
        self._synced: set[IPFamily] = set()
        self._eligible = not needs_node
        self._needs_node = needs_node
        self._served = frozenset(families)
        self._unlisted = set(kinds)
        self._stalled = stalled or (lambda: ())

    def listed(self, kind: Kind) -> None:
        """Record that the first list of ``kind`` is complete."""
        with self._lock:
            self._unlisted.discard(kind)

    def started(self, family: IPFamily) -> None:
        """Start to track ``family``, so that a first sync that never succeeds is reported.

        A family that has neither started nor been updated is starting up and counts as healthy,
        even if changes are queued.
        """
        with self._lock:
            self._last_updated.setdefault(family, self._wall())

    def queued(self, family: IPFamily) -> None:
        """Record that a change of ``family`` is waiting; only the oldest one counts."""
        with self._lock:
            self._oldest_queued.setdefault(family, self._clock())

    def taken(self, family: IPFamily) -> None:
        """Record that the queued changes of ``family`` are now being synced."""
        with self._lock:
            oldest = self._oldest_queued.pop(family, None)
            if oldest is not None:
                self._in_work.setdefault(family, oldest)

    def updated(self, family: IPFamily) -> None:
        """Record that the kernel now has all taken changes of ``family``.

        Changes queued since they were taken are still waiting.
        """
        with self._lock:
            self._in_work.pop(family, None)
            self._last_updated[family] = self._wall()
            self._synced.add(family)

    def node_changed(self, node: Node | None) -> None:
        """Update this node's Node object, ``None`` if it was deleted.

        A deleted Node object may be registered again, so eligibility stays as it was, as in
        kube-proxy; if no Node object is needed, the node becomes eligible again.
        """
        with self._lock:
            if node is not None:
                self._eligible = not node.deleting and _TO_BE_DELETED not in node.taints
            elif not self._needs_node:
                self._eligible = True

    def waiting_since(self, family: IPFamily) -> float | None:
        """Return when the oldest change not yet in the kernel arrived, by ``clock``."""
        with self._lock:
            return self._in_work.get(family, self._oldest_queued.get(family))

    def waiting_seconds(self, family: IPFamily) -> float:
        """Return how long the oldest change not yet in the kernel has waited; 0 if none."""
        since = self.waiting_since(family)
        return 0.0 if since is None else max(0.0, self._clock() - since)

    @property
    def synced(self) -> bool:
        """Whether every family that has started has been synced, and at least one has."""
        with self._lock:
            known = self._last_updated.keys() | self._oldest_queued.keys() | self._in_work.keys()
            return bool(self._synced) and known <= self._synced

    @property
    def healthy(self) -> bool:
        """Whether no change has waited for the kernel too long; the Node object is ignored."""
        with self._lock:
            status, _ = self._families(self._clock())
        return all(family["healthy"] for family in status.values())

    def healthz(self) -> ProbeResult:
        """Answer /healthz: whether load balancers should send traffic to this node."""
        return self._answer(with_node=True, stalled=())

    def livez(self) -> ProbeResult:
        """Answer /livez: whether the proxy works, regardless of the node's eligibility."""
        return self._answer(with_node=False, stalled=self._stalled())

    def readyz(self) -> ProbeResult:
        """Answer /readyz: whether the rules of every family are in the kernel and up to date.

        Neither the Node object nor the age of the last sync matters.
        """
        stalled = self._stalled()
        with self._lock:
            status, _ = self._families(self._clock())
            unlisted = sorted(self._unlisted)
            families = {
                family.value: self._reasons(family, unlisted, status)
                for family in sorted(self._served | self._last_updated.keys())
            }
        ready = bool(families) and not any(families.values()) and not stalled
        body: dict[str, Any] = {
            "ready": ready,
            "currentTime": _rfc3339(self._wall()),
            "unlisted": unlisted,
            "status": {
                family: {"ready": not reasons, "reasons": reasons}
                for family, reasons in families.items()
            },
        }
        return _encoded(body, stalled, fit=ready)

    def _reasons(
        self, family: IPFamily, unlisted: Sequence[Kind], status: dict[str, dict[str, Any]]
    ) -> list[str]:
        """Return why a family is not ready; the caller holds the lock."""
        reasons: list[str] = []
        if family not in self._synced:
            reasons += [f"waiting for the first list of {kind}s" for kind in unlisted]
            if not unlisted:
                reasons.append("waiting for the first sync to succeed")
        if not status.get(family.value, {"healthy": True})["healthy"]:
            reasons.append(f"a change has waited for the kernel for {self._timeout:g} s or more")
        return reasons

    def _answer(self, *, with_node: bool, stalled: Sequence[str]) -> ProbeResult:
        with self._lock:
            status, last_updated = self._families(self._clock())
            eligible = self._eligible
        now = _rfc3339(self._wall())
        working = all(family["healthy"] for family in status.values()) and not stalled
        fit = working and (eligible or not with_node)
        body: dict[str, Any] = {
            # While healthy this is the current time, as in kube-proxy: clients take an old time
            # for a failure, even if nothing has changed since.
            "lastUpdated": now if fit else last_updated,
            "currentTime": now,
        }
        if with_node:
            body["nodeEligible"] = eligible
        body["healthy"] = working
        if status:
            body["status"] = status
        return _encoded(body, stalled, fit=fit)

    def _oldest(self, family: IPFamily, none: float) -> float:
        """Return when the oldest waiting change arrived, else ``none``; the caller has the lock."""
        return self._in_work.get(family, self._oldest_queued.get(family, none))

    def _families(self, now: float) -> tuple[dict[str, dict[str, Any]], str]:
        """Return the ``status`` map and the latest update; the caller holds the lock."""
        status = {
            family.value: {
                "lastUpdated": _rfc3339(updated),
                "healthy": now - self._oldest(family, now) < self._timeout,
            }
            for family, updated in sorted(self._last_updated.items())
        }
        latest = max(self._last_updated.values(), default=None)
        return status, _NEVER if latest is None else _rfc3339(latest)


def _encoded(body: dict[str, Any], stalled: Sequence[str], *, fit: bool) -> ProbeResult:
    if stalled:
        body["stalledThreads"] = list(stalled)
    return ProbeResult(200 if fit else 503, json.dumps(body, separators=(",", ":")).encode())


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
