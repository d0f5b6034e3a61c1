"""Untrusted input in the log: its length and rate are limited, and it cannot forge lines."""

import json
import os
import subprocess
import sys
import time

import pytest
import structlog

from svcproxy import limits
from svcproxy.observe import log
from svcproxy.observe.core.log_rate import OTHER_EVENTS, LineRateLimiter
from svcproxy.observe.log_writer import QueuedWriter
from svcproxy.refusals import REFUSALS
from tests.unit.observe.test_log import Configure, Lines, configure

__all__ = ["configure"]

HOSTILE = [
    "x\n2026-01-01T00:00:00.000Z error forged",
    "x\r\nforged",
    "x\u2028forged\u2029forged",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m\x85\x7f",
    "\u202eabc\u2066\u2069\u200f",
    "\udfff\ud800",
    "\x00",
    '" level=error forged="x',
]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_value_cannot_forge_a_line_or_control_a_terminal(
    configure: Configure, value: str, log_format: str
) -> None:
    lines = configure(log_format)
    structlog.get_logger().info("event", key=value, name=value)
    (raw,) = lines.raw
    text = raw.decode()
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    if log_format == "json":
        assert json.loads(raw)["key"] == value
    else:
        assert " level=error" not in text or r"\" level=error" in text


@pytest.mark.parametrize("value", HOSTILE)
def test_an_exception_cannot_forge_a_line(configure: Configure, value: str) -> None:
    lines = configure()
    structlog.get_logger().error("event", exc_info=ValueError(value))
    first, *rest = lines.raw[0].decode().rstrip("\n").split("\n")
    assert first.endswith(" error event")
    for line in rest:
        assert line.startswith("    ")
        assert line.isprintable()


class Sullen:
    def __str__(self) -> str:
        raise MemoryError


@pytest.mark.parametrize(
    "value",
    [10**5000, float("nan"), {"a": float("inf")}, {(1, 2): 3}, Sullen(), [Sullen()], b"\xff"],
    ids=["huge", "nan", "inf", "keys", "no text", "no text in it", "bytes"],
)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_value_makes_a_log_call_fail(
    configure: Configure, value: object, log_format: str
) -> None:
    lines = configure(log_format)
    structlog.get_logger().info("event", key=value)
    (raw,) = lines.raw
    if log_format == "json":
        json.loads(raw, parse_constant=pytest.fail)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_lines_are_bounded(configure: Configure, log_format: str) -> None:
    lines = configure(log_format)
    before = REFUSALS.totals()["log", "length"]
    structlog.get_logger().info("event", key="x" * 1_000_000)
    structlog.get_logger().info("event", **{f"key{n}": "\U0001f600" * 5000 for n in range(100)})
    assert len(lines.raw[0]) < limits.LOG_VALUE_CHARS + 200
    assert b"(998976 more)" in lines.raw[0]
    assert len(lines.raw[1]) <= limits.LOG_LINE_BYTES
    assert REFUSALS.totals()["log", "length"] == before + 2


def deep(number: int) -> None:
    if not number:
        raise ValueError("y" * 1_000_000)
    deep(number - 1)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_tracebacks_are_bounded(configure: Configure, log_format: str) -> None:
    lines = configure(log_format)
    try:
        deep(500)
    except ValueError:
        structlog.get_logger().exception("event")
    (raw,) = lines.raw
    assert len(raw) <= limits.LOG_LINE_BYTES
    assert raw.count(b"in deep") <= limits.LOG_TRACE_FRAMES


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(log, "_now", clock)
    return clock


def test_a_flood_of_one_event_suppresses_only_that_event(
    configure: Configure, clock: Clock
) -> None:
    lines = configure()
    logger = structlog.get_logger()
    for number in range(5000):
        logger.warning("object.skipped", number=number)
    assert len(lines.raw) == limits.LOG_BURST_LINES
    logger.error("sync.failed")
    assert len(lines.raw) == limits.LOG_BURST_LINES + 1
    clock.now += 2.0
    for _ in range(100):
        logger.warning("object.skipped")
    assert len(lines.raw) == limits.LOG_BURST_LINES + 1 + 20


def test_tracebacks_are_limited_in_rate(configure: Configure, clock: Clock) -> None:
    lines = configure()
    for _ in range(1000):
        structlog.get_logger().error("http.failed", exc_info=ValueError("x"))
    assert len(lines.raw) == limits.LOG_BURST_LINES


def test_suppressed_lines_are_reported_after_the_flood() -> None:
    rates = LineRateLimiter()
    for _ in range(limits.LOG_BURST_LINES + 7):
        rates.admit("a", 100.0)
    assert rates.take_reports(101.0) == []
    assert rates.suppressing
    assert rates.take_reports(100.0 + limits.LOG_CALM_SECONDS) == [("a", 7)]
    assert not rates.suppressing


def test_suppressed_lines_are_reported_every_minute_during_a_flood() -> None:
    rates = LineRateLimiter()
    now, take_reports, admitted = 0.0, [], 0
    while now < 185.0:
        admitted += rates.admit("a", now)
        take_reports += rates.take_reports(now)
        now += 0.01
    assert len(take_reports) == 3
    assert admitted <= limits.LOG_BURST_LINES + 186 * limits.LOG_LINES_PER_SECOND


def test_excess_event_names_share_one_bucket() -> None:
    rates = LineRateLimiter()
    admitted = sum(rates.admit(f"event {n}", 0.0) for n in range(10_000))
    assert admitted == limits.LOG_EVENT_NAMES + limits.LOG_BURST_LINES
    assert rates.take_reports(0.0, final=True)[0][0] == OTHER_EVENTS


FLOOD = """
import sys, time
import structlog
from svcproxy.observe import log
log.configure("text", 0)
logger = structlog.get_logger()
begin = time.monotonic()
for number in range(100):
    for name in range(100):
        logger.info(f"event{name}", number=number, padding="x" * 900)
for name in range(100):
    logger.error(f"error{name}")
print(round(time.monotonic() - begin, 3), flush=True)
sys.stdin.read()
(writer, _), = log._writers
writer.flush(float(sys.argv[1]))
logger.info("the.end")
"""


def popen(script: str, stderr: int, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def test_a_full_pipe_blocks_no_log_call_and_lost_lines_are_reported() -> None:
    reading, writing = os.pipe()
    with popen(FLOOD, writing, "60") as process:
        os.close(writing)
        assert process.stdin is not None
        assert process.stdout is not None
        assert float(process.stdout.readline()) < 60.0
        with os.fdopen(reading, encoding="utf-8") as pipe:
            process.stdin.close()
            output = pipe.read().splitlines()
        process.wait(30)
    assert process.returncode == 0
    lost = sum(int(line.split("lines=")[1].split()[0]) for line in output if " log.lost " in line)
    others = [line for line in output if " log.lost " not in line]
    assert lost > 1000
    assert lost + len(others) == 100 * 100 + 100 + 1
    assert sum(" error error" in line for line in output) == 100, "capacity is reserved for errors"
    assert output[-1].endswith(" info  the.end")


def test_a_stuck_reader_delays_the_exit_by_half_a_second() -> None:
    reading, writing = os.pipe()
    with popen(FLOOD, writing, "0.1") as process:
        os.close(writing)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        process.stdin.close()
        assert process.wait(20) == 0
    assert time.monotonic() - began < 15.0
    os.close(reading)


LAST = """
import sys, threading
import structlog
from svcproxy import threads
from svcproxy.observe import log
log.configure("text", 0)
log.catch_uncaught()
for number in range(90):
    structlog.get_logger().info("line", number=number)
structlog.get_logger().error("last.line")
{end}
"""


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [
        ("", 0, "last.line"),
        ("sys.exit(3)", 3, "last.line"),
        ("threads.die('for a test')", 1, "fatal: for a test"),
        ("threads.spawn(lambda: 1 / 0, 'sync').join()", 1, "fatal: thread sync failed: Zero"),
        ("raise KeyError('x')", 1, "    KeyError: 'x'"),
    ],
)
def test_the_last_line_before_the_exit_is_written(end: str, status: int, last: str) -> None:
    with popen(LAST.format(end=end), subprocess.PIPE) as process:
        _, output = process.communicate(timeout=60)
    assert process.returncode == status
    lines = output.splitlines()
    assert last in lines[-1]
    assert sum(" line number=" in line for line in lines) == 90
    assert any("last.line" in line for line in lines)


def test_warnings_of_the_interpreter_do_not_block() -> None:
    script = """
import warnings, sys, os, threading
from svcproxy.observe import log
log.configure("text", 0)
log.catch_uncaught()
class Broken:
    def __del__(self):
        raise ValueError("in a finalizer")
for _ in range(3000):
    Broken()
    warnings.warn("x" * 100, UserWarning, stacklevel=1)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
print("alive", flush=True)
"""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    with popen(script, writing) as process:
        os.close(writing)
        out, _ = process.communicate(timeout=60)
    os.close(reading)
    assert (process.returncode, out) == (0, "alive\n")


def test_lines_after_the_reports(configure: Configure, clock: Clock) -> None:
    taken: Lines = configure()
    for _ in range(limits.LOG_BURST_LINES + 3):
        structlog.get_logger().info("a")
    taken.raw.clear()
    (lines,) = [p for p in structlog.get_config()["processors"] if isinstance(p, log._LineRenderer)]
    clock.now += limits.LOG_CALM_SECONDS
    assert not lines.report_suppressed()
    assert taken.take() == "warn  log.suppressed of=a lines=3"


def test_the_last_lines_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    """Bounded in lines and bytes, in the order in which they were written."""
    writer = QueuedWriter(lambda lost: b"lost %d\n" % lost, lambda: False)
    writer.start()
    for number in range(limits.LOG_RECENT_LINES + 50):
        writer(b"%d\n" % number, urgent=True)
    writer.flush(20)
    written = capfd.readouterr().err.splitlines()
    assert writer.recent().decode().splitlines() == written[-limits.LOG_RECENT_LINES :]
    for number in range(40):
        writer(b"%d " % number + b"x" * 10_000 + b"\n", urgent=True)
    writer.flush(20)
    recent = writer.recent()
    assert limits.LOG_RECENT_BYTES - 20_000 < len(recent) <= limits.LOG_RECENT_BYTES
    assert recent.endswith(b"x\n")
    assert b"\n39 " in recent
