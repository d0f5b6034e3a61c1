import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator

import pytest
import structlog

from svcproxy.config import LogFormat
from svcproxy.model.names import IPFamily, Kind, NamespacedName
from svcproxy.observe import log

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


class Lines:
    def __init__(self) -> None:
        self.raw: list[bytes] = []

    def __call__(self, line: bytes) -> None:
        self.raw.append(line)

    def take(self) -> str:
        """Return the only line written so far, without time and line end."""
        (line,) = self.raw
        self.raw.clear()
        text = line.decode()
        assert re.match(STAMP + " ", text)
        assert text.endswith("\n")
        return text[25:-1]


Configure = Callable[..., Lines]


@pytest.fixture
def configure() -> Iterator[Configure]:
    def configured(
        log_format: LogFormat | str = "text",
        verbosity: int = 0,
        adjustable: log.Verbosity | None = None,
    ) -> Lines:
        lines = Lines()
        log.configure(log_format, verbosity, lines, adjustable=adjustable)
        return lines

    root = logging.getLogger()
    level = root.level
    yield configured
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.setLevel(level)
    for handler in [h for h in root.handlers if isinstance(h, log._ToStructlog)]:
        root.removeHandler(handler)


def test_text(configure: Configure) -> None:
    lines = configure(LogFormat.TEXT)
    logger = structlog.get_logger()
    logger.info("sync.done", family=IPFamily.IPV4, full=True, ops=12, ms=1.23456789)
    assert lines.take() == "info  sync.done family=IPv4 full=true ops=12 ms=1.23457"
    logger.warning("object.skipped", name=NamespacedName("ns", "web"))
    assert lines.take() == "warn  object.skipped name=ns/web"
    logger.error("sync.failed", error="exit code 1")
    assert lines.take() == 'error sync.failed error="exit code 1"'
    logger.critical("over")
    assert lines.take() == "fatal over"


def test_the_verbosity_can_change_at_run_time(configure: Configure) -> None:
    verbosity = log.Verbosity(0)
    lines = configure(adjustable=verbosity)
    logger = structlog.get_logger()
    for number, shown in ((0, 0), (2, 1), (1, 0), (5, 1)):
        verbosity.set(number)
        logger.debug("step")
        assert len(lines.raw) == shown
        lines.raw.clear()
    verbosity.set(0)
    logger.info("sync.done")
    assert lines.take() == "info  sync.done"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('say "x"', r'"say \"x\""'),
        ("two\nlines", r'"two\nlines"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("gr\u00fcn", "gr\u00fcn"),
        (None, "None"),
        ("[::1]:80", "[::1]:80"),
    ],
)
def test_text_values_cannot_break_lines(configure: Configure, value: object, shown: str) -> None:
    lines = configure()
    structlog.get_logger().info("event", key=value)
    assert lines.take() == f"info  event key={shown}"


def test_text_survives_invalid_unicode(configure: Configure) -> None:
    lines = configure()
    structlog.get_logger().info("event\n", key="\udcff")
    assert lines.take() == 'info  "event\\n" key="\\udcff"'


def test_text_shows_a_traceback_below_the_line(configure: Configure) -> None:
    lines = configure()
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        structlog.get_logger().exception("sync.failed", family="IPv4")
    first, *trace = lines.take().splitlines()
    assert first == "error sync.failed family=IPv4"
    assert trace[0] == "    Traceback (most recent call last):"
    assert trace[-1] == "    ZeroDivisionError: division by zero"


def test_json(configure: Configure) -> None:
    lines = configure(LogFormat.JSON)
    structlog.get_logger().warning(
        "sync.done",
        family=IPFamily.IPV4,
        name=NamespacedName("ns", "web"),
        ops=12,
        full=False,
        text="two\nlines\udcff",
        gone=None,
        kinds=[Kind.NODE, NamespacedName("a", "b")],
    )
    (raw,) = lines.raw
    assert raw.count(b"\n") == 1
    parsed = json.loads(raw)
    assert list(parsed)[:3] == ["ts", "level", "event"]
    assert re.fullmatch(STAMP, parsed.pop("ts"))
    assert parsed == {
        "level": "warning",
        "event": "sync.done",
        "family": "IPv4",
        "name": "ns/web",
        "ops": 12,
        "full": False,
        "text": "two\nlines\udcff",
        "gone": None,
        "kinds": ["Node", ["a", "b"]],
    }


def test_json_keeps_a_traceback_in_the_line(configure: Configure) -> None:
    lines = configure("json")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        structlog.get_logger().exception("sync.failed")
    assert json.loads(lines.raw[0])["exception"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(("verbosity", "shown"), [(0, 1), (1, 1), (2, 2), (9, 2)])
def test_debug_shows_from_verbosity_2_on(configure: Configure, verbosity: int, shown: int) -> None:
    lines = configure("text", verbosity)
    structlog.get_logger().debug("detail")
    structlog.get_logger().info("news")
    assert len(lines.raw) == shown


def test_warnings_and_errors_of_libraries_are_logged(configure: Configure) -> None:
    configure("text", 9)
    lines = configure("text", 9)  # once more: no line may come twice
    logger = logging.getLogger("urllib3.connectionpool")
    logger.info("Starting new HTTPS connection")
    logger.debug("GET /api")
    assert lines.raw == []
    logger.warning("Retrying after %s", "reset")
    assert lines.take() == (
        'warn  library.message logger=urllib3.connectionpool message="Retrying after reset"'
    )
    logger.log(35, "odd level")
    assert lines.take().startswith("warn  ")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logger.exception("failed")
    assert lines.take().endswith("ZeroDivisionError: division by zero")


def test_a_faulty_log_call_of_a_library_is_logged(configure: Configure) -> None:
    lines = configure()
    # Straight to our handler: pytest's own would complain
    log._ToStructlog().emit(
        logging.LogRecord("library", logging.WARNING, "f", 1, "%d endpoints", ("many",), None)
    )
    assert lines.take() == 'warn  library.message logger=library message="%d endpoints"'


def test_warnings_go_to_the_log(configure: Configure) -> None:
    lines = configure()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    assert "logger=py.warnings" in lines.take()


def test_lines_go_to_stderr(configure: Configure, capfd: pytest.CaptureFixture[str]) -> None:
    configure()
    log.configure("text", 0)
    structlog.get_logger().info("hello", to="stderr")
    log.flush()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(" info  hello to=stderr\n")


SCRIPT = """
import structlog
from svcproxy.observe import log
log.configure("text", 0)
for number in range(1000):
    structlog.get_logger().info("line", number=number)
print("alive")
"""


def test_without_a_reader_only_log_lines_are_lost() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=False, stdout=subprocess.PIPE, stderr=writing
    )
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"alive\n")


def test_with_stderr_closed_only_log_lines_are_lost() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, SCRIPT],
        check=False,
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, done.stdout) == (0, b"alive\n")
