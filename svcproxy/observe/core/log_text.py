r"""Renders log lines: untrusted text is limited in length and cannot forge lines or pairs. Pure.

A line has an event, a level, a time and key-value pairs. Untrusted text appears in values, in
tracebacks and in messages of libraries. It can neither end a line, nor fake a pair or a line, nor
send escape sequences to a terminal: characters that are not printable (controls, line ends,
escapes, bidirectional overrides, lone surrogates) are written as ``\uXXXX``.
"""

import contextlib
import json
import math
import re
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from svcproxy import limits

_LABELS = {"warning": "warn", "critical": "fatal"}
_PLAIN = re.compile(r"[!#-<>-~]+")
_NO_WORD = re.compile(r"[\s\"=]")
_SHORT_CHARS = 64
_LONGEST_INTEGER = 1 << 64
_CONTAINERS = (list, dict)


class LogLine(NamedTuple):
    """A finished line, and whether a part of it was cut off."""

    data: bytes
    cut: bool


def render_text(event: Mapping[str, Any]) -> LogLine:
    """Render an event as logfmt; a traceback follows on lines of its own, indented."""
    line, cut = _text(event, limits.LOG_VALUE_CHARS)
    if len(line) > limits.LOG_LINE_BYTES:
        line, cut = _text(event, _SHORT_CHARS)[0], True
    if len(line) > limits.LOG_LINE_BYTES:
        line = line[: limits.LOG_LINE_BYTES - 4] + b"...\n"
    return LogLine(line, cut)


def render_json(event: Mapping[str, Any]) -> LogLine:
    """Render an event as one JSON object."""
    line, cut = _json(event, limits.LOG_VALUE_CHARS)
    if len(line) > limits.LOG_LINE_BYTES:
        line, cut = _json(event, _SHORT_CHARS)[0], True
    if len(line) > limits.LOG_LINE_BYTES:
        head = {key: event.get(key) for key in ("ts", "level", "event")}
        line, _ = _json(head, _SHORT_CHARS)
    return LogLine(line, cut)


def format_exception(error: BaseException) -> str:
    """Return the traceback of ``error``: its innermost frames, with the middle of long text cut."""
    try:
        text = "".join(traceback.format_exception(error, limit=-limits.LOG_TRACE_FRAMES))
    except Exception:  # noqa: BLE001 - an exception without text is still logged
        text = type(error).__name__
    text = text.rstrip("\n")
    half = limits.LOG_TRACE_CHARS // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n...\n{text[-half:]}"


def _text(event: Mapping[str, Any], longest: int) -> tuple[bytes, bool]:
    pieces, cut = [], False
    for key, value in event.items():
        if key not in ("ts", "level", "event", "exception"):
            shown, shortened = _logfmt(value, longest)
            pieces.append(f" {_escaped(key)}={shown}")
            cut |= shortened
    level = event.get("level", "")
    name, shortened = _cut(_string(event.get("event")), longest)
    name = (
        name if name.isprintable() else f'"{_escaped(json.dumps(name, ensure_ascii=False)[1:-1])}"'
    )
    head = f"{event.get('ts')} {_LABELS.get(level, level):<5} {name}{''.join(pieces)}\n"
    trace = event.get("exception")
    if trace is not None:
        # A traceback keeps its lines; the indentation sets them apart from lines of the log
        frames = _string(trace)[: 2 * limits.LOG_TRACE_CHARS].split("\n")
        head += "".join(f"    {_escaped(line)}\n" for line in frames)
    return head.encode(), cut or shortened


def _logfmt(value: Any, longest: int) -> tuple[str, bool]:
    """Return ``value`` in logfmt, and whether it was cut."""
    kind = type(value)
    if kind is bool:
        return ("true" if value else "false"), False
    text, cut = _cut(f"{value:.6g}" if kind is float else _string(value), longest)
    if _PLAIN.fullmatch(text):
        return text, cut
    if text and text.isprintable() and not _NO_WORD.search(text):
        return text, cut
    return _escaped(json.dumps(text, ensure_ascii=False)), cut


def _json(event: Mapping[str, Any], longest: int) -> tuple[bytes, bool]:
    line: dict[str, Any] = {key: event.get(key) for key in ("ts", "level", "event")}
    line["event"], cut = _cut(_string(line["event"]), longest)
    for key, value in event.items():
        if key == "exception":
            line[key] = _string(value)[: 2 * limits.LOG_TRACE_CHARS]
        elif key not in ("ts", "level", "event"):
            line[key], shortened = _plain_json(value, longest)
            cut |= shortened
    data = json.dumps(line, separators=(",", ":"), allow_nan=False).encode()
    return data.replace(b"\x7f", b"\\u007f") + b"\n", cut


def _plain_json(value: Any, longest: int) -> tuple[Any, bool]:
    """Return ``value`` as a value that JSON can represent, and whether it was cut."""
    kind = type(value)
    if kind is str:
        return _cut(value, longest)
    if value is None or kind is bool:
        return value, False
    if kind is int and -_LONGEST_INTEGER < value < _LONGEST_INTEGER:
        return value, False
    if kind is float and math.isfinite(value):
        return value, False
    if kind in _CONTAINERS:
        with contextlib.suppress(Exception):  # values that JSON cannot represent become text below
            text = json.dumps(value, default=str, allow_nan=False)
            if len(text) <= longest:
                return json.loads(text), False
    # Named tuples and enums are written as in the text format, not as JSON lists
    return _cut(_string(value), longest)


def _string(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - no value may prevent its line from being written
        return f"<{type(value).__name__} without text>"


def _cut(text: str, longest: int) -> tuple[str, bool]:
    if len(text) <= longest:
        return text, False
    return f"{text[:longest]}... ({len(text) - longest} more)", True


def _escaped(text: str) -> str:
    r"""Replace characters that are not printable by ``\uXXXX``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
