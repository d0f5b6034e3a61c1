"""Removing stale kernel objects in the background, once the active mode serves."""

from collections.abc import Iterable
from threading import Condition, Thread

import structlog

from svcproxy import limits, threads
from svcproxy.backends.mode_spec import ActiveMode
from svcproxy.cleanup.result import CleanupResult, report
from svcproxy.model.names import IPFamily
from svcproxy.sync.after_sync import SyncHook, SyncResult

log = structlog.get_logger()

_OTHER_FAMILY_SECONDS = 10.0
"""How long the clean-up of one family waits for the first sync of the other."""
_REMEDY = "stop what still uses it; the clean-up is retried every sync period"


class Sweeper:
    """A thread that cleans up after a family's first sync, and ends when nothing is left to do.

    Until that sync the rules of the former mode serve traffic; after it both do, and the former
    ones are removed. What could not be removed is retried every ``period`` seconds.

    Args:
        active: the mode that serves now.
        families: the families that it serves.
        period: seconds between attempts.
    """

    def __init__(self, active: ActiveMode, families: Iterable[IPFamily], period: float) -> None:
        self._active = active
        self._period = period
        self._condition = Condition()
        self._unsynced = set(families)
        # Parts of the clean-up: a family, or None for objects of both families.
        self._ready: list[IPFamily | None] = []
        self._failed: list[IPFamily | None] = []
        self._reported: dict[IPFamily | None, tuple[str, ...]] = {}
        self._stopped = False
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threads.spawn(self._run, "cleanup")

    def stop(self, seconds: float) -> None:
        """End the thread; wait at most ``seconds`` for the step in progress."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join(seconds)

    def hook(self, family: IPFamily) -> SyncHook:
        """Return the hook that starts the clean-up after the first sync of a family."""

        def after_sync(_result: SyncResult) -> None:
            if family in self._unsynced:
                self._synced(family)

        return after_sync

    def _synced(self, family: IPFamily) -> None:
        with self._condition:
            self._unsynced.discard(family)
            self._ready.append(family)
            if not self._unsynced:
                self._ready.append(None)
            self._condition.notify()

    def _run(self) -> None:
        while parts := self._next():
            for part in parts:
                if self._stopped:
                    return
                threads.working(limits.THREAD_SWEEP_SECONDS)
                result = self._sweep(part)
                # Do not repeat the same problem every sync period.
                reported, self._reported[part] = self._reported.get(part, ()), result.problems
                new = tuple(problem for problem in result.problems if problem not in reported)
                report(CleanupResult(result.removed, new), _REMEDY)
                if result.problems:
                    self._failed.append(part)

    def _next(self) -> list[IPFamily | None]:
        """Wait for parts to clean up; return none when all are done or the thread should end."""
        threads.waiting()
        with self._condition:
            if self._unsynced or self._failed:
                timeout = self._period if self._failed else None
                self._condition.wait_for(lambda: self._stopped or bool(self._ready), timeout)
                if self._ready:
                    # Reading another mode's rules would slow down the other family's first sync.
                    self._condition.wait_for(
                        lambda: self._stopped or not self._unsynced, _OTHER_FAMILY_SECONDS
                    )
            parts, self._ready = self._ready, []
            if not parts:
                parts, self._failed = self._failed, []
            return [] if self._stopped else parts

    def _sweep(self, part: IPFamily | None) -> CleanupResult:
        try:
            # Imported here because it needs modules of every backend: the start does not wait.
            from svcproxy.cleanup.sweep import sweep_family, sweep_shared  # noqa: PLC0415

            if part is None:
                return sweep_shared(self._active)
            return sweep_family(self._active, part)
        except Exception as error:
            log.exception("cleanup.defect")
            return CleanupResult({}, (str(error),))
