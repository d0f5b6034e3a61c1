"""The loop of one IP family: take what came in, and make the kernel agree."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Thread
from typing import Generic, TypeVar

import msgspec
import structlog

from svcproxy import limits, threads
from svcproxy.backends.base import Backend, BackendError, Desired, ExternalChange, Outcome
from svcproxy.backends.settings import Settings
from svcproxy.conntrack.table import ConntrackError
from svcproxy.model.names import REQUIRED_KINDS, IPFamily, Kind, ServicePortName
from svcproxy.model.objects import (
    ApiObject,
    EndpointSlice,
    Node,
    ObjectKey,
    Service,
    ServiceCIDR,
)
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes, DesiredState
from svcproxy.sync.core.isolation import Isolation
from svcproxy.sync.core.quarantine import Quarantine
from svcproxy.sync.core.schedule import Schedule
from svcproxy.sync.inbox import Batch, Inbox
from svcproxy.sync.report import Reporter, Times

log = structlog.get_logger()

Observed = TypeVar("Observed")
Plan = TypeVar("Plan")


class SyncResult(msgspec.Struct, frozen=True):
    """What a successful sync has brought into the kernel.

    ``changes`` are all since the last success; ``ports`` and ``node`` are the whole state;
    ``first`` marks the first success of this process, before which nothing is known.
    """

    changes: Changes
    ports: Mapping[ServicePortName, ServicePort]
    node: Node | None
    first: bool


SyncHook = Callable[[SyncResult], None]
"""Something to do after each successful sync, in the loop's thread.

It is called even if nothing changed, so that it can make up for an earlier failure of its own."""


class FamilyLoop(Generic[Observed, Plan]):
    """Owns the desired state and the backend of one family, in a thread of its own.

    Nothing is programmed before the first full list of all ``kinds`` has arrived: rules made from
    half a list would cut off the other half.
    """

    def __init__(
        self,
        backend: Backend[Observed, Plan],
        state: DesiredState,
        schedule: Schedule,
        reporter: Reporter,
        *,
        settings_for: Callable[[Node | None], Settings],
        followers: Sequence[SyncHook] = (),
        kinds: Iterable[Kind] = REQUIRED_KINDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inbox = Inbox(on_put=self._on_put, on_drain=reporter.taken)
        self._backend = backend
        self._state = state
        self._settings_for = settings_for
        self._settings = settings_for(state.node)
        self._schedule = schedule
        self._reporter = reporter
        self._clock = clock
        self._missing = set(kinds)
        self._untaken: Batch | None = None
        self._followers = followers
        self._refused = Quarantine(schedule.FIRST_RETRY, schedule.period)
        self._isolation = Isolation(schedule.period)
        self._unsettled = Changes({})
        self._first = True
        self._spares = 0
        self._doubt: ExternalChange | None = None
        self._maintain_at: float | None = None
        self._thread: Thread | None = None

    @property
    def family(self) -> IPFamily:
        """The family that it programs."""
        return self._backend.family

    def start(self) -> None:
        """Start the thread."""
        self._thread = threads.spawn(self._run, f"sync-{self._backend.family}")

    def stop(self, seconds: float) -> None:
        """End the thread; wait at most ``seconds`` for a sync that is under way.

        A restore that is still running then completes or fails as a whole without us.
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
            if self._missing and self._untaken is None:
                self.inbox.wait_for_lists()
            else:
                self.inbox.wait(max(0.0, self._wake_at() - self._clock()))
            threads.working(limits.THREAD_SYNC_SECONDS)
            self.step()

    def _wake_at(self) -> float:
        """When there is something to do, even if nothing comes in."""
        due = self._schedule.due()
        if not self._schedule.requested:
            due = min(due, self._refused.next_due, self._isolation.next_due)
        return due if self._maintain_at is None else min(due, self._maintain_at)

    def step(self) -> None:
        """Take in what has come, and sync if it is time; never raises."""
        try:
            self._take(self.inbox.drain())
            if self._clock() >= min(self._refused.next_due, self._isolation.next_due):
                self._schedule.request()
            if not self._missing and self._clock() >= self._schedule.due():
                self._sync()
            if self._maintain_at is not None and self._clock() >= self._maintain_at:
                self._maintain()
        except Exception as error:  # noqa: BLE001 - the old rules still work; it is logged
            self._reporter.defect("sync", error)
            self._failed(error, thorough=True)

    def _take(self, batch: Batch) -> None:
        if self._untaken is not None:
            batch = self._untaken.then(batch)
        self._untaken = batch
        self._store_all(batch.objects)
        self._untaken = None
        if batch.external_change is not None:
            self._suspect(batch.external_change)
        if self._missing:
            self._missing -= batch.synced
            if not self._missing:
                self._reporter.begun()
        elif self._state.pending:
            self._schedule.request()
        elif batch.objects and not self._schedule.requested:
            self._reporter.idle()

    def _store_all(self, objects: dict[ObjectKey, ApiObject | None]) -> None:
        for key, obj in objects.items():
            try:
                _store(self._state, key, obj)
            except MemoryError:  # says nothing about the object: the batch is taken in again
                raise
            except Exception as error:  # noqa: BLE001 - it affects only this object; it is logged
                self._reporter.defect("object", error, kind=key[0], name=str(key[1]))

    def _suspect(self, change: ExternalChange) -> None:
        """Have the kernel compared, for somebody else has, or may have, changed it."""
        self._schedule.request_resync(certain=change.certain)
        self._doubt = change

    def _sync(self) -> None:
        begin = self._clock()
        due = self._schedule.is_resync_due(begin)
        # The kernel is unchanged since our last write: skip the comparison.
        again = begin >= self._isolation.next_due
        thorough = again or (due and not self._spared())
        changes = self._checkout(begin)
        if not changes and not thorough:
            # Nothing changed, or it changed back.
            self._schedule.succeeded(begin, resynced=due)
            self._reporter.idle()
            return
        # Without changes of our own, whatever a comparison writes undoes changes of others.
        compared_only = thorough and not (changes or again or self._first or self._schedule.failing)
        try:
            outcome, planned, thorough = self._program(changes, thorough=thorough)
        except BackendError as error:
            self._failed(error, thorough=thorough)
            return
        end = self._maintain_at = self._clock()
        found = bool(outcome.operations)
        self._schedule.succeeded(end, resynced=due or thorough, took=end - begin, found=found)
        if compared_only and found and not (self._doubt and self._doubt.affects_inputs):
            self._reporter.repaired(self._doubt)
        if thorough:
            self._doubt = None
        self._hold(outcome, end, None if thorough else changes)
        held = self._refused.names | self._isolation.names
        in_force, waiting = self._unsettled.split(held)
        settled = SyncResult(in_force, self._state.ports, self._state.node, self._first)
        self._reporter.done(
            outcome,
            Times(begin, planned, end),
            thorough=thorough,
            triggered=settled.changes.triggered,
        )
        # If the report fails, the sync is repeated and the hooks get these changes then.
        self._unsettled, self._first = waiting, False
        self._follow(settled)

    def _checkout(self, now: float) -> Changes:
        """Return what changed, and the Service ports that are due for another attempt."""
        changes = self._state.checkout()
        if changes.node_changed:
            self._settings = self._settings_for(self._state.node)
        self._unsettled = self._unsettled.then(changes)
        self._reporter.changes(changes, self._state.conflicts)
        if self._refused.names:
            self._refused.release(changes.ports)
            # Only the isolation decides when to retry the ports that it leaves out (``admit``).
            self._refused.release(self._isolation.names)
            self._reporter.refused((), len(self._refused))
        for service, error in changes.defects.items():
            self._reporter.defect("service", error, service=str(service))
        due = self._refused.due(now)
        retried = {name: self._state.ports.get(name) for name in due}
        return self._isolation.admit(changes.including(retried))

    def _hold(self, outcome: Outcome, now: float, tried: Changes | None) -> None:
        """Hold back the ports that were refused; ``tried`` is ``None`` after a sync from scratch."""
        if not (outcome.refused or self._refused.names):
            return
        news = self._refused.note(now, outcome.refused, None if tried is None else tried.ports)
        self._reporter.refused(news, len(self._refused))

    def _maintain(self) -> None:
        """Let the backend do what only time calls for, if it knows what the kernel holds."""
        self._maintain_at = None
        if self._schedule.failing:
            return
        try:
            result = self._backend.maintain(lambda: self.inbox.filled)
        except BackendError as error:
            self._failed(error, thorough=False)
            return
        if result.found is not None:
            self._suspect(result.found)
        if result.next_in is not None:
            self._maintain_at = self._clock() + result.next_in

    def _follow(self, settled: SyncResult) -> None:
        """Do what comes after a sync; its failure is not the sync's."""
        for follower in self._followers:
            try:
                follower(settled)
            except (OSError, ConntrackError) as error:
                log.warning("after_sync.failed", family=self._backend.family, error=str(error))
            except Exception as error:  # noqa: BLE001 - logged; the other followers go on
                self._reporter.defect("after_sync", error)

    def _spared(self) -> bool:
        """Whether the kernel tells at no cost that a comparison would find nothing.

        After ``Backend.max_skipped_resyncs`` of them a comparison is made all the same: a foreign change in the
        very moment of our own would go unnoticed otherwise.
        """
        if self._doubt or self._first or self._schedule.failing or not self._backend.is_unchanged():
            self._spares = 0
            return False
        self._spares = (self._spares + 1) % (self._backend.max_skipped_resyncs + 1)
        return self._spares > 0

    def _program(self, changes: Changes, *, thorough: bool) -> tuple[Outcome, float, bool]:
        """Plan and apply; return the outcome, when the plan was ready, and how thorough it was."""
        backend, plan = self._backend, None
        if not thorough:
            try:
                plan = backend.plan_changes(changes, self._settings)
            except BackendError:
                raise
            except Exception as error:  # noqa: BLE001 - logged; _plan_all finds the cause
                self._reporter.defect("planning", error)
        if plan is None:
            thorough = True
            plan = self._plan_all(backend.read())
        planned = self._clock()
        return backend.apply(plan), planned, thorough

    def _plan_all(self, observed: Observed) -> Plan:
        """Plan from scratch; leave out the Service ports for which planning fails."""
        state, now = self._state, self._clock()

        def plan(ports: Mapping[ServicePortName, ServicePort]) -> Plan:
            return self._backend.plan(Desired(ports, self._settings, state.service_cidrs), observed)

        try:
            made = plan(self._isolation.admitted(state.ports, now))
        except (BackendError, MemoryError):
            raise
        except Exception:
            found = self._isolation.search(plan, state.ports, self._unsettled, now)
            if found is None:
                raise
            for name, error in found.items():
                self._reporter.defect("planning", error, service_port=str(name))
            return plan(self._isolation.admitted(state.ports, now))
        self._isolation.succeeded(now)
        return made

    def _failed(self, error: Exception, *, thorough: bool) -> None:
        retry = self._schedule.failed(self._clock())
        self._reporter.failed(error, thorough=thorough, retry=retry)


def _store(state: DesiredState, key: ObjectKey, obj: ApiObject | None) -> None:
    kind, name = key
    match obj:
        case Service():
            state.update_service(obj)
        case EndpointSlice():
            state.update_slice(obj)
        case Node():
            state.update_node(obj)
        case ServiceCIDR():
            state.update_service_cidr(obj)
        case None if kind is Kind.SERVICE:
            state.delete_service(name)
        case None if kind is Kind.ENDPOINT_SLICE:
            state.delete_slice(name)
        case None if kind is Kind.SERVICE_CIDR:
            state.delete_service_cidr(name)
        case None:
            state.update_node(None)
