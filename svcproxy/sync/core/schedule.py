"""When to sync, and how thoroughly. No clock: the caller says what time it is."""

import math


class Schedule:
    """Decides when the next sync is due.

    A single change is synced at once. While changes keep coming, a sync begins one pause after the
    end of the previous one, and carries all changes that arrived meanwhile. The pause is
    ``min_interval`` (as in kube-proxy's ``BoundedFrequencyRunner``). If ``adaptive``, it is as long
    as the previous sync took, at most ``min_interval`` and ``longest_pause``: short syncs follow
    each other closely, and long ones leave half of the time to others.

    Every ``period`` the kernel is compared from scratch, which repairs foreign changes. After a
    failure the comparison is retried after 1 s, 2 s, 4 s and so on up to ``period``; changes that
    arrive meanwhile wait for it.

    A certain foreign change leads to a comparison shortly after it, because a firewall reloads in
    several steps. If such changes go on, the waits grow up to ``min_interval``. An uncertain one
    leads to a comparison as soon; but after each comparison that found nothing, the next uncertain
    one waits longer (1 s, 2 s and so on up to ``period``), so that a busy neighbour does not cause
    comparisons all the time.

    All times are seconds of one monotonic clock.
    """

    FIRST_RETRY = 1.0
    FIRST_REPAIR = 0.1
    """The wait before a repair; it doubles with each repair that follows soon after another."""
    PEACE = 1.5
    """After this many minimum intervals without a repair, the wait starts from the first value."""
    SHORTEST_PAUSE = 0.002
    """The shortest pause between two syncs of an adaptive schedule."""

    def __init__(
        self,
        min_interval: float,
        period: float,
        *,
        adaptive: bool = False,
        longest_pause: float = math.inf,
    ) -> None:
        self._min_interval = min_interval
        self._period = period
        self._adaptive = adaptive
        self._longest_pause = longest_pause
        self._pause = min_interval
        self._requested = True
        self._failures = 0
        self._ended: float | None = None
        self._compared: float | None = None
        self._suspected = False
        self._unfounded = 0
        self._contested = 0
        self._doubted: float | None = None

    @property
    def period(self) -> float:
        """Seconds between two comparisons from scratch, and the longest back-off."""
        return self._period

    def request(self) -> None:
        """Ask for a sync as soon as allowed."""
        self._requested = True

    @property
    def requested(self) -> bool:
        """Whether a sync was asked for that has not run."""
        return self._requested

    def doubt(self, *, sure: bool = True) -> None:
        """Ask for a comparison: another program changed our rules, or, if not ``sure``, may have."""
        if sure:
            self._compared = None
        else:
            self._suspected = True

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
            return self._ended + self._repair_pause()
        compare = self._compare_at(self._compared)
        if self._requested:
            return min(self._ended + self._pause, max(compare, self._ended))
        return compare

    def thorough(self, now: float) -> bool:
        """Whether the sync that begins ``now`` has to compare from scratch."""
        if self._compared is None or self._failures:
            return True
        return now >= self._compare_at(self._compared)

    def _compare_at(self, compared: float) -> float:
        """When to compare again, after a comparison that ended then."""
        if not self._suspected:
            return compared + self._period
        wait = max(self._min_interval, self._doubled(self._unfounded)) if self._unfounded else 0.0
        return max(compared + wait, (self._ended or 0.0) + self._repair_pause())

    def _repair_pause(self) -> float:
        return min(self._min_interval, self.FIRST_REPAIR * 2.0 ** min(self._contested, 16))

    def succeeded(
        self, now: float, *, compared: bool, took: float = 0.0, found: bool = False
    ) -> None:
        """Note the end of a successful sync.

        Args:
            now: when it was.
            compared: whether it was from scratch.
            took: how long it took.
            found: whether it changed anything in the kernel.
        """
        if compared:
            self._note_comparison(now, found=found)
        self._ended = now
        if self._adaptive:
            self._pause = max(took, self.SHORTEST_PAUSE)
            self._pause = min(self._pause, self._longest_pause, self._min_interval)
        self._requested = False
        self._failures = 0

    def _note_comparison(self, now: float, *, found: bool) -> None:
        if self._ended is not None and (self._compared is None or self._suspected):
            peace = self.PEACE * self._min_interval
            recently = self._doubted is not None and now <= self._doubted + peace
            self._contested = self._contested + 1 if recently else 1
            self._doubted = now
        else:
            self._contested = 0
        self._unfounded = self._unfounded + 1 if self._suspected and not found else 0
        self._suspected = False
        self._compared = now

    def failed(self, now: float) -> float:
        """Note the end of a failed sync; return the seconds until the next attempt."""
        self._ended = now
        self._requested = True
        self._failures += 1
        return self._backoff()

    def _backoff(self) -> float:
        return max(self._min_interval, self._doubled(self._failures))

    def _doubled(self, times: int) -> float:
        doubled: float = self.FIRST_RETRY * 2.0 ** min(times - 1, 16)
        return min(doubled, self._period)
