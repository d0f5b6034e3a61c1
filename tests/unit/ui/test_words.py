"""Times and numbers as texts."""

import pytest

from svcproxy.ui.core.words import age, ago, count, duration, moment


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 µs"),
        (0.00042, "420 µs"),
        (0.0039, "3.9 ms"),
        (0.264, "264 ms"),
        (4.26, "4.3 s"),
        (42.4, "42 s"),
        (300, "5 min"),
        (7200, "2 h"),
        (864000, "10 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ages() -> None:
    assert ago(0, 100.0) == "never"
    assert ago(99.5, 100.0) == ago(101.0, 100.0) == "just now"
    assert ago(96.1, 100.0) == "3 s ago"
    assert age(9.9) == "9 s"
    assert age(61) == "61 s"


def test_counts_and_moments() -> None:
    assert count(1, "Service") == "1 Service"
    assert count(1204, "Service") == "1,204 Services"
    assert count(0, "entry", "entries") == "0 entries"
    assert moment(0) == "1970-01-01 00:00:00 UTC"
