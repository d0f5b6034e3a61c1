"""Limits log lines that clients or repeated defects can cause to one a minute."""

import time

_PAUSE_SECONDS = 60.0


class Seldom:
    """Says whether a line about something is due; it is at most once a minute.

    Keys come from the code, never from input, so there are few of them. Safe from any thread: the
    worst that a race does is one line more.
    """

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def due(self, key: str) -> bool:
        """Whether a line about ``key`` is due now; if so, it counts as written."""
        now = time.monotonic()
        if now - self._last.get(key, -_PAUSE_SECONDS) < _PAUSE_SECONDS:
            return False
        self._last[key] = now
        return True
