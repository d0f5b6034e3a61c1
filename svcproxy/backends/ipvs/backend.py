"""The IPVS backend: the pure plan joined with IPVS, ipset, iptables and the dummy link."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec
import structlog
from msgspec import structs

from svcproxy import sysctl
from svcproxy.backends.base import (
    BackendError,
    BackendUnavailable,
    Desired,
    ExternalChange,
    Maintenance,
    Outcome,
)
from svcproxy.backends.ipvs import probing, sysctls
from svcproxy.backends.ipvs.audit import Audit, Difference
from svcproxy.backends.ipvs.auditor import Auditor
from svcproxy.backends.ipvs.execute import Done, Executor
from svcproxy.backends.ipvs.kernel import (
    Fingerprint,
    IpvsKernel,
    kernel_errors,
    ticks_per_second,
)
from svcproxy.backends.ipvs.plan import Observed, Plan
from svcproxy.backends.ipvs.planner import Planner
from svcproxy.backends.ipvs.refused import described
from svcproxy.backends.ipvs.scheduling import (
    FLAGS,
    SCHEDULER,
    SchedulerChoice,
    scheduler_choice,
)
from svcproxy.backends.ipvs.settings import SCHEDULERS, IpvsSettings, scheduling, unknown_flags
from svcproxy.backends.ipvs.termination import Termination
from svcproxy.backends.settings import Settings
from svcproxy.backends.xtables.commands import Iptables
from svcproxy.model.names import IPFamily, NamespacedName, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.ipvs import Timeouts
from svcproxy.netlink.errors import NetlinkError
from svcproxy.refusals import REFUSALS
from svcproxy.state.desired import Changes

_MOST_FAILURES = 5
"""As many are told in one error."""

log = structlog.get_logger()


class _Opened(NamedTuple):
    """What belongs to the thread of the loop."""

    kernel: IpvsKernel
    executor: Executor
    auditor: Auditor


class IpvsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the flags say of IPVS.

    ``timeouts`` are in seconds, 0 leaves the kernel's own. ``graceful_limit`` is how many seconds
    a real server may drain, 0 for as long as it takes. ``period`` is the sync period in seconds.
    """

    scheduler: str = "rr"
    excluded: tuple[str, ...] = ()
    strict_arp: bool = False
    timeouts: Timeouts = Timeouts(0, 0, 0)
    graceful_limit: float = 0.0
    period: float = 30.0


class IpvsBackend:
    """Programs one family with IPVS.

    Args:
        programs: iptables-save and iptables-restore of the family.
        settings: the settings before the Node object is known. A change of the settings, or of
            the node's own addresses, leads to a resync.
        options: what the flags say about IPVS.
        clock: monotonic seconds.
    """

    max_skipped_resyncs = 59
    """Virtual servers are checked all the time, entries, addresses and rules by their numbers; a
    comparison takes long."""

    def __init__(
        self,
        programs: Iptables,
        settings: Settings,
        options: IpvsOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._programs = programs
        self._settings = settings
        self._options = options
        self._clock = clock
        self._addresses: tuple[str, ...] = ()
        self._networks: tuple[str, ...] = ()
        self._drop_invalid = True
        self._unavailable: frozenset[str] = frozenset()
        self._planner = Planner(self._extended(settings))
        self._termination = Termination(options.graceful_limit)
        self._audit = Audit(self._planner, self._termination, ticks_per_second())
        self._open: _Opened | None = None
        self._look_at = 0.0
        self._found: Fingerprint | None = None
        self._right: tuple[Fingerprint, Counter[str]] | None = None
        self._others = 0
        self._told: dict[NamespacedName, str] = {}

    @property
    def family(self) -> IPFamily:
        """The family that this backend programs."""
        return self._programs.family

    @property
    def _kernel(self) -> IpvsKernel:
        return self._opened().kernel

    @property
    def _executor(self) -> Executor:
        return self._opened().executor

    @property
    def _auditor(self) -> Auditor:
        return self._opened().auditor

    def _opened(self) -> "_Opened":
        if self._open is None:
            kernel = IpvsKernel(self._programs)
            executor = Executor(self._planner, self._termination, kernel)
            auditor = Auditor(self._audit, kernel.ipvs, self._options.period, self._clock)
            self._open = _Opened(kernel, executor, auditor)
        return self._open

    def probe(self) -> None:
        """Check that the kernel has what is needed, and set its parameters.

        Raises:
            BackendUnavailable: it has not; the message names the modules.
        """
        probing.probe(self._programs)
        try:
            if any(self._options.timeouts):
                self._kernel.ipvs.set_timeouts(self._options.timeouts)
            missing = probing.scheduler_is_missing(self._kernel.ipvs, self._options.scheduler)
        except (BackendError, NetlinkError) as error:
            raise BackendUnavailable(f"cannot use IPVS for {self.family}: {error}") from error
        if missing:
            name = self._options.scheduler
            raise BackendUnavailable(
                f"--ipvs-scheduler={name}: the kernel module ip_vs_{name} is missing:"
                " load it or choose another scheduler"
            )
        wanted = sysctls.wanted(os.uname().release, strict_arp=self._options.strict_arp)
        sysctl.ensure_all(wanted)

    def is_unchanged(self) -> bool:
        """Whether nobody else has changed anything since it was found to be right.

        Of virtual servers, ``maintain`` knows.
        """
        if self._right is None or not self._auditor.current:
            return False
        found = self._look()
        if found is None or self._has_new_scheduler():
            return False
        right, former = self._right
        # We have changed entries and addresses since. Nobody else has if there is as much more or
        # less of each as there should be; the loop makes up for what hides in that.
        grown = _grown(self._planner.counts, former)
        return found.rules == right.rules and _grown(found.counts, right.counts) == grown

    @kernel_errors()
    def read(self) -> Observed:
        """Read everything that may be ours, and the node's addresses."""
        observed, addresses, self._found = self._kernel.read()
        self._addresses, self._networks = addresses.node, addresses.networks
        self._others = self._found.counts["addresses"] - len(addresses.bound)
        self._unavailable = self._still_unavailable()
        return observed

    def plan(self, desired: Desired, observed: Observed) -> Plan:
        """Compare everything."""
        self._drop_invalid = not sysctl.conntrack_is_liberal()
        present = {name.service for name in desired.ports}
        self._told = {name: text for name, text in self._told.items() if name in present}
        self._check_schedulers(desired.ports.values())
        return self._planner.plan(desired, self._extended(desired.settings), observed)

    def plan_changes(self, changes: Changes, settings: Settings) -> Plan | None:
        """Compute what changed Service ports mean; other settings need a full comparison."""
        if self._extended(settings) != self._planner.settings:
            return None
        self._forget_gone(changes.ports)
        self._check_schedulers(port for port in changes.ports.values() if port is not None)
        return self._planner.plan_changes(changes.ports)

    @kernel_errors()
    def apply(self, plan: Plan) -> Outcome:
        """Carry out the plan step by step; the kernel has no transaction around all of it.

        What fails keeps nothing else from being done.
        """
        now, before = self._clock(), self._kernel.sent
        done = self._executor.apply(plan, now)
        refused, done.failures = self._planner.note(plan, done.failures)
        self._note_unscheduled(done)
        self._look_at = now + (self._termination.pause() or 0.0)
        if plan.compared:
            self._compared(done)
        else:
            self._audit.changed(plan)
            self._changed(done)
        self._report(done)
        operations = {kind: count for kind, count in done.operations.items() if count}
        if operations:
            operations["message"] = self._kernel.sent - before
        rules = {table: each.rules for table, each in plan.tables.items()}
        return Outcome(operations, self._planner.sizes, rules, refused)

    @kernel_errors()
    def maintain(self, should_yield: Callable[[], bool]) -> Maintenance:
        """Check the real servers that drain, if it is time, and audit some virtual servers."""
        pause, found = self._maintain_draining(), self._auditor.step(should_yield)
        if isinstance(found, Difference):
            log.info("ipvs.foreign_change", family=self.family, virtual_server=str(found))
            return Maintenance(0.0, ExternalChange("", 0, certain=False))
        return Maintenance(
            found if pause is None else pause if found is None else min(pause, found)
        )

    def _maintain_draining(self) -> float | None:
        now = self._clock()
        if self._termination.pause() is None:
            return None
        if now < self._look_at:
            return self._look_at - now
        done = self._executor.tend(now)
        self._audit.written()
        self._changed(done)
        self._report(done)
        pause = self._termination.pause()
        self._look_at = now + (pause or 0.0)
        return pause

    def _compared(self, done: Done) -> None:
        """Keep what is known of the kernel after a comparison."""
        # What was read is right if nothing had to be changed.
        right = self._found if not done.operations else self._outcome(done)
        self._right, self._found = right and (right, self._planner.counts), None
        if self._right is None:
            self._auditor.stop()
        else:
            self._auditor.start()

    def _changed(self, done: Done) -> None:
        """Keep what is known of the kernel in step with what has been done."""
        if done.failures or done.operations["restore"]:
            self._right = None
            self._auditor.stop()

    def _outcome(self, done: Done) -> Fingerprint | None:
        """What a comparison has made of the kernel, if there is as much of all as there should be.

        Otherwise the next comparison would read everything again, a period after each start.
        Whether the virtual servers are right is seen soon enough. Rules that somebody else changed
        between our reading and our writing must not pass for right.
        """
        if done.failures:
            return None
        counts = self._planner.counts
        found = self._look()
        counts["addresses"] += self._others
        if found is None or _grown(found.counts, counts):
            return None
        return found if self._kernel.only_we_changed_rules else None

    def _look(self) -> Fingerprint | None:
        """The kernel's fingerprint; ``None`` if it is unreadable."""
        try:
            return self._kernel.fingerprint()
        except (BackendError, NetlinkError):
            return None

    def clean_up(self) -> None:
        """Remove what is a Service's, ours or kube-proxy's: virtual servers, rules and ipsets."""
        desired = Desired({}, self._settings)
        for _ in range(2):
            self.apply(self.plan(desired, self.read()))

    def _extended(self, settings: Settings) -> IpvsSettings:
        return IpvsSettings(
            **structs.asdict(settings),
            scheduling=scheduling(self._options.scheduler),
            addresses=self._addresses,
            subnets=self._networks,
            excluded=self._options.excluded,
            drop_invalid=self._drop_invalid,
            unavailable=self._unavailable,
        )

    def _still_unavailable(self) -> frozenset[str]:
        """Return the missing schedulers that the kernel still lacks."""
        ipvs = self._kernel.ipvs
        return frozenset(n for n in self._unavailable if probing.scheduler_is_missing(ipvs, n))

    def _has_new_scheduler(self) -> bool:
        """Whether a scheduler is there now that was missing, or the kernel does not answer."""
        try:
            return self._still_unavailable() != self._unavailable
        except (BackendError, NetlinkError):
            return True

    def _note_unscheduled(self, done: Done) -> None:
        """Use the default in place of schedulers that the kernel lacks; report each once."""
        missing = {operation.server.scheduler: operation.key for operation in done.unscheduled}
        for name, key in missing.items():
            log.warning(
                "ipvs.no_scheduler",
                family=self.family,
                scheduler=name,
                virtual_server=_named(key),
                effect=f"the scheduler {self._options.scheduler} is used",
                remedy=f"load the kernel module ip_vs_{name}",
            )
        self._unavailable |= missing.keys()
        self._planner.lacks(missing.keys())

    def _report(self, done: Done) -> None:
        """Raise the failures that concern no single Service port.

        Raises:
            BackendError: something could not be done.
        """
        if done.failures:
            told = "; ".join(map(described, done.failures[:_MOST_FAILURES]))
            more = len(done.failures) - _MOST_FAILURES
            raise BackendError(told + (f"; and {more} more" if more > 0 else ""))

    def _check_schedulers(self, ports: Iterable[ServicePort]) -> None:
        """Report once each Service that asks for a scheduler or flag that does not exist."""
        for port in ports:
            choice = scheduler_choice(port.annotations)
            if not choice.scheduler and choice.flags is None:
                self._told.pop(port.name.service, None)
                continue
            problem = self._scheduler_problem(choice)
            if self._told.get(port.name.service, "") == problem:
                continue
            self._told[port.name.service] = problem
            if problem:
                REFUSALS.count("annotation", "scheduler")
                log.warning(
                    "ipvs.unusable_annotation",
                    family=self.family,
                    service=str(port.name.service),
                    error=problem,
                    effect=f"the scheduler {self._options.scheduler} is used as it is",
                )

    def _forget_gone(self, ports: Mapping[ServicePortName, ServicePort | None]) -> None:
        """Forget the problems that were reported for deleted Services."""
        if self._told:
            for name in [name for name, port in ports.items() if port is None]:
                self._told.pop(name.service, None)

    def _scheduler_problem(self, choice: SchedulerChoice) -> str:
        name = choice.scheduler or self._options.scheduler
        if name not in SCHEDULERS:
            known = ", ".join(sorted(SCHEDULERS))
            return f"{SCHEDULER}: {name!r} is no scheduler: choose one of {known}"
        unknown = unknown_flags(name, choice.flags or ())
        if unknown:
            return f"{FLAGS}: {name} has no {', '.join(map(repr, unknown))}"
        return ""


def _grown(now: Counter[str], before: Counter[str]) -> dict[str, int]:
    """How much more there is of what than before."""
    grown = {name: now[name] - before[name] for name in now.keys() | before.keys()}
    return {name: number for name, number in grown.items() if number}


def _named(key: tuple[object, ...]) -> str:
    return " ".join(map(str, key))
