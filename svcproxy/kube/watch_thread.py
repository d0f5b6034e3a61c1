"""The driver of a reflector: a thread that lists and watches one kind of object."""

import random
import threading
import time
from functools import partial

import structlog

from svcproxy import limits, threads
from svcproxy.kube.client import Client, IdleError, Response, ResponseTooLargeError, TransportError
from svcproxy.kube.core.backoff import Backoff
from svcproxy.kube.core.lines import LineSplitter, LongLine
from svcproxy.kube.core.outputs import (
    ApiRequest,
    Cause,
    Changed,
    Listed,
    Malformed,
    Output,
    Removed,
    Step,
)
from svcproxy.kube.core.reflector import Reflector
from svcproxy.kube.credentials import ClientSettings
from svcproxy.kube.delivery import Delivery
from svcproxy.kube.source import Sink, SourceError, WatchState
from svcproxy.model.names import Kind
from svcproxy.refusals import REFUSALS

_log = structlog.get_logger()

_UNAUTHORIZED = 401
_OK = 200
# Servers end watches after this time. It is random, so that nodes do not reconnect together.
_WATCH_SECONDS = (300, 600)
_HEALTHY_SECONDS = 5.0
_EARLY_ENDS_ALLOWED = 3


class WatchThread:
    """Lists and watches one kind in its own thread until it is stopped.

    The thread reports progress before each request and read, with the time that it may take.

    Args:
        kind: the kind of the objects.
        path: the path of the resource on the API server.
        reflector: decides which requests to send, and interprets the answers.
        client: sends the requests.
        settings: the timeouts.
        required: whether syncing must wait for this kind. If not, it counts as synced when the
            server does not have it, and requests are retried with back-off.
        annotations: the annotation keys of Services to keep.
    """

    def __init__(
        self,
        kind: Kind,
        path: str,
        reflector: Reflector,
        client: Client,
        settings: ClientSettings,
        *,
        required: bool = True,
        annotations: frozenset[str] = frozenset(),
    ) -> None:
        self.kind = kind
        self._path = path
        self._reflector = reflector
        self._client = client
        self._settings = settings
        self._required = required
        self._annotations = annotations
        self._last_warning = ""
        self._stopping = threading.Event()
        self._backoff = Backoff(random.uniform, longest=settings.backoff_seconds)
        self._early_ends = 0
        self._synced = False
        self._heard = 0.0
        self._last_version = ""
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> WatchState:
        """How far the watch is; safe from any thread.

        While a new list is being requested, the resourceVersion is that before.
        """
        self._last_version = self._reflector.version or self._last_version
        return WatchState(self._last_version, self._synced, self._heard)

    def start(self, sink: Sink) -> None:
        """Start the thread."""
        delivery = Delivery(self.kind, sink, self._annotations)
        self._thread = threads.spawn(partial(self._run, sink, delivery), f"watch-{self.kind}")

    def stop(self) -> None:
        """Ask the thread to stop; closing the client aborts its requests."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread; return whether it has ended."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self, sink: Sink, delivery: Delivery) -> None:
        while not self._stopping.is_set():
            try:
                step = self._attempt(sink, delivery)
            except Exception:  # noqa: BLE001 - a new list recovers what was lost
                # A bug in svcproxy, or no memory. If this handler fails, the process ends.
                _log.exception("watch.crashed", kind=self.kind)
                self._reflector.start_over()
                step = Step.BACK_OFF
            self._pause(step)

    def _pause(self, step: Step) -> None:
        """Wait as ``step`` requires, or with back-off if too many requests ended early."""
        if step is Step.CONTINUE:
            return
        if step is Step.CONFIRM_EMPTY:
            _log.warning(
                "list.empty",
                kind=self.kind,
                action="requesting the list again before removing anything",
            )
            threads.waiting()
            self._stopping.wait(self._settings.empty_list_retry_seconds)
            return
        self._early_ends += 1
        if step is Step.BACK_OFF or self._early_ends > _EARLY_ENDS_ALLOWED:
            threads.waiting()
            self._stopping.wait(self._backoff.next())

    def _attempt(self, sink: Sink, delivery: Delivery) -> Step:
        """Send one request and process its response to the end."""
        request = self._reflector.next_request()
        failed = True
        try:
            with self._send(request) as response:
                output = self._handle_response(request, response, sink, delivery)
            failed = output.step is Step.BACK_OFF
        except ResponseTooLargeError as error:
            output = self._reflector.page_too_large(str(error))
        except IdleError as error:
            output = self._reflector.response_ended(Cause.IDLE, str(error))
        except TransportError as error:
            output = self._reflector.response_ended(Cause.CUT, str(error))
        except SourceError as error:
            output = self._reflector.response_ended(Cause.CUT, f"credentials: {error}")
        self._apply(output, sink, delivery)
        if failed and not self._required:
            self._sync(sink)
        return output.step

    def _send(self, request: ApiRequest) -> Response:
        query = dict(request.query)
        idle = self._settings.list_seconds
        if request.watch:
            query["timeoutSeconds"] = str(random.randint(*_WATCH_SECONDS))  # noqa: S311 - no secret
            idle = self._settings.idle_seconds
        if request.initial:
            idle = min(idle, self._settings.initial_seconds)
        self._report_progress(limits.RESPONSE_HEAD_SECONDS)
        return self._client.get(self._path, query, stream=request.watch, idle_seconds=idle)

    def _handle_response(
        self, request: ApiRequest, response: Response, sink: Sink, delivery: Delivery
    ) -> Output:
        """Read a response; return the last output of the reflector."""
        self._heard = time.time()
        if response.status != _OK:
            self._report_progress(limits.RESPONSE_HEAD_SECONDS)
            output = self._reflector.error_response(response.status, response.read_error())
            if response.status == _UNAUTHORIZED:
                self._renew_credentials()
            return output
        if not request.watch:
            self._report_progress(limits.LIST_SECONDS)
            body = response.read(request.body_limit, limits.LIST_SECONDS)
            self._report_progress()
            self._heard = time.time()
            return self._reflector.list_page(body)
        began = time.monotonic()
        try:
            return self._read_watch(request, response, sink, delivery)
        finally:
            if time.monotonic() - began > _HEALTHY_SECONDS:
                self._reset_backoff()

    def _read_watch(
        self, request: ApiRequest, response: Response, sink: Sink, delivery: Delivery
    ) -> Output:
        """Process a watch line by line until the server or the reflector ends it."""
        splitter = LineSplitter(limits.WATCH_LINE_BYTES)
        listed = not request.initial
        for chunk in response.chunks():
            self._report_progress()
            self._heard = time.time()
            lines = splitter.feed(chunk)
            if not lines:
                continue
            if long := sum(isinstance(line, LongLine) for line in lines):
                REFUSALS.count("watch", "line_bytes", long)
            output = self._reflector.watch_lines(lines)
            if output.step is not Step.CONTINUE:
                return output
            if listed and output.effects:
                self._reset_backoff()
            if self._apply(output, sink, delivery):
                listed = True
                # The initial events are complete. From now on a bookmark comes every minute.
                response.set_read_timeout(self._settings.idle_seconds)
        return self._reflector.response_ended(Cause.CLOSED)

    def _report_progress(self, seconds: float = 0.0) -> None:
        """Report progress; the next step may take ``seconds`` plus one read timeout."""
        slowest = max(self._settings.list_seconds, self._settings.idle_seconds)
        threads.working(seconds + slowest + limits.THREAD_STEP_SECONDS)

    def _renew_credentials(self) -> None:
        try:
            self._client.reload()
        except SourceError as error:
            _log.warning("credentials.failed", kind=self.kind, error=str(error))

    def _reset_backoff(self) -> None:
        self._backoff.reset()
        self._early_ends = 0

    def _apply(self, output: Output, sink: Sink, delivery: Delivery) -> bool:
        """Pass an output to the sink and the log; return whether it completed a list."""
        listed = False
        for effect in output.effects:
            if isinstance(effect, Changed):
                delivery.changed(effect.name, effect.obj)
            elif isinstance(effect, Removed):
                delivery.removed(effect.name)
            elif isinstance(effect, Malformed):
                delivery.malformed(effect.name, effect.field, effect.reason)
            else:
                listed = True
                delivery.flush()
                self._listed(effect, sink)
        delivery.flush()
        if not self._stopping.is_set():
            if output.warning:
                self._warn(output.warning)
            if output.restarted:
                sink.restarted(self.kind, output.restarted)
        return listed

    def _listed(self, listed: Listed, sink: Sink) -> None:
        _log.info("list.done", kind=self.kind, objects=listed.count)
        self._last_warning = ""
        self._sync(sink)

    def _sync(self, sink: Sink) -> None:
        if not self._synced:
            sink.synced(self.kind)  # if this fails, the next list repeats it
            self._synced = True

    def _warn(self, warning: str) -> None:
        """Log a warning; for kinds that the server may not have, only if it is a new one."""
        if self._required or warning != self._last_warning:
            _log.warning("watch.interrupted", kind=self.kind, reason=warning)
        self._last_warning = warning
