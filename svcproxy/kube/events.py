"""Events: reports problems of this proxy to the cluster's users, next to the affected object.

Goals:

1. Recording never blocks and never fails. An Event matters less than programming rules.
2. Load on the API server is bounded: equal Events are sent once in five minutes, the rate is
   limited, and when the queue is full the oldest Event is dropped.
3. All nodes together create one Event for a conflict between Services. The name of an Event is
   derived from its content and the time, so the API server accepts the first and rejects copies.

The interface is ``event_recorder.EventRecorder``. The format is that of client-go's ``tools/events``, which
kube-proxy uses. The reporting controller is ``kube-proxy`` as well, because people search for that
name; the reporting instance names svcproxy.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from http import HTTPStatus
from typing import Any, NamedTuple

import structlog

from svcproxy import limits, threads
from svcproxy.kube.client import Client, TransportError
from svcproxy.kube.core.backoff import Backoff
from svcproxy.kube.core.decoding import decode_page, decode_uid
from svcproxy.kube.core.wire import ParseError
from svcproxy.kube.credentials import ClientSettings
from svcproxy.kube.source import SourceError
from svcproxy.model.names import Kind, NamespacedName

_log = structlog.get_logger(__name__)

_CONTROLLER = "kube-proxy"
_INSTANCE = "svcproxy"
# The API's limits in bytes (pkg/apis/core/validation/events.go)
_NOTE_BYTES = 1024
_FIELD_BYTES = 128
_NAME_BYTES = 253
# The namespace of Events about cluster-scoped objects
_CLUSTER_NAMESPACE = "default"
_STOP_SECONDS = 1.0
# An attempt sends up to two requests. Reading each head and each body may take this long.
_ATTEMPT_SECONDS = 4 * limits.RESPONSE_HEAD_SECONDS + limits.THREAD_STEP_SECONDS
_LIST_BYTES = limits.WATCH_LINE_BYTES  # the list holds at most one object


@dataclass(frozen=True, slots=True)
class EventLimits:
    """Limits on queued and sent Events.

    Attributes:
        queue: Events that may wait to be sent.
        remembered: recent Events that are compared with new ones.
        dedup_seconds: seconds within which an equal Event is not sent again.
        burst: Events that may be sent without a pause.
        interval: seconds between Events after the burst.
        attempts: how often sending an Event is attempted.
        first_pause: maximum seconds before the second attempt, doubled for each further one.
        request_seconds: the read timeout of a request.
    """

    queue: int = 200
    remembered: int = 2000
    dedup_seconds: float = 300.0
    burst: int = 25
    interval: float = 5.0
    attempts: int = 5
    first_pause: float = 1.0
    request_seconds: float = 10.0


class _Occurrence(NamedTuple):
    """The content of an Event; equal occurrences are the same Event. Nodes have no namespace."""

    regarding: NamespacedName
    reason: str
    note: str
    warning: bool
    action: str


class KubernetesEvents:
    """An ``EventRecorder`` that creates Events in the API.

    Args:
        settings: the API server and the credentials. They are loaded when the first Event is sent.
            If they are unusable, that counts as a failure to send.
        node_name: the name of this node.
        limits: limits on queued and sent Events.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: ClientSettings,
        node_name: str,
        *,
        limits: EventLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node_name = node_name
        self._limits = limits or EventLimits()
        self._clock = clock
        self._sender = _Sender(settings, node_name, self._limits)
        self._changed = threading.Condition()
        self._queue: deque[tuple[_Occurrence, datetime]] = deque()
        self._recent: dict[_Occurrence, float] = {}
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """How many Events were dropped because the queue was full or sending failed."""
        return self._dropped

    def service(
        self,
        name: NamespacedName,
        reason: str,
        note: str,
        *,
        warning: bool = True,
        action: str = "Sync",
    ) -> None:
        """Record an Event about a Service."""
        self._record(_Occurrence(name, reason, note, warning, action))

    def node(
        self, reason: str, note: str, *, warning: bool = False, action: str = "StartKubeProxy"
    ) -> None:
        """Record an Event about this node."""
        regarding = NamespacedName("", self._node_name)
        self._record(_Occurrence(regarding, reason, note, warning, action))

    def stop(self) -> None:
        """Stop sending, and wait at most a second for a request that is in flight."""
        with self._changed:
            self._stopped = True
            self._queue.clear()
            self._changed.notify_all()
        self._sender.close()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def _record(self, occurrence: _Occurrence) -> None:
        with self._changed:
            if self._stopped or self._is_duplicate(occurrence):
                return
            if len(self._queue) >= self._limits.queue:
                self._drop_event(self._queue.popleft()[0])
            self._queue.append((occurrence, datetime.now(UTC)))
            if self._thread is None:
                self._thread = threads.spawn(self._run, "events")
            self._changed.notify_all()

    def _is_duplicate(self, occurrence: _Occurrence) -> bool:
        """Return whether an equal Event was recorded recently; if not, remember this one."""
        now = self._clock()
        while self._recent:
            oldest = next(iter(self._recent))
            fresh = now - self._recent[oldest] < self._limits.dedup_seconds
            if fresh and len(self._recent) < self._limits.remembered:
                break
            del self._recent[oldest]
        if occurrence in self._recent:
            return True
        self._recent[occurrence] = now
        return False

    def _drop_event(self, occurrence: _Occurrence) -> None:
        self._dropped += 1
        self._recent.pop(occurrence, None)  # it was not sent: allow it again

    def _run(self) -> None:
        tokens, filled = float(self._limits.burst), self._clock()
        while (due := self._wait_next()) is not None:
            now = self._clock()
            tokens += (now - filled) / self._limits.interval
            tokens, filled = min(tokens, float(self._limits.burst)), now
            if tokens < 1 and self._sender.pause((1 - tokens) * self._limits.interval):
                return
            tokens -= 1
            if not self._sender.deliver(*due):
                with self._changed:
                    self._drop_event(due[0])

    def _wait_next(self) -> tuple[_Occurrence, datetime] | None:
        """Wait for the next Event; return ``None`` when stopping."""
        with self._changed:
            while not (self._queue or self._stopped):
                threads.waiting()
                self._changed.wait()
            return None if self._stopped else self._queue.popleft()


class _Sender:
    """Sends single Events to the API server; runs in the recorder's thread."""

    def __init__(self, settings: ClientSettings, node_name: str, limits: EventLimits) -> None:
        self._settings = settings
        self._instance = _truncate(f"{_INSTANCE}-{node_name}", _FIELD_BYTES)
        self._limits = limits
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._client: Client | None = None

    def pause(self, seconds: float) -> bool:
        """Wait; return whether the recorder is stopping."""
        return self._stopping.wait(seconds)

    def close(self) -> None:
        """Abort the request in flight; may be called from any thread."""
        with self._lock:
            self._stopping.set()
            if self._client is not None:
                self._client.close()

    def deliver(self, occurrence: _Occurrence, when: datetime) -> bool:
        """Create the Event, with retries; return whether the API server has it."""
        pauses = Backoff(random.uniform, first=self._limits.first_pause)
        for attempt in range(self._limits.attempts):
            if attempt and self.pause(pauses.next()):
                return False
            threads.working(_ATTEMPT_SECONDS + 4 * self._limits.request_seconds)
            try:
                status = self._attempt(occurrence, when)
            except (TransportError, SourceError) as error:
                trouble = str(error)
            except Exception:  # noqa: BLE001 - one Event must not end the thread
                _log.exception("event.defect", reason=occurrence.reason)
                return False
            else:
                if status < 300 or status == HTTPStatus.CONFLICT:  # another node created it
                    return True
                trouble = f"HTTP {status}"
                if not _is_retriable(status):
                    break
        if not self._stopping.is_set():
            _log.debug("event.lost", regarding=str(occurrence.regarding), error=trouble)
        return False

    def _attempt(self, occurrence: _Occurrence, when: datetime) -> int:
        client = self._get_client()
        event = self._event(occurrence, when, self._uid(client, occurrence.regarding))
        path = f"/apis/events.k8s.io/v1/namespaces/{event['metadata']['namespace']}/events"
        seconds = self._limits.request_seconds
        with client.post(path, event, idle_seconds=seconds) as response:
            response.read_error()  # read to the end, so that the connection can be reused
            status = response.status
        if status == HTTPStatus.UNAUTHORIZED:
            client.reload()
        return status

    def _get_client(self) -> Client:
        if self._client is None:
            client = Client(self._settings)
            with self._lock:
                self._client = client
                if self._stopping.is_set():
                    client.close()
        return self._client

    def _uid(self, client: Client, regarding: NamespacedName) -> str:
        """Look up the UID of the object: ``kubectl describe`` shows only Events that have it.

        Events of a Node carry the node's name as UID, as the kubelet's do. A Service is looked up
        with a list request, which kube-proxy's role permits. If that fails, the Event is sent
        without a UID; ``kubectl get events`` still shows it.
        """
        if not regarding.namespace:
            return regarding.name
        path = f"/api/v1/namespaces/{regarding.namespace}/services"
        query = {"fieldSelector": f"metadata.name={regarding.name}", "resourceVersion": "0"}
        seconds = self._limits.request_seconds
        with client.get(path, query, stream=False, idle_seconds=seconds) as response:
            if response.status != HTTPStatus.OK:
                response.read_error()
                return ""
            body = response.read(_LIST_BYTES, seconds)
        try:
            items = decode_page(Kind.SERVICE, body).items
        except ParseError:
            return ""
        return decode_uid(items[0]) if items else ""

    def _event(self, occurrence: _Occurrence, when: datetime, uid: str) -> dict[str, Any]:
        name, reason, note, warning, action = occurrence
        regarding = {
            "apiVersion": "v1",
            "kind": "Service" if name.namespace else "Node",
            "name": name.name,
        }
        regarding |= {"namespace": name.namespace} if name.namespace else {}
        regarding |= {"uid": uid} if uid else {}
        window = int(when.timestamp() / self._limits.dedup_seconds)
        digest = sha256("\0".join((*map(str, occurrence), uid, str(window))).encode())
        suffix = f".{digest.hexdigest()[:16]}"
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": _truncate(name.name, _NAME_BYTES - len(suffix)).rstrip("-.") + suffix,
                "namespace": name.namespace or _CLUSTER_NAMESPACE,
            },
            "eventTime": when.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "reportingController": _CONTROLLER,
            "reportingInstance": self._instance,
            "action": _truncate(action, _FIELD_BYTES),
            "reason": _truncate(reason, _FIELD_BYTES),
            "regarding": regarding,
            "note": _truncate(note, _NOTE_BYTES),
            "type": "Warning" if warning else "Normal",
        }


def _is_retriable(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status >= 500 or status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}


def _truncate(text: str, size: int) -> str:
    """Truncate a text to ``size`` bytes of UTF-8."""
    return text.encode()[:size].decode(errors="ignore")
