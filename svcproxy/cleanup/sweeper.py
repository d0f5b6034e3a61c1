"""Removing leftovers once the present mode serves, without delaying it."""

from collections.abc import Callable, Iterable
from threading import Condition, Thread

import structlog

from svcproxy import limits, threads
from svcproxy.cleanup.active_mode import ActiveMode, Swept, report
from svcproxy.model.names import IPFamily
from svcproxy.sync.loop import SyncResult

log = structlog.get_logger()

_CONSIDERATION_SECONDS = 10.0
_REMEDY = "end what still uses it; it is tried again every sync period"


class Sweeper:
    """A thread that sweeps a family after its first sync, and ends when nothing is left to do.

    Until that sync the old rules serve; afterwards both do, and what goes is the old. What could
    not be removed is tried again every ``period`` seconds.
    """

    def __init__(self, present: ActiveMode, families: Iterable[IPFamily], period: float) -> None:
        self._present = present
        self._period = period
        self._condition = Condition()
        self._waiting = set(families)
        self._ready: list[IPFamily | None] = []
        self._failed: list[IPFamily | None] = []
        self._told: dict[IPFamily | None, tuple[str, ...]] = {}
        self._stopped = False
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threads.spawn(self._run, "leftovers")

    def stop(self, seconds: float) -> None:
        """End the thread; wait at most ``seconds`` for the step that is under way."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join(seconds)

    def follower(self, family: IPFamily) -> Callable[[SyncResult], None]:
        """What a family's loop has to call after its syncs."""

        def synced(_settled: SyncResult) -> None:
            if family in self._waiting:
                self._synced(family)

        return synced

    def _synced(self, family: IPFamily) -> None:
        with self._condition:
            self._waiting.discard(family)
            self._ready.append(family)
            if not self._waiting:
                self._ready.append(None)  # what both families share
            self._condition.notify()

    def _run(self) -> None:
        while parts := self._next():
            for part in parts:
                if self._stopped:
                    return
                threads.working(limits.THREAD_SWEEP_SECONDS)
                swept = self._sweep(part)
                # What is told once need not be told again every sync period.
                told, self._told[part] = self._told.get(part, ()), swept.problems
                new = tuple(problem for problem in swept.problems if problem not in told)
                report(Swept(swept.removed, new), _REMEDY)
                if swept.problems:
                    self._failed.append(part)

    def _next(self) -> list[IPFamily | None]:
        """Wait for something to do; nothing when all is done, or the thread has to end."""
        threads.waiting()
        with self._condition:
            if self._waiting or self._failed:
                patience = self._period if self._failed else None
                self._condition.wait_for(lambda: self._stopped or bool(self._ready), patience)
                if self._ready:
                    # Reading another mode's rules would compete with another family's first sync.
                    self._condition.wait_for(
                        lambda: self._stopped or not self._waiting, _CONSIDERATION_SECONDS
                    )
            parts, self._ready = self._ready, []
            if not parts:
                parts, self._failed = self._failed, []
            return [] if self._stopped else parts

    def _sweep(self, part: IPFamily | None) -> Swept:
        try:
            # It needs parts of every backend, and nobody should wait for these to be loaded.
            from svcproxy.cleanup.sweep import sweep_common, sweep_family  # noqa: PLC0415

            if part is None:
                return sweep_common(self._present)
            return sweep_family(self._present, part)
        except Exception as error:
            log.exception("leftovers.defect")
            return Swept({}, (str(error),))
