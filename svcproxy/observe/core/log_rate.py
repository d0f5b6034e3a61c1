"""Rate limits of log lines: one token bucket for each event name.

So a flood of one event suppresses lines of that event only. The caller passes the time.
"""

from svcproxy import limits

OTHERS = "(others)"
"""The event name under which those beyond ``limits.LOG_EVENT_NAMES`` are counted."""


class _Bucket:
    """The tokens of one event, and the lines suppressed that no report has mentioned."""

    __slots__ = ("filled", "first", "last", "suppressed", "tokens")

    def __init__(self, now: float) -> None:
        self.tokens = float(limits.LOG_BURST_LINES)
        self.filled = now
        self.suppressed = 0
        self.first = self.last = 0.0


class Rates:
    """Decides which lines are logged; not safe for several threads at once.

    All times are seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}
        self._suppressing: set[str] = set()

    @property
    def suppressing(self) -> bool:
        """Whether there are suppressed lines that no report has mentioned."""
        return bool(self._suppressing)

    def admit(self, event: str, now: float) -> bool:
        """Whether a line of ``event`` may be logged now; otherwise it counts as suppressed."""
        bucket = self._buckets.get(event)
        if bucket is None:
            if len(self._buckets) >= limits.LOG_EVENT_NAMES:
                event = OTHERS
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

    def reports(self, now: float, *, all_of_them: bool = False) -> list[tuple[str, int]]:
        """Take what has to be reported: events and how many of their lines were suppressed.

        An event is reported when it has calmed down, or from time to time if it does not.

        Args:
            now: the time.
            all_of_them: whether to report the others as well, because the process ends.
        """
        found = []
        for event in sorted(self._suppressing):
            bucket = self._buckets[event]
            calm = now - bucket.last >= limits.LOG_CALM_SECONDS
            long_ago = now - bucket.first >= limits.LOG_REPORT_SECONDS
            if calm or long_ago or all_of_them:
                found.append((event, bucket.suppressed))
                bucket.suppressed = 0
        self._suppressing.difference_update(event for event, _ in found)
        return found
