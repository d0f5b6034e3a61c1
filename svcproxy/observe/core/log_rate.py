"""Rate limits of log lines: one token bucket per event name.

A flood of one event suppresses lines of that event only. The caller passes the time. Pure.
"""

from svcproxy import limits

OTHER_EVENTS = "(others)"
"""The event name for all events beyond the first ``limits.LOG_EVENT_NAMES``."""


class _Bucket:
    """The tokens of one event, and its suppressed lines that are not reported yet."""

    __slots__ = ("filled", "first", "last", "suppressed", "tokens")

    def __init__(self, now: float) -> None:
        self.tokens = float(limits.LOG_BURST_LINES)
        self.filled = now
        self.suppressed = 0
        self.first = self.last = 0.0


class LineRateLimiter:
    """Decides which lines are logged; not thread-safe.

    All times are seconds of the same monotonic clock.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}
        self._suppressing: set[str] = set()

    @property
    def suppressing(self) -> bool:
        """Whether suppressed lines wait to be reported."""
        return bool(self._suppressing)

    def admit(self, event: str, now: float) -> bool:
        """Return whether a line of ``event`` may be logged now; if not, count it as suppressed."""
        bucket = self._buckets.get(event)
        if bucket is None:
            if len(self._buckets) >= limits.LOG_EVENT_NAMES:
                event = OTHER_EVENTS
            bucket = self._buckets.setdefault(event, _Bucket(now))
        tokens = bucket.tokens + (now - bucket.filled) * limits.LOG_LINES_PER_SECOND
        bucket.filled = now
        if tokens >= 1.0:
            bucket.tokens = min(tokens, limits.LOG_BURST_LINES) - 1.0
            return True
        bucket.tokens = tokens
        if not bucket.suppressed:
            bucket.first = now
            self._suppressing.add(event)
        bucket.suppressed += 1
        bucket.last = now
        return False

    def take_reports(self, now: float, *, final: bool = False) -> list[tuple[str, int]]:
        """Return and reset the counts of suppressed lines that are due to be reported.

        An event is due when none of its lines was suppressed for ``limits.LOG_CALM_SECONDS``, and
        at the latest ``limits.LOG_REPORT_SECONDS`` after the first one was.

        Args:
            now: the time.
            final: whether to return all counts, because the process ends.

        Returns:
            Event names and numbers of suppressed lines.
        """
        found = []
        for event in sorted(self._suppressing):
            bucket = self._buckets[event]
            calm = now - bucket.last >= limits.LOG_CALM_SECONDS
            long_ago = now - bucket.first >= limits.LOG_REPORT_SECONDS
            if calm or long_ago or final:
                found.append((event, bucket.suppressed))
                bucket.suppressed = 0
        self._suppressing.difference_update(event for event, _ in found)
        return found
