"""Log lines with any values: one bounded line each, without control characters, valid JSON."""

import json
from typing import Any

from svcproxy import limits
from svcproxy.observe.core.log_text import LogLine, format_exception, render_json, render_text

SEEDS: tuple[bytes, ...] = (
    b"",
    b"\x00plain text",
    b"\x01two\nlines\r\n2026-01-01T00:00:00.000Z error forged",
    b"\x01\x1b[31mred\x1b]0;title\x07\x9b31m\x7f",
    "\x01\u2028\u2029\u202e\u2066\ufeff\u200b".encode(),
    b"\x02\xff\xfe\xed\xb0\x80",
    b"\x03" + b"9" * 40,
    b"\x04nan",
    b"\x05" + b"[" * 60,
    b"\x06" + b"x" * 5000,
    b"\x07message of an exception\nwith lines",
    b'\x01" level=error key="value',
)


def check(data: bytes) -> None:
    """Render a line with values made of ``data``, in both formats."""
    event = {
        "ts": "2026-01-01T00:00:00.000Z",
        "level": "warning",
        "event": _text(data[:40]) or "event",
        **_values(data),
    }
    _check_text(render_text(dict(event)), "exception" in event)
    _check_json(render_json(dict(event)), event)


def _values(data: bytes) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number, piece in enumerate(data.split(b"\x00")[:20]):
        if piece and piece[0] % 8 == 7:
            values["exception"] = format_exception(ValueError(_text(piece[1:]) * 50))
        elif piece:
            values[f"key{number}"] = _value(piece[0] % 8, piece[1:])
    return values


def _value(kind: int, data: bytes) -> Any:
    text = _text(data)
    match kind:
        case 0:
            return data
        case 1 | 2:
            return text
        case 3:
            # From 4,300 digits on, Python refuses to write an integer in decimals
            return 10 ** (min(len(data), 60) * 100) if data else True
        case 4:
            return float(text) if text in {"nan", "inf", "-inf", "1.5"} else float(len(data))
        case 5:
            nested: Any = text
            for byte in data:
                nested = [nested, byte] if byte % 2 else {(1, 2): nested, text: byte}
            return nested
        case _:
            return text * (1 + min(len(data), 100))


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _check_text(line: LogLine, with_trace: bool) -> None:  # noqa: FBT001 - two kinds of lines
    text = line.data.decode()
    first, *rest = text.split("\n")
    assert rest
    assert rest[-1] == ""
    assert len(line.data) <= limits.LOG_LINE_BYTES
    assert first.startswith("2026-01-01T00:00:00.000Z warn  ")
    assert with_trace or len(rest) == 1, "a value began a line"
    for part in (first, *rest):
        assert part.isprintable()
    assert all(part.startswith(("    ", "...")) for part in rest[:-1])


def _check_json(line: LogLine, event: dict[str, Any]) -> None:
    assert line.data.endswith(b"\n")
    assert line.data.count(b"\n") == 1
    assert len(line.data) <= limits.LOG_LINE_BYTES
    assert all(0x20 <= byte < 0x7F for byte in line.data[:-1])
    decoded = json.loads(line.data)
    assert list(decoded)[:3] == ["ts", "level", "event"]
    assert decoded.keys() <= event.keys()
    assert decoded["level"] == "warning"
