"""Whether the proxy is healthy and ready: the logic of /healthz, /livez and /readyz, without HTTP.

The rules of health are those of pkg/proxy/healthcheck/proxy_health.go in Kubernetes 1.36: the proxy
is unhealthy while a change it learnt of has been waiting for the kernel too long. Nothing waiting
means healthy, however long ago the last sync was, and so does nothing learnt at all. Readiness is
ours: every family has been synced once, and none is unhealthy.
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
# Go's zero time, which clients of kube-proxy know as "never"
_NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply to a probe: HTTP status (200 or 503) and JSON body."""

    status: int
    body: bytes


class HealthState:
    """Remembers per family what is waiting for the kernel; safe to use from any thread.

    Args:
        sync_period: seconds between full syncs; a change may wait for twice as long.
        clock: monotonic seconds, for measuring.
        wall: seconds since the epoch, for telling.
        needs_node: whether the node is ineligible until its Node object is known. False where no
            API server is followed, so that no Node will ever come.
        families: the families that the mode serves; not ready before each has been synced.
        kinds: the kinds of objects that are followed, to say which list is missing.
        stalled: gives the names of threads that make no progress; /livez and /readyz fail then.
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
        """Learn that the first list of ``kind`` is complete."""
        with self._lock:
            self._unlisted.discard(kind)

    def started(self, family: IPFamily) -> None:
        """Begin to watch over ``family``: a first sync that never succeeds will be noticed.

        A family that has neither started nor been updated counts as starting up and healthy,
        whatever it has queued.
        """
        with self._lock:
            self._last_updated.setdefault(family, self._wall())

    def queued(self, family: IPFamily) -> None:
        """Learn that a change of ``family`` is waiting; only the oldest one counts."""
        with self._lock:
            self._oldest_queued.setdefault(family, self._clock())

    def taken(self, family: IPFamily) -> None:
        """Learn that what was queued for ``family`` is being worked on from now on."""
        with self._lock:
            oldest = self._oldest_queued.pop(family, None)
            if oldest is not None:
                self._in_work.setdefault(family, oldest)

    def updated(self, family: IPFamily) -> None:
        """Learn that the kernel now holds everything that was taken for ``family``.

        What has been queued since then is still waiting.
        """
        with self._lock:
            self._in_work.pop(family, None)
            self._last_updated[family] = self._wall()
            self._synced.add(family)

    def node_changed(self, node: Node | None) -> None:
        """Take ``node`` as the present Node object of this node, ``None`` when it is gone.

        A Node object that is gone, to be registered anew perhaps, leaves what was last known of
        it, as in kube-proxy; where none is needed, the node is eligible again.
        """
        with self._lock:
            if node is not None:
                self._eligible = not node.deleting and _TO_BE_DELETED not in node.taints
            elif not self._needs_node:
                self._eligible = True

    def waiting_since(self, family: IPFamily) -> float | None:
        """When the oldest change that the kernel does not hold yet came, by ``clock``."""
        with self._lock:
            return self._in_work.get(family, self._oldest_queued.get(family))

    def waiting_seconds(self, family: IPFamily) -> float:
        """How long the oldest change that the kernel does not hold yet has waited; 0 if none."""
        since = self.waiting_since(family)
        return 0.0 if since is None else max(0.0, self._clock() - since)

    @property
    def synced(self) -> bool:
        """Whether a family has been synced and none that was begun still waits for its first."""
        with self._lock:
            begun = self._last_updated.keys() | self._oldest_queued.keys() | self._in_work.keys()
            return bool(self._synced) and begun <= self._synced

    @property
    def healthy(self) -> bool:
        """Whether no change has been waiting for the kernel too long; the node does not matter."""
        with self._lock:
            status, _ = self._families(self._clock())
        return all(family["healthy"] for family in status.values())

    def healthz(self) -> Answer:
        """Answer /healthz: fit to receive traffic, as load balancers ask."""
        return self._answer(with_node=True, stalled=())

    def livez(self) -> Answer:
        """Answer /livez: working, whatever becomes of the node, as the kubelet asks."""
        return self._answer(with_node=False, stalled=self._stalled())

    def readyz(self) -> Answer:
        """Answer /readyz: the rules of every family are written, and up to date.

        The node does not matter, and neither does how long ago the last sync was.
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
        """Say why a family is not ready; the caller holds the lock."""
        reasons: list[str] = []
        if family not in self._synced:
            reasons += [f"waiting for the first list of {kind}s" for kind in unlisted]
            if not unlisted:
                reasons.append("waiting for the first sync to succeed")
        if not status.get(family.value, {"healthy": True})["healthy"]:
            reasons.append(f"a change has waited for the kernel for {self._timeout:g} s or more")
        return reasons

    def _answer(self, *, with_node: bool, stalled: Sequence[str]) -> Answer:
        with self._lock:
            status, last_updated = self._families(self._clock())
            eligible = self._eligible
        now = _rfc3339(self._wall())
        working = all(family["healthy"] for family in status.values()) and not stalled
        fit = working and (eligible or not with_node)
        body: dict[str, Any] = {
            # While all is well this is "now", as for kube-proxy: its readers take an old time
            # for a fault, even if only nothing has changed since.
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
        """When the oldest waiting change came, ``none`` if there is none; under the lock."""
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


def _encoded(body: dict[str, Any], stalled: Sequence[str], *, fit: bool) -> Answer:
    if stalled:
        body["stalledThreads"] = list(stalled)
    return Answer(200 if fit else 503, json.dumps(body, separators=(",", ":")).encode())


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
