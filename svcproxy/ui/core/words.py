"""Times and numbers as texts on pages. Pure."""

from datetime import UTC, datetime

_UNITS = (
    (0.001, 1e-6, "µs", 0),
    (0.01, 1e-3, "ms", 1),
    (1.0, 1e-3, "ms", 0),
    (10.0, 1.0, "s", 1),
    (120.0, 1.0, "s", 0),
    (7200.0, 60.0, "min", 0),
    (172800.0, 3600.0, "h", 0),
)


def duration(seconds: float) -> str:
    """Return a duration with two or three significant digits: ``3.9 ms``, ``42 s``, ``5 min``."""
    for below, unit, name, digits in _UNITS:
        if seconds < below:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 86400:.0f} days"


def age(seconds: float) -> str:
    """Return a duration in whole seconds, minutes, hours or days."""
    if seconds < 10:
        return f"{int(seconds)} s"
    return duration(seconds)


def ago(then: float, now: float) -> str:
    """Return how long ago something was; ``never`` for time 0."""
    if not then:
        return "never"
    seconds = max(0.0, now - then)
    return "just now" if seconds < 1 else f"{age(seconds)} ago"


def moment(seconds: float) -> str:
    """Return a time in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 Service``, ``1,204 Services``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
