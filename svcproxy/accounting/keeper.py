"""A thread that keeps the accounting tables, beside the sync loops.

The loops hand over what they brought into force and go on: a sync never waits for accounting, and
a failure here is reported and retried without effect on traffic.
"""

import time
from collections.abc import Callable, Collection, Mapping
from threading import Condition, Thread

import structlog

from svcproxy import limits, threads
from svcproxy.accounting.core.chosen import ChosenServices
from svcproxy.accounting.core.frontends import FrontendKey, frontend_keys
from svcproxy.accounting.core.refusal_watch import RefusalWatch
from svcproxy.accounting.core.table import Accounting
from svcproxy.accounting.counters import CountersUnreadableError, read_refused
from svcproxy.accounting.family_table import FamilyTable
from svcproxy.backends.base import BackendError
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, NamespacedName, ServicePortName
from svcproxy.model.objects import Node
from svcproxy.model.serviceport import ServicePort
from svcproxy.sync.after_sync import SyncHook, SyncResult

log = structlog.get_logger()

SettingsFor = Callable[[Node | None], Settings]
_PAUSE = 0.5
"""Seconds between two changes of a table: changes that follow each other are made together."""
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0


class _Family:
    """What the thread knows of one family; ``pending…`` are guarded by the keeper's condition."""

    def __init__(
        self, family: IPFamily, accounting: Accounting, named: Collection[NamespacedName]
    ) -> None:
        self.table = FamilyTable(family, accounting)
        self.chosen = ChosenServices(family, named)
        self.watch = RefusalWatch()
        self.pending: dict[ServicePortName, ServicePort | None] = {}
        self.pending_settings: Settings | None = None
        self.everything = False
        self.retry = _FIRST_RETRY
        self.due = 0.0
        self.failing = ""


class Keeper:
    """Maintains the accounting tables in a thread of its own.

    Args:
        accounting: what is counted.
        settings_for: computes the settings of each family for a Node object.
        period: seconds between two checks of the tables.
        refused: called in the thread with a Service that refuses many connections.
        named: Services that have metrics.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        accounting: Accounting,
        settings_for: Mapping[IPFamily, SettingsFor],
        period: float,
        refused: Callable[[NamespacedName], None],
        *,
        named: Collection[NamespacedName] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings_for = settings_for
        self._period = period
        self._refused = refused
        self._clock = clock
        self._families = {f: _Family(f, accounting, named) for f in settings_for}
        self._condition = Condition()
        self._next_check = clock() + period
        self._frontends: Mapping[IPFamily, Mapping[FrontendKey, ServicePortName]] = {}
        self._left_out = 0
        self._stopped = False
        self._thread: Thread | None = None

    @property
    def chosen(self) -> Mapping[IPFamily, Mapping[FrontendKey, ServicePortName]]:
        """The frontends of the Services that have metrics; safe from any thread."""
        return self._frontends

    @property
    def left_out(self) -> int:
        """How many chosen Services have no metrics, because there are too many."""
        return self._left_out

    def start(self) -> None:
        """Start the thread."""
        self._thread = threads.spawn(self._run, "accounting")

    def stop(self, seconds: float = 1.0) -> None:
        """End the thread, and wait at most ``seconds`` for it; the tables stay."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join(seconds)

    def hook(self, family: IPFamily) -> SyncHook:
        """Return the hook that hands over what a sync of a family brought into force."""
        about, settings_for = self._families[family], self._settings_for[family]

        def take(result: SyncResult) -> None:
            changes = result.changes
            if not (result.first or changes.ports or changes.node_changed):
                return
            with self._condition:
                if result.first:
                    about.pending, about.everything = dict(result.ports), True
                else:
                    about.pending.update(changes.ports)
                if result.first or changes.node_changed:
                    about.pending_settings = settings_for(result.node)
                self._condition.notify()

        return take

    def _run(self) -> None:
        try:
            while self._wait():
                threads.working(limits.THREAD_SWEEP_SECONDS)
                self.step()
        finally:
            for about in self._families.values():
                about.table.close()

    def _wait(self) -> bool:
        """Wait until there is something to do; return false when the thread should end."""
        threads.waiting()
        with self._condition:
            self._condition.wait_for(self._is_due, self._seconds_left())
            if not self._stopped:
                self._condition.wait_for(lambda: self._stopped, _PAUSE)
            return not self._stopped

    def _is_due(self) -> bool:
        now = self._clock()
        return self._stopped or any(
            about.pending and about.due <= now for about in self._families.values()
        )

    def _seconds_left(self) -> float:
        due = [about.due for about in self._families.values() if about.pending or about.failing]
        return max(0.0, min([self._next_check, *due]) - self._clock())

    def step(self) -> None:
        """Make pending changes, and check the tables if it is time."""
        check = self._clock() >= self._next_check
        if check:
            self._next_check = self._clock() + self._period
        for about in self._families.values():
            if about.due <= self._clock():
                self._keep(about, check=check)
        self._choose()

    def _keep(self, about: _Family, *, check: bool) -> None:
        with self._condition:
            pending, about.pending = about.pending, {}
            settings, about.pending_settings = about.pending_settings, None
            everything, about.everything = about.everything, False
        about.chosen.update(pending)
        family = about.table.family
        try:
            if pending or settings is not None or about.failing:
                about.table.update(pending, settings, everything=everything)
            if check:
                if about.table.check():
                    log.warning("accounting.repaired", family=family)
                self._watch_refusals(about)
        except (BackendError, CountersUnreadableError, OSError) as error:
            self._failed(about, str(error))
        except Exception:
            log.exception("accounting.defect", family=family)
            self._failed(about, "defect")
        else:
            about.retry, about.due, about.failing = _FIRST_RETRY, 0.0, ""

    def _failed(self, about: _Family, reason: str) -> None:
        """Retry later; the same reason is logged once."""
        if reason != about.failing:
            log.warning(
                "accounting.failed",
                family=about.table.family,
                error=reason,
                effect="connections are not counted; traffic is not affected; it is retried",
            )
        about.failing = reason
        about.due = self._clock() + about.retry
        about.retry = min(about.retry * 2, _LAST_RETRY)

    def _watch_refusals(self, about: _Family) -> None:
        readings = read_refused(about.table.family)
        refused = {key: found.refused for key, found in readings.items() if found.refused}
        owners = frontend_keys(about.table.family, about.table.ports) if refused else {}
        services = {key: owners[key].service for key in refused if key in owners}
        for service in about.watch.update(refused, services):
            self._refused(service)

    def _choose(self) -> None:
        self._frontends = {f: about.chosen.frontends for f, about in self._families.items()}
        self._left_out = max((a.chosen.left_out for a in self._families.values()), default=0)
