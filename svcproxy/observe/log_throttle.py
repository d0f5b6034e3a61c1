"""Limits log lines that clients or repeated defects can cause to one a minute for each key."""

import time

_INTERVAL_SECONDS = 60.0


class LogThrottle:
    """Allows one log line per minute and key.

    Keys are constants in the code, never input, so there are few of them. Safe from any thread:
    a race costs at most one extra line.
    """

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def allow(self, key: str) -> bool:
        """Return whether a line with ``key`` may be logged now; if so, its interval starts again."""
        now = time.monotonic()
        if now - self._last.get(key, -_INTERVAL_SECONDS) < _INTERVAL_SECONDS:
            return False
        self._last[key] = now
        return True
