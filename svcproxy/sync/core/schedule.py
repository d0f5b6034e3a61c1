"""When to sync, and whether the next sync is a resync. The caller supplies the time."""

import math


class Schedule:
    """Decides when the next sync is due.

    A single change is synced immediately. While changes keep coming, a sync starts one pause after
    the end of the previous one and includes all changes that arrived in between. The pause is
    ``min_interval`` (as in kube-proxy's ``BoundedFrequencyRunner``). If ``adaptive``, it is as long
    as the previous sync took, at most ``min_interval`` and ``longest_pause``: short syncs follow
    each other closely, and long ones leave half of the time to other programs.

    A resync compares the whole kernel state with the desired state. It is due every ``period``, and
    repairs what other programs changed. After a failed sync it is due after 1 s, 2 s, 4 s and so on
    up to ``period``; changes that arrive in between wait for it.

    A change by another program that certainly affects svcproxy's rules leads to a resync after a
    short wait, because a firewall reloads in several steps. If such changes continue, the waits grow
    up to ``min_interval``. An uncertain change leads to a resync as soon. But after each such resync
    that found nothing, the next uncertain change waits longer (1 s, 2 s and so on up to ``period``),
    so that a program with frequent changes does not cause constant resyncs.

    All times are seconds of one monotonic clock.

    Args:
        min_interval: the shortest time between two syncs.
        period: the time between two resyncs, and the longest back-off.
        adaptive: whether the pause adapts to the duration of syncs.
        longest_pause: the longest pause of an adaptive schedule.
    """

    FIRST_RETRY = 1.0
    """The wait after the first failure; it doubles with each further one."""
    FIRST_REPAIR = 0.1
    """The wait before a repair; it doubles with each repair that follows soon after another."""
    REPAIR_RESET = 1.5
    """After so many minimum intervals without a repair, the wait is the first one again."""
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
        self._resynced: float | None = None  # None: a resync is due
        self._suspected = False
        self._false_suspicions = 0
        self._repairs = 0
        self._last_repair: float | None = None

    @property
    def period(self) -> float:
        """Seconds between two resyncs, and the longest back-off."""
        return self._period

    def request(self) -> None:
        """Request a sync as soon as allowed."""
        self._requested = True

    @property
    def requested(self) -> bool:
        """Whether a sync was requested that has not run."""
        return self._requested

    def request_resync(self, *, certain: bool = True) -> None:
        """Request a resync, because another program changed the kernel.

        Args:
            certain: whether the change certainly affects svcproxy's rules; otherwise it may.
        """
        if certain:
            self._resynced = None
        else:
            self._suspected = True

    @property
    def failing(self) -> bool:
        """Whether the last sync failed."""
        return self._failures > 0

    def due(self) -> float:
        """Return the time at which the next sync may start; it may be in the past."""
        if self._ended is None:
            return 0.0
        if self._failures:
            return self._ended + self._backoff()
        if self._resynced is None:
            return self._ended + self._repair_pause()
        resync = self._resync_at(self._resynced)
        if self._requested:
            return min(self._ended + self._pause, max(resync, self._ended))
        return resync

    def is_resync_due(self, now: float) -> bool:
        """Whether the sync that starts ``now`` has to be a resync."""
        if self._resynced is None or self._failures:
            return True
        return now >= self._resync_at(self._resynced)

    def _resync_at(self, last: float) -> float:
        """Return when the next resync is due, after the ``last`` one."""
        if not self._suspected:
            return last + self._period
        suspicions = self._false_suspicions
        wait = max(self._min_interval, self._doubled(suspicions)) if suspicions else 0.0
        return max(last + wait, (self._ended or 0.0) + self._repair_pause())

    def _repair_pause(self) -> float:
        return min(self._min_interval, self.FIRST_REPAIR * 2.0 ** min(self._repairs, 16))

    def succeeded(
        self, now: float, *, resynced: bool, took: float = 0.0, found: bool = False
    ) -> None:
        """Note the end of a successful sync.

        Args:
            now: when it ended.
            resynced: whether it was a resync, or a resync was due and certainly unnecessary.
            took: its duration.
            found: whether it changed anything in the kernel.
        """
        if resynced:
            self._note_resync(now, found=found)
        self._ended = now
        if self._adaptive:
            self._pause = max(took, self.SHORTEST_PAUSE)
            self._pause = min(self._pause, self._longest_pause, self._min_interval)
        self._requested = False
        self._failures = 0

    def _note_resync(self, now: float, *, found: bool) -> None:
        if self._ended is not None and (self._resynced is None or self._suspected):
            reset = self.REPAIR_RESET * self._min_interval
            recently = self._last_repair is not None and now <= self._last_repair + reset
            self._repairs = self._repairs + 1 if recently else 1
            self._last_repair = now
        else:
            self._repairs = 0
        self._false_suspicions = self._false_suspicions + 1 if self._suspected and not found else 0
        self._suspected = False
        self._resynced = now

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
