"""The log: one line per event on stderr, as text or as JSON.

Events are short names such as ``sync.done`` with key-value pairs; log with
``structlog.get_logger()``. A log call never blocks (``log_writer`` has the queue and the thread)
and never raises. Untrusted input cannot flood or forge the log: ``log_text`` limits the length
and the characters of a line, ``log_rate`` the number of lines of each event.
"""

import atexit
import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol

import structlog
from structlog.typing import EventDict, WrappedLogger

from svcproxy import limits, threads
from svcproxy.config import LogFormat
from svcproxy.observe.core.log_rate import LineRateLimiter
from svcproxy.observe.core.log_text import LogLine, format_exception, render_json, render_text
from svcproxy.observe.log_writer import QueuedWriter
from svcproxy.refusals import REFUSALS

# As with kube-proxy's klog, details of single steps appear from -v=2 on
_DEBUG_VERBOSITY = 2
_LEVELS = {"warn": "warning", "exception": "error"}

Write = Callable[[bytes], object]


class _Sink(Protocol):
    def __call__(self, line: bytes, *, urgent: bool = False) -> object: ...


class Verbosity:
    """A ``-v`` number that can be changed at run time; a structlog processor."""

    def __init__(self, number: int) -> None:
        self.debug = False
        self.set(number)

    def set(self, number: int) -> None:
        """Change the number; from 2 on, debug events are logged."""
        self.debug = number >= _DEBUG_VERBOSITY

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Drop debug events below verbosity 2."""
        if method == "debug" and not self.debug:
            raise structlog.DropEvent
        return event


def configure(
    log_format: LogFormat | str,
    verbosity: int,
    write: Write | None = None,
    *,
    adjustable: Verbosity | None = None,
) -> None:
    """Set up logging of the whole process, libraries included.

    Args:
        log_format: ``text`` or ``json``.
        verbosity: the ``-v`` number; from 2 on, debug events are logged.
        write: called with each finished line, in the logging thread. By default a dedicated
            thread writes the lines to stderr.
        adjustable: overrides ``verbosity`` and may change at run time. Debug calls that it drops
            cost more than those dropped by a fixed ``verbosity``.
    """
    with_debug = adjustable is not None or verbosity >= _DEBUG_VERBOSITY
    level = logging.DEBUG if with_debug else logging.INFO
    as_json = LogFormat(log_format) is LogFormat.JSON
    lines = _LineRenderer(render_json if as_json else render_text)
    lines.sink = _stderr_sink(lines) if write is None else _DirectSink(write)
    structlog.configure(
        processors=[*([adjustable] if adjustable else []), lines],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _LineLogger(lines.sink),
        cache_logger_on_first_use=True,
    )
    _capture_library_logs()


def recent() -> bytes:
    """Return the last lines that were written; at most ``limits.LOG_RECENT_BYTES``."""
    return b"".join(writer.recent() for writer, _ in _writers)


def flush() -> None:
    """Wait until all logged lines are written; at most ``limits.LOG_FLUSH_SECONDS``."""
    for writer, lines in _writers:
        lines.report_suppressed(final=True)
        writer.flush()


_writers: list[tuple[QueuedWriter, "_LineRenderer"]] = []


def _stderr_sink(lines: "_LineRenderer") -> _Sink:
    # The parent process started us with descriptor 2 closed; by now 2 may be any other file
    if sys.__stderr__ is None:
        return _DirectSink(len)
    writer = QueuedWriter(lines.lost_line, lines.report_suppressed)
    writer.start()
    if not _writers:
        atexit.register(flush)
    _writers[:] = [(writer, lines)]
    threads.on_fatal_exit(_flush_queue)
    return writer


def _flush_queue() -> None:
    """Write queued lines before ``threads.die`` exits; takes no locks and adds no lines."""
    for writer, _ in _writers:
        writer.flush()


class _DirectSink:
    """Passes lines to a function in the logging thread, without a queue."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def __call__(self, line: bytes, *, urgent: bool = False) -> None:  # noqa: ARG002 - no queue
        self._write(line)


class _LineLogger:
    """The logger that structlog wraps: passes finished lines of every level to one sink."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink

    def msg(self, line: bytes) -> None:
        self._sink(line)

    def urgent(self, line: bytes) -> None:
        self._sink(line, urgent=True)

    debug = info = msg
    warning = error = critical = exception = urgent


class _LineRenderer:
    """The last structlog processor: renders events as lines, within the rate limit.

    Safe from any thread.
    """

    def __init__(self, render: Callable[[EventDict], LogLine]) -> None:
        self._render = render
        # Reentrant: the garbage collector may run a finalizer that logs while we hold the lock.
        self._lock = threading.RLock()
        self._rates = LineRateLimiter()
        self.sink: _Sink = _DirectSink(len)

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> bytes:
        """Return the line of an event, or drop it if the event exceeds its rate limit."""
        with self._lock:
            admitted = self._rates.admit(str(event["event"])[: limits.LOG_VALUE_CHARS], _now())
        if not admitted:
            REFUSALS.count("log", "rate")
            raise structlog.DropEvent
        event["level"] = _LEVELS.get(method, method)
        if "exc_info" in event:
            error = _exception(event.pop("exc_info"))
            if error is not None:
                event["exception"] = format_exception(error)
        return self._line(event)

    def _line(self, event: EventDict) -> bytes:
        event["ts"] = datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
        try:
            line, cut = self._render(event)
        except Exception as error:  # noqa: BLE001 - no value may make a log call fail
            head = {key: event.get(key, "") for key in ("ts", "level", "event")}
            line, cut = self._render({**head, "not_shown": type(error).__name__})
        if cut:
            REFUSALS.count("log", "length")
        return line

    def report_suppressed(self, *, final: bool = False) -> bool:
        """Log how many lines of each event were suppressed.

        Args:
            final: whether the process ends, so that nothing can be reported later.

        Returns:
            Whether suppressed lines remain to be reported later.
        """
        if self._rates.suppressing:
            with self._lock:
                reports = self._rates.take_reports(_now(), final=final)
            for event, lines in reports:
                self.sink(self._note("log.suppressed", of=event, lines=lines), urgent=True)
        return self._rates.suppressing

    def lost_line(self, lines: int) -> bytes:
        """Return the line that reports how many lines were dropped because the queue was full."""
        return self._note("log.lost", lines=lines, reason="stderr was not read")

    def _note(self, name: str, **values: object) -> bytes:
        return self._line({"event": name, "level": "warning", **values})


_now = time.monotonic


def _exception(info: Any) -> BaseException | None:
    """Return the exception that ``exc_info`` refers to."""
    if isinstance(info, BaseException):
        return info
    if isinstance(info, tuple) and len(info) > 1 and isinstance(info[1], BaseException):
        return info[1]
    return sys.exc_info()[1] if info and not isinstance(info, tuple) else None


def catch_uncaught() -> None:
    """Log uncaught exceptions instead of letting Python's hooks write to stderr, which may block."""
    log = structlog.get_logger()

    def uncaught(
        _kind: type[BaseException], error: BaseException, _trace: TracebackType | None
    ) -> None:
        log.critical("uncaught", exc_info=error)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else ""
        log.critical("uncaught", thread=name, exc_info=args.exc_value)

    def unraisable(args: Any) -> None:
        log.error("unraisable", where=repr(args.object), exc_info=args.exc_value)

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


class _ToStructlog(logging.Handler):
    """Forwards records of the standard library's logging to this log."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger()
        try:
            logger.log(
                min(record.levelno // 10 * 10, logging.CRITICAL),
                "library.message",
                logger=record.name,
                message=record.getMessage(),
                exc_info=record.exc_info,
            )
        except Exception:  # noqa: BLE001 - a library's faulty log call must not raise here
            logger.warning("library.message", logger=record.name, message=str(record.msg))


def _capture_library_logs() -> None:
    """Log warnings and errors of urllib3, kubernetes and the interpreter; discard the rest."""
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _ToStructlog)]:
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
