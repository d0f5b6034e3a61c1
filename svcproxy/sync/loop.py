"""The loop of one IP family: it takes changes from the inbox and programs the kernel."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Thread
from typing import Generic, NamedTuple, TypeVar

import structlog

from svcproxy import limits, threads
from svcproxy.backends.base import Backend, BackendError, ExternalChange
from svcproxy.backends.settings import Settings
from svcproxy.kube.source import one_line
from svcproxy.model.names import REQUIRED_KINDS, IPFamily, Kind, ServicePortName
from svcproxy.model.objects import Node
from svcproxy.state.desired import Changes, DesiredState
from svcproxy.sync.after_sync import SyncHook, SyncHooks
from svcproxy.sync.core.held_ports import HeldPorts
from svcproxy.sync.core.not_ready import NotReady
from svcproxy.sync.core.schedule import Schedule
from svcproxy.sync.inbox import Batch, Inbox
from svcproxy.sync.intake import Intake
from svcproxy.sync.programmer import Programmed, Programmer
from svcproxy.sync.report import Repaired, Reporter, Times

log = structlog.get_logger()

Observed = TypeVar("Observed")
Plan = TypeVar("Plan")


class _Sync(NamedTuple):
    """A sync that is to run.

    Attributes:
        begin: when it began.
        changes: the changes to plan.
        full: whether to compare the whole kernel state.
        resync_due: whether the schedule asked for a resync.
        repairs: whether all that it writes repairs the kernel, because no input changed.
    """

    begin: float
    changes: Changes
    full: bool
    resync_due: bool
    repairs: bool


class _Reported(NamedTuple):
    """A change by another program: when it was reported, and whether by an event of the kernel."""

    change: ExternalChange
    at: float
    by_event: bool


class Progress(NamedTuple):
    """How far a loop is.

    Attributes:
        synced: when the last successful sync ended, in seconds since 1970; 0 before the first.
        pending: the number of objects that wait for a sync.
        failing: the reason of the last sync if it failed; empty otherwise.
        held: why Service ports are held back.
        revision: grows before and after objects are stored.
    """

    synced: float
    pending: int
    failing: str
    held: Mapping[ServicePortName, str]
    revision: int


class FamilyLoop(Generic[Observed, Plan]):
    """Owns the desired state and the backend of one family, in a thread of its own.

    Nothing is programmed before the first full list of all ``kinds``: rules made from an incomplete
    list would cut off the Services that are missing.

    Args:
        backend: the backend of the family, after ``probe``.
        state: the desired state of the family.
        schedule: decides when to sync.
        reporter: metrics, health and log of the family.
        settings_for: computes the settings for a Node object.
        hooks: what to call after each successful sync, in this order.
        kinds: the kinds of objects whose lists must be complete before the first sync.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        backend: Backend[Observed, Plan],
        state: DesiredState,
        schedule: Schedule,
        reporter: Reporter,
        *,
        settings_for: Callable[[Node | None], Settings],
        hooks: Sequence[SyncHook] = (),
        kinds: Iterable[Kind] = REQUIRED_KINDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inbox = Inbox(on_put=self._on_put, on_drain=reporter.taken, clock=clock)
        self._backend = backend
        self._state = state
        self._schedule = schedule
        self._reporter = reporter
        self._clock = clock
        self._missing = set(kinds)
        self._intake = Intake(state, reporter)
        self._held = HeldPorts(schedule.FIRST_RETRY, schedule.period)
        self._programmer = Programmer(
            backend,
            state,
            settings_for=settings_for,
            isolation=self._held.isolation,
            reporter=reporter,
            clock=clock,
        )
        self._hooks = SyncHooks(hooks, backend.family, reporter)
        self._external_change: _Reported | None = None
        self._skipped_resyncs = 0
        self._maintain_at: float | None = None
        self._synced = 0.0
        self._revision = 0
        self._failing = ""
        self._thread: Thread | None = None

    @property
    def family(self) -> IPFamily:
        """The family that it programs."""
        return self._backend.family

    @property
    def state(self) -> DesiredState:
        """The desired state; other threads may only read it, and only what says so."""
        return self._state

    @property
    def progress(self) -> Progress:
        """How far it is; safe from any thread."""
        return Progress(
            self._synced,
            self.inbox.waiting + self._state.waiting,
            self._failing,
            self._held.reasons(limits.ADMIN_HELD_PORTS),
            self._revision,
        )

    @property
    def settings(self) -> Settings | None:
        """The backend's settings; ``None`` before the first sync. Safe from any thread."""
        return self._backend.settings if self._synced else None

    @property
    def not_ready(self) -> NotReady:
        """Since when endpoints are not ready."""
        return self._intake.not_ready

    def start(self) -> None:
        """Start the thread."""
        self._thread = threads.spawn(self._run, f"sync-{self._backend.family}")

    def stop(self, seconds: float) -> None:
        """End the thread; wait at most ``seconds`` for a sync in progress.

        An iptables-restore that is still running then completes or fails as a whole on its own.
        """
        self.inbox.close()
        if self._thread is not None:
            self._thread.join(seconds)

    def _on_put(self) -> None:
        if not self._missing:
            self._reporter.queued()

    def _run(self) -> None:
        while not self.inbox.closed:
            threads.waiting()
            if self._missing and not self._intake.interrupted:
                self.inbox.wait_for_lists()
            else:
                self.inbox.wait(max(0.0, self._wake_at() - self._clock()))
            threads.working(limits.THREAD_SYNC_SECONDS)
            self.step()

    def _wake_at(self) -> float:
        """Return when there is something to do even if the inbox stays empty."""
        due = self._schedule.due()
        if not self._schedule.requested:
            due = min(due, self._held.next_due)
        return due if self._maintain_at is None else min(due, self._maintain_at)

    def step(self) -> None:
        """Empty the inbox, and sync or maintain if it is time; never raises."""
        try:
            self._take(self.inbox.drain())
            if self._clock() >= self._held.next_due:
                self._schedule.request()
            if not self._missing and self._clock() >= self._schedule.due():
                self._sync()
            if self._maintain_at is not None and self._clock() >= self._maintain_at:
                self._maintain()
        except Exception as error:  # noqa: BLE001 - reported; the kernel keeps the last good state
            self._reporter.defect("sync", error)
            self._failed(error, full=True)

    def _take(self, batch: Batch) -> None:
        self._revision += 1
        try:
            batch = self._intake.store(batch)
        finally:
            self._revision += 1
        if batch.external_change is not None:
            self._request_resync(_Reported(batch.external_change, batch.changed_at, by_event=True))
        if self._missing:
            self._missing -= batch.synced
            if not self._missing:
                self._reporter.lists_complete()
        elif self._state.pending:
            self._schedule.request()
        elif batch.objects and not self._schedule.requested:
            self._reporter.idle()

    def _request_resync(self, reported: _Reported) -> None:
        """Request a resync because another program changed the kernel, or may have."""
        self._schedule.request_resync(certain=reported.change.certain)
        earlier = self._external_change or reported
        self._external_change = reported._replace(at=min(earlier.at, reported.at))

    def _sync(self) -> None:
        sync = self._next_sync()
        if not (sync.changes or sync.full):
            # Nothing changed, or it changed back.
            self._schedule.succeeded(sync.begin, resynced=sync.resync_due)
            self._reporter.idle()
            return
        try:
            done = self._programmer.program(
                sync.changes, full=sync.full, pending=self._hooks.pending
            )
        except BackendError as error:
            self._failed(error, full=sync.full)
            return
        self._succeeded(sync, done)

    def _next_sync(self) -> _Sync:
        """Check out the changes, and decide whether to compare the whole kernel state."""
        begin = self._clock()
        resync_due = self._schedule.is_resync_due(begin)
        retry_isolated = begin >= self._held.isolation.next_due
        full = retry_isolated or (resync_due and not self._can_skip_resync())
        changes = self._checkout(begin)
        inputs_changed = changes or retry_isolated or self._hooks.first or self._schedule.failing
        return _Sync(begin, changes, full, resync_due, repairs=full and not inputs_changed)

    def _can_skip_resync(self) -> bool:
        """Whether a cheap check says that a resync would find nothing.

        After ``Backend.max_skipped_resyncs`` skipped ones, a resync runs all the same: the check
        misses a change by another program at the very moment of a write by svcproxy.
        """
        if (
            self._external_change
            or self._hooks.first
            or self._schedule.failing
            or not self._backend.is_unchanged()
        ):
            self._skipped_resyncs = 0
            return False
        limit = self._backend.max_skipped_resyncs
        self._skipped_resyncs = (self._skipped_resyncs + 1) % (limit + 1)
        return self._skipped_resyncs > 0

    def _checkout(self, now: float) -> Changes:
        """Return the changes to plan: what changed, and Service ports that are due for a retry."""
        changes = self._state.checkout()
        self._hooks.add(changes)
        if changes.node_changed:
            self._programmer.update_settings()
        self._reporter.changes(changes, self._state.conflicts)
        for service, error in changes.defects.items():
            self._reporter.defect("service", error, service=str(service))
        refused = len(self._held.refused)
        admitted = self._held.admit(changes, self._state.ports, now)
        if refused:
            self._reporter.refused((), len(self._held.refused))
        return admitted

    def _succeeded(self, sync: _Sync, done: Programmed) -> None:
        end = self._maintain_at = self._clock()
        outcome = done.outcome
        wrote = bool(outcome.operations)
        self._schedule.succeeded(
            end, resynced=sync.resync_due or done.full, took=end - sync.begin, found=wrote
        )
        reported = self._external_change
        # If an input changed that is not an API object, the kernel's state was no fault.
        if sync.repairs and wrote and not (reported and reported.change.affects_inputs):
            self._reporter.repaired(_repaired(outcome.operations, sync.begin, end, reported))
        if done.full:
            self._external_change = None
        if outcome.refused or self._held.refused.names:
            attempted = None if done.full else sync.changes.ports
            new = self._held.note_refused(outcome.refused, attempted, end)
            self._reporter.refused(new, len(self._held.refused))
        result = self._hooks.prepare(self._state, self._held.names)
        times = Times(sync.begin, done.planned, end)
        # If the report fails, the sync is repeated, and the hooks get these changes then.
        self._reporter.done(outcome, times, full=done.full, triggered=result.changes.triggered)
        self._synced, self._failing = time.time(), ""
        self._hooks.run(result)

    def _maintain(self) -> None:
        """Let the backend do periodic work, unless it does not know the kernel's state."""
        self._maintain_at = None
        if self._schedule.failing:
            return
        try:
            result = self._backend.maintain(lambda: self.inbox.filled)
        except BackendError as error:
            self._failed(error, full=False)
            return
        if result.found is not None:
            self._request_resync(_Reported(result.found, self._clock(), by_event=False))
        if result.next_in is not None:
            self._maintain_at = self._clock() + result.next_in

    def _failed(self, error: Exception, *, full: bool) -> None:
        self._failing = one_line(error)
        retry = self._schedule.failed(self._clock())
        self._reporter.failed(error, full=full, retry=retry)


def _repaired(
    operations: Mapping[str, int], begin: float, end: float, reported: _Reported | None
) -> Repaired:
    if reported is None:
        return Repaired(operations, end - begin)
    return Repaired(operations, end - reported.at, reported.change, reported.by_event)
