"""When to sync, and how thoroughly. No clock: the caller says what time it is."""


class Schedule:
    """Decides when the next sync is due.

    A lone change is synced at once; while changes keep coming, syncs begin a pause after the end
    of the previous one and carry all that came meanwhile. The pause is ``min_interval`` (as with
    kube-proxy's ``BoundedFrequencyRunner``); if ``adaptive``, it is as long as the previous sync
    took and at most ``min_interval``: syncs of a millisecond then follow each other closely, and
    however long they take, they leave the processor alone for half of the time. Every ``period`` the kernel is compared from
    scratch, which repairs what others changed. After a failure the comparison from scratch is
    retried after 1 s, 2 s, 4 s and so on up to ``period``; changes that come in between wait,
    because hammering a kernel that refuses helps nobody.

    All times are seconds of one monotonic clock.
    """

    FIRST_RETRY = 1.0
    SHORTEST_PAUSE = 0.002
    """What comes within this time of an adaptive schedule's sync goes out together."""

    def __init__(self, min_interval: float, period: float, *, adaptive: bool = False) -> None:
        self._min_interval = min_interval
        self._period = period
        self._adaptive = adaptive
        self._pause = min_interval
        self._requested = True
        self._failures = 0
        self._ended: float | None = None
        self._compared: float | None = None

    def request(self) -> None:
        """Ask for a sync as soon as allowed."""
        self._requested = True

    @property
    def requested(self) -> bool:
        """Whether a sync was asked for that has not run."""
        return self._requested

    def doubt(self) -> None:
        """Ask for a comparison as soon as allowed: somebody else has changed the kernel."""
        self._compared = None

    @property
    def failing(self) -> bool:
        """Whether the last sync failed."""
        return self._failures > 0

    def due(self) -> float:
        """The time at which the next sync may begin; it may be in the past."""
        if self._ended is None:
            return 0.0
        if self._failures:
            return self._ended + self._backoff()
        if self._compared is None:
            return self._ended + self._min_interval
        compare = self._compared + self._period
        if self._requested:
            return min(self._ended + self._pause, max(compare, self._ended))
        return compare

    def thorough(self, now: float) -> bool:
        """Whether the sync that begins ``now`` has to compare from scratch."""
        if self._compared is None or self._failures:
            return True
        return now >= self._compared + self._period

    def succeeded(self, now: float, *, compared: bool, took: float = 0.0) -> None:
        """Note the end of a successful sync that took so long; ``compared`` if from scratch."""
        self._ended = now
        if self._adaptive:
            self._pause = min(max(took, self.SHORTEST_PAUSE), self._min_interval)
        self._requested = False
        self._failures = 0
        if compared:
            self._compared = now

    def failed(self, now: float) -> float:
        """Note the end of a failed sync; return the seconds until the next attempt."""
        self._ended = now
        self._requested = True
        self._failures += 1
        return self._backoff()

    def _backoff(self) -> float:
        doubled: float = self.FIRST_RETRY * 2.0 ** min(self._failures - 1, 16)
        return max(self._min_interval, min(doubled, self._period))
