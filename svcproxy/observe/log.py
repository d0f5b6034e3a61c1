"""The log: one line per event on stderr, for people (text) or for machines (JSON).

Events are short names such as ``sync.done`` with key-value pairs; use
``structlog.get_logger()``. A log call never blocks: ``log_writer`` has the queue and the thread. It
never fails either, and what outsiders can cause is limited: the length of a line and what it can
contain in ``log_text``, the number of lines of each event in ``log_rate``.
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
from svcproxy.observe.core.log_rate import Rates
from svcproxy.observe.core.log_text import Line, format_exception, render_json, render_text
from svcproxy.observe.log_writer import QueuedWriter
from svcproxy.refusals import REFUSALS

# Like kube-proxy's klog: the details of single steps appear from -v=2 on
_DEBUG_FROM = 2
_LEVELS = {"warn": "warning", "exception": "error"}

Write = Callable[[bytes], object]


class _Sink(Protocol):
    def __call__(self, line: bytes, *, urgent: bool = False) -> object: ...


class Verbosity:
    """The ``-v`` number of a log whose detail can be changed while it is written."""

    def __init__(self, number: int) -> None:
        self.debug = False
        self.set(number)

    def set(self, number: int) -> None:
        """Take a new number; from 2 on debug events are shown."""
        self.debug = number >= _DEBUG_FROM

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Work as a structlog processor."""
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
    """Set up the log of the whole process, that of libraries included.

    Args:
        log_format: ``text`` or ``json``.
        verbosity: the ``-v`` number; from 2 on debug events are shown.
        write: where finished lines go; called from any thread. Without it they go to stderr, from
            a thread of their own.
        adjustable: decides instead of ``verbosity``, event by event; that has its price even for
            events that are not shown.
    """
    shown = adjustable is not None or verbosity >= _DEBUG_FROM
    level = logging.DEBUG if shown else logging.INFO
    as_json = LogFormat(log_format) is LogFormat.JSON
    lines = _Lines(render_json if as_json else render_text)
    lines.sink = _to_stderr(lines) if write is None else _Direct(write)
    structlog.configure(
        processors=[*([adjustable] if adjustable else []), lines],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _LineLogger(lines.sink),
        cache_logger_on_first_use=True,
    )
    _adopt_libraries()


def flush() -> None:
    """Wait until what was logged is written; at most ``limits.LOG_FLUSH_SECONDS``."""
    for writer, lines in _writers:
        lines.report(last=True)
        writer.flush()


_writers: list[tuple[QueuedWriter, "_Lines"]] = []


def _to_stderr(lines: "_Lines") -> _Sink:
    # With descriptor 2 closed by whoever started us, that number may by now be any other file
    if sys.__stderr__ is None:
        return _Direct(len)
    writer = QueuedWriter(lines.lost, lines.report)
    writer.start()
    if not _writers:
        atexit.register(flush)
    _writers[:] = [(writer, lines)]
    threads.before_death(_flush_queue)
    return writer


def _flush_queue() -> None:
    """What ``threads.die`` calls: no locks, no new lines."""
    for writer, _ in _writers:
        writer.flush()


class _Direct:
    """Hands lines to a function in the caller's thread."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def __call__(self, line: bytes, *, urgent: bool = False) -> None:  # noqa: ARG002 - no queue
        self._write(line)


class _LineLogger:
    """What structlog hands finished lines to: any level, one place."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink

    def msg(self, line: bytes) -> None:
        self._sink(line)

    def urgent(self, line: bytes) -> None:
        self._sink(line, urgent=True)

    debug = info = msg
    warning = error = critical = exception = urgent


class _Lines:
    """Makes finished lines of events: the last structlog processor. Any thread may call it."""

    def __init__(self, render: Callable[[EventDict], Line]) -> None:
        self._render = render
        # Reentrant: the garbage collector may run a finalizer that logs while we hold it.
        self._lock = threading.RLock()
        self._rates = Rates()
        self.sink: _Sink = _Direct(len)

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> bytes:
        """Return the line of an event, unless there were too many lines of it."""
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
            told = {key: event.get(key, "") for key in ("ts", "level", "event")}
            line, cut = self._render({**told, "not_shown": type(error).__name__})
        if cut:
            REFUSALS.count("log", "length")
        return line

    def report(self, *, last: bool = False) -> bool:
        """Say which lines were suppressed; return whether there is more to say later."""
        if self._rates.suppressing:
            with self._lock:
                found = self._rates.reports(_now(), all_of_them=last)
            for event, lines in found:
                self.sink(self._note("log.suppressed", of=event, lines=lines), urgent=True)
        return self._rates.suppressing

    def lost(self, lines: int) -> bytes:
        """Return the line that says how many lines stderr did not take in time."""
        return self._note("log.lost", lines=lines, reason="stderr was not read")

    def _note(self, name: str, **values: object) -> bytes:
        return self._line({"event": name, "level": "warning", **values})


_now = time.monotonic


def _exception(info: Any) -> BaseException | None:
    """Return the exception that ``exc_info`` stands for."""
    if isinstance(info, BaseException):
        return info
    if isinstance(info, tuple) and len(info) > 1 and isinstance(info[1], BaseException):
        return info[1]
    return sys.exc_info()[1] if info and not isinstance(info, tuple) else None


def catch_uncaught() -> None:
    """Log uncaught exceptions; Python's own hooks write to stderr, which may block."""
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
    """Hands records of the standard library's logging to our log."""

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
        except Exception:  # noqa: BLE001 - a library's faulty log call must not hurt us
            logger.warning("library.message", logger=record.name, message=str(record.msg))


def _adopt_libraries() -> None:
    """Send warnings of urllib3, kubernetes and the interpreter to our log, the rest nowhere."""
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _ToStructlog)]:
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
