"""The driver of a reflector: one thread that keeps one kind of object up to date."""

import random
import threading
import time
from functools import partial

import structlog

from svcproxy import limits, threads
from svcproxy.kube.client import Client, IdleError, Response, TooLargeError, TransportError
from svcproxy.kube.core.backoff import Backoff
from svcproxy.kube.core.lines import LineSplitter, LongLine
from svcproxy.kube.core.outputs import (
    Cause,
    Changed,
    Listed,
    Malformed,
    Output,
    Removed,
    Request,
    Step,
)
from svcproxy.kube.core.reflector import Reflector
from svcproxy.kube.credentials import ConnectionSettings
from svcproxy.kube.delivery import Delivery
from svcproxy.kube.source import Sink, SourceError
from svcproxy.model.names import Kind
from svcproxy.refusals import REFUSALS

_log = structlog.get_logger()

_UNAUTHORIZED = 401
_OK = 200
# Servers end watches after a while; different times keep a fleet from coming back at once.
_WATCH_SECONDS = (300, 600)
_HEALTHY_SECONDS = 5.0
_HASTY_STEPS = 3


class WatchThread:
    """Lists and watches one kind in its own thread until it is stopped.

    The thread reports progress before each request and read, with the longest time it may take.

    Args:
        kind: the kind of the objects.
        path: the path of the resource on the API server.
        reflector: decides what to ask and what the answers mean.
        client: sends the requests.
        settings: how long to wait for answers.
        required: whether the daemon has to wait for these objects. Otherwise they count as synced
            if the server does not have them, and requests go on with back-off.
        annotations: the annotation keys of Services to keep.
    """

    def __init__(
        self,
        kind: Kind,
        path: str,
        reflector: Reflector,
        client: Client,
        settings: ConnectionSettings,
        *,
        required: bool = True,
        annotations: frozenset[str] = frozenset(),
    ) -> None:
        self._kind = kind
        self._path = path
        self._reflector = reflector
        self._client = client
        self._settings = settings
        self._required = required
        self._annotations = annotations
        self._trouble = ""
        self._stopping = threading.Event()
        self._backoff = Backoff(random.uniform, longest=settings.backoff_seconds)
        self._hasty = 0
        self._synced = False
        self._thread: threading.Thread | None = None

    def start(self, sink: Sink) -> None:
        """Start the thread."""
        delivery = Delivery(self._kind, sink, self._annotations)
        self._thread = threads.spawn(partial(self._run, sink, delivery), f"watch-{self._kind}")

    def stop(self) -> None:
        """Ask the thread to end; its requests are ended by closing the client."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread, and tell whether it has ended."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self, sink: Sink, delivery: Delivery) -> None:
        while not self._stopping.is_set():
            try:
                step = self._attempt(sink, delivery)
            except Exception:  # noqa: BLE001 - a new list makes up for what was lost
                # A defect of svcproxy, or no memory. If this handler fails, the process ends.
                _log.exception("watch.crashed", kind=self._kind)
                self._reflector.forget()
                step = Step.BACK_OFF
            self._pause(step)

    def _pause(self, step: Step) -> None:
        """Wait before the next request if ``step`` asks for it, or if too many ended early."""
        if step is Step.GO_ON:
            return
        if step is Step.SECOND_LOOK:
            _log.warning(
                "list.empty",
                kind=self._kind,
                action="requesting the list again before removing anything",
            )
            threads.waiting()
            self._stopping.wait(self._settings.second_look_seconds)
            return
        self._hasty += 1
        if step is Step.BACK_OFF or self._hasty > _HASTY_STEPS:
            threads.waiting()
            self._stopping.wait(self._backoff.next())

    def _attempt(self, sink: Sink, delivery: Delivery) -> Step:
        """Send one request and handle its answer to the end."""
        request = self._reflector.request()
        failed = True
        try:
            with self._send(request) as response:
                output = self._answer(request, response, sink, delivery)
            failed = output.step is Step.BACK_OFF
        except TooLargeError as error:
            output = self._reflector.too_large(str(error))
        except IdleError as error:
            output = self._reflector.broken(Cause.IDLE, str(error))
        except TransportError as error:
            output = self._reflector.broken(Cause.CUT, str(error))
        except SourceError as error:
            output = self._reflector.broken(Cause.CUT, f"credentials: {error}")
        self._apply(output, sink, delivery)
        if failed and not self._required:
            self._sync(sink)
        return output.step

    def _send(self, request: Request) -> Response:
        query = dict(request.query)
        idle = self._settings.list_seconds
        if request.watch:
            query["timeoutSeconds"] = str(random.randint(*_WATCH_SECONDS))  # noqa: S311 - no secret
            idle = self._settings.idle_seconds
        if request.initial:
            idle = min(idle, self._settings.initial_seconds)
        self._progress(limits.RESPONSE_HEAD_SECONDS)
        return self._client.get(self._path, query, stream=request.watch, idle_seconds=idle)

    def _answer(
        self, request: Request, response: Response, sink: Sink, delivery: Delivery
    ) -> Output:
        """Read an answer; return the output that ends it."""
        if response.status != _OK:
            self._progress(limits.RESPONSE_HEAD_SECONDS)
            output = self._reflector.refused(response.status, response.read_error())
            if response.status == _UNAUTHORIZED:
                self._renew_credentials()
            return output
        if not request.watch:
            self._progress(limits.LIST_SECONDS)
            body = response.read(request.body_limit, limits.LIST_SECONDS)
            self._progress()
            return self._reflector.page(body)
        began = time.monotonic()
        try:
            return self._stream(request, response, sink, delivery)
        finally:
            if time.monotonic() - began > _HEALTHY_SECONDS:
                self._healthy()

    def _stream(
        self, request: Request, response: Response, sink: Sink, delivery: Delivery
    ) -> Output:
        """Handle a watch line by line until it ends or the reflector ends it."""
        splitter = LineSplitter(limits.WATCH_LINE_BYTES)
        listed = not request.initial
        for chunk in response.chunks():
            self._progress()
            lines = splitter.feed(chunk)
            if not lines:
                continue
            if long := sum(isinstance(line, LongLine) for line in lines):
                REFUSALS.count("watch", "line_bytes", long)
            output = self._reflector.lines(lines)
            if output.step is not Step.GO_ON:
                return output
            if listed and output.effects:
                self._healthy()
            if self._apply(output, sink, delivery):
                listed = True
                # From here on it is a watch like any other, with a bookmark every minute.
                response.be_patient(self._settings.idle_seconds)
        return self._reflector.broken(Cause.CLOSED)

    def _progress(self, seconds: float = 0.0) -> None:
        """Report progress; the next step may take ``seconds``, and one time-out of a read."""
        slowest = max(self._settings.list_seconds, self._settings.idle_seconds)
        threads.working(seconds + slowest + limits.THREAD_STEP_SECONDS)

    def _renew_credentials(self) -> None:
        try:
            self._client.reload()
        except SourceError as error:
            _log.warning("credentials.failed", kind=self._kind, error=str(error))

    def _healthy(self) -> None:
        self._backoff.reset()
        self._hasty = 0

    def _apply(self, output: Output, sink: Sink, delivery: Delivery) -> bool:
        """Pass an output to the sink and the log; return whether it completed a list."""
        listed = False
        for effect in output.effects:
            if isinstance(effect, Changed):
                delivery.present(effect.name, effect.obj)
            elif isinstance(effect, Removed):
                delivery.absent(effect.name)
            elif isinstance(effect, Malformed):
                delivery.malformed(effect.name, effect.field, effect.reason)
            else:
                listed = True
                delivery.deliver()
                self._listed(effect, sink)
        delivery.deliver()
        if not self._stopping.is_set():
            if output.trouble:
                self._complain(output.trouble)
            if output.restarted:
                sink.restarted(self._kind, output.restarted)
        return listed

    def _listed(self, listed: Listed, sink: Sink) -> None:
        _log.info("list.done", kind=self._kind, objects=listed.count)
        self._trouble = ""
        self._sync(sink)

    def _sync(self, sink: Sink) -> None:
        if not self._synced:
            sink.synced(self._kind)  # if this fails, the next list repeats it
            self._synced = True

    def _complain(self, trouble: str) -> None:
        """Log what went wrong; for kinds that may not exist at all, only once."""
        if self._required or trouble != self._trouble:
            _log.warning("watch.interrupted", kind=self._kind, reason=trouble)
        self._trouble = trouble
