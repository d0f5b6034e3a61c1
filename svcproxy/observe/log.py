"""The log: one line per event on stderr, for people (text) or for machines (JSON).

Events are short names such as ``sync.done`` with key-value pairs; use
``structlog.get_logger()``. Lines go straight to the file descriptor: a reader that went away
costs the lines, never the daemon.
"""

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from svcproxy.config import LogFormat

_STDERR = 2
# Like kube-proxy's klog: the details of single steps appear from -v=2 on
_DEBUG_FROM = 2
_LABELS = {"warning": "warn", "critical": "fatal"}
_JSON_TYPES = frozenset({str, int, float, bool, list, dict, type(None)})
_PLAIN = re.compile(r"[^\s\"=\x00-\x1f\x7f]+")

Write = Callable[[bytes], object]


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
        write: where finished lines go, stderr if not given; called from any thread.
        adjustable: decides instead of ``verbosity``, event by event; that has its price even for
            events that are not shown.
    """
    shown = adjustable is not None or verbosity >= _DEBUG_FROM
    level = logging.DEBUG if shown else logging.INFO
    as_json = LogFormat(log_format) is LogFormat.JSON
    sink = write or _stderr_writer()
    structlog.configure(
        processors=[
            *([adjustable] if adjustable else []),
            structlog.processors.add_log_level,
            _add_time,
            structlog.processors.format_exc_info,
            _render_json if as_json else _render_text,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _LineLogger(sink),
        cache_logger_on_first_use=True,
    )
    _adopt_libraries()


def _stderr_writer() -> Write:
    # With descriptor 2 closed by whoever started us, that number may by now be any other file
    return _StderrWriter() if sys.__stderr__ is not None else len


class _StderrWriter:
    """Writes whole lines to file descriptor 2, and gives up in silence."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, line: bytes) -> None:
        # sys.stderr is not used: what it could not flush would make the exit fail as well
        try:
            with self._lock:
                while line:
                    line = line[os.write(_STDERR, line) :]
        except OSError:  # closed, or full and non-blocking
            return


class _LineLogger:
    """What structlog hands finished lines to: any level, one place."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def msg(self, line: bytes) -> None:
        self._write(line)

    debug = info = warning = error = critical = exception = msg


def _add_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["ts"] = datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
    return event


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    line = {key: event.pop(key) for key in ("ts", "level", "event")}
    for key, value in event.items():
        # Named tuples and enums are told as in the text format, not as lists
        line[key] = value if type(value) in _JSON_TYPES else str(value)
    return json.dumps(line, default=str, separators=(",", ":")).encode() + b"\n"


def _render_text(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    level = event.pop("level")
    head = f"{event.pop('ts')} {_LABELS.get(level, level):<5} {_one_line(event.pop('event'))}"
    trace = event.pop("exception", None)
    pairs = "".join(f" {key}={_value(value)}" for key, value in event.items())
    # A traceback is for people: it stays readable, set off from the lines of the log
    lines = trace.splitlines() if isinstance(trace, str) else ()
    return "\n".join([head + pairs, *(f"    {line}" for line in lines), ""]).encode(
        errors="backslashreplace"
    )


def _one_line(text: Any) -> str:
    text = str(text)
    return text if text.isprintable() else json.dumps(text)


def _value(value: Any) -> str:
    """Return ``value`` as logfmt has it; foreign text can neither end a line nor fake a pair."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


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
