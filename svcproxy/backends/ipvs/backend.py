"""The IPVS backend: pure plans, executed on IPVS, ipset, iptables and the dummy interface."""

import os
import time
from collections.abc import Callable, Collection
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
from svcproxy.backends.ipvs import probing
from svcproxy.backends.ipvs.auditor import Auditor, Baseline
from svcproxy.backends.ipvs.core.audit import Audit, Difference
from svcproxy.backends.ipvs.core.difference import Observed, Plan
from svcproxy.backends.ipvs.core.planner import Planner
from svcproxy.backends.ipvs.core.refusals import Results, described
from svcproxy.backends.ipvs.core.settings import IpvsSettings, KernelFacts, scheduling
from svcproxy.backends.ipvs.kernel import IpvsKernel, execute, kernel_errors, ticks_per_second
from svcproxy.backends.settings import Settings
from svcproxy.backends.xtables.commands import Iptables
from svcproxy.model.names import IPFamily, NamespacedName
from svcproxy.netlink.core.ipvs import Timeouts
from svcproxy.netlink.core.kernel_objects import VirtualServerKey
from svcproxy.netlink.core.operations import Failure
from svcproxy.netlink.errors import NetlinkError
from svcproxy.refusals import REFUSALS
from svcproxy.state.desired import Changes

_MAX_FAILURES = 5
"""How many failures one error lists."""

log = structlog.get_logger()


class _Opened(NamedTuple):
    """The parts with sockets, which belong to the thread of the loop."""

    kernel: IpvsKernel
    auditor: Auditor
    baseline: Baseline


class IpvsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of IPVS mode.

    Attributes:
        scheduler: the scheduler of Services that choose none.
        excluded: CIDRs whose virtual servers and addresses are never removed.
        strict_arp: do not answer ARP requests for virtual addresses.
        timeouts: connection timeouts in seconds; 0 keeps the kernel's.
        graceful_limit: the seconds after which a draining real server is deleted even if it has
            connections; 0 for no limit.
        period: the sync period in seconds.
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
        options: the flags of IPVS mode.
        clock: monotonic seconds.
    """

    max_skipped_resyncs = 59
    """Between resyncs, virtual servers are audited all the time, and entries, addresses and rules
    are checked by their numbers. A resync takes long."""

    def __init__(
        self,
        programs: Iptables,
        settings: Settings,
        options: IpvsOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._programs = programs
        self._options = options
        self._clock = clock
        self._facts = KernelFacts()
        self._planner = Planner(self._extended(settings), options.graceful_limit)
        self._audit = Audit(self._planner, ticks_per_second())
        self._annotation_problems: dict[NamespacedName, str] = {}
        self._next_check = 0.0
        self._opened: _Opened | None = None

    @property
    def family(self) -> IPFamily:
        """The family that this backend programs."""
        return self._programs.family

    @property
    def settings(self) -> IpvsSettings:
        """The settings of the last plan, with what is known about the kernel."""
        return self._planner.settings

    def _open(self) -> _Opened:
        if self._opened is None:
            kernel = IpvsKernel(self._programs)
            auditor = Auditor(self._audit, kernel.ipvs, self._options.period, self._clock)
            self._opened = _Opened(kernel, auditor, Baseline(kernel))
        return self._opened

    @property
    def _kernel(self) -> IpvsKernel:
        return self._open().kernel

    def probe(self) -> None:
        """Check that the kernel has what IPVS mode needs, and set kernel parameters.

        Raises:
            BackendUnavailable: the kernel lacks something; the message names the modules.
        """
        probing.probe(self._programs)
        try:
            if any(self._options.timeouts):
                self._kernel.ipvs.set_timeouts(self._options.timeouts)
            missing = probing.lacks_scheduler(self._kernel.ipvs, self._options.scheduler)
        except (BackendError, NetlinkError) as error:
            raise BackendUnavailable(f"cannot use IPVS for {self.family}: {error}") from error
        if missing:
            name = self._options.scheduler
            raise BackendUnavailable(
                f"--ipvs-scheduler={name}: the kernel module ip_vs_{name} is missing:"
                " load it or choose another scheduler"
            )
        strict_arp = self._options.strict_arp
        sysctl.ensure_all(probing.required_sysctls(os.uname().release, strict_arp=strict_arp))

    @kernel_errors()
    def read(self) -> Observed:
        """Read everything that may be svcproxy's, and the facts about the kernel."""
        kernel, _, baseline = self._open()
        observed, addresses, fingerprint = kernel.read()
        baseline.read(fingerprint, len(addresses.bound))
        self._facts = KernelFacts(
            addresses=addresses.node,
            subnets=addresses.networks,
            drop_invalid=not sysctl.conntrack_is_liberal(),
            missing_schedulers=self._still_missing_schedulers(),
        )
        return observed

    def plan(self, desired: Desired, observed: Observed) -> Plan:
        """Compare the desired state with everything that the kernel holds."""
        return self._planner.plan(desired, self._extended(desired.settings), observed)

    def plan_changes(self, changes: Changes, settings: Settings) -> Plan | None:
        """Compute the difference that changed Service ports make; other settings need a resync."""
        if self._extended(settings) != self._planner.settings:
            return None
        return self._planner.plan_changes(changes.ports)

    @kernel_errors()
    def apply(self, plan: Plan) -> Outcome:
        """Execute a plan step by step; the kernel has no transaction for all of them.

        A failed operation does not stop the others.
        """
        kernel, now = self._kernel, self._clock()
        before = kernel.sent
        self._report_annotations(plan)
        self._planner.draining.apply(plan, now)
        results = execute(plan, kernel)
        removals = self._remove_drained(plan.leaving, now)
        results.operations.update(removals.operations)
        results.failures += removals.failures
        refused, results.failures = self._planner.record(plan, results)
        self._record_schedulers(results)
        self._verify(plan, results)
        _raise(results.failures)
        operations = {kind: count for kind, count in results.operations.items() if count}
        if operations:
            operations["message"] = kernel.sent - before
        rules = {table: each.rules for table, each in plan.tables.items()}
        return Outcome(operations, self._planner.sizes, rules, refused)

    def _remove_drained(self, keys: Collection[VirtualServerKey], now: float) -> Results:
        """Delete real servers of these virtual servers that have drained."""
        kernel = self._kernel
        connections = {key: kernel.connections(key) for key in keys}
        results = execute(self._planner.plan_removals(connections, now), kernel)
        self._next_check = now + (self._planner.draining.next_check() or 0.0)
        return results

    def _verify(self, plan: Plan, results: Results) -> None:
        """Verify the kernel after a resync, or follow the changes since then."""
        _, auditor, baseline = self._open()
        if not plan.is_resync:
            self._audit.changed(plan)
            self._follow(results)
        elif baseline.resynced(results, self._planner.counts):
            auditor.start()
        else:
            auditor.stop()

    def _follow(self, results: Results) -> None:
        """Forget the verified state if its changes cannot be predicted."""
        if results.failures or results.operations["restore"]:
            _, auditor, baseline = self._open()
            baseline.invalidate()
            auditor.stop()

    def is_unchanged(self) -> bool:
        """Whether no other program has changed the kernel since it was verified.

        Differences of virtual servers are reported by ``maintain``.
        """
        if self._opened is None:
            return False
        _, auditor, baseline = self._opened
        if not auditor.current or not baseline.is_unchanged(self._planner.counts):
            return False
        try:
            return self._still_missing_schedulers() == self._facts.missing_schedulers
        except (BackendError, NetlinkError):
            return False

    @kernel_errors()
    def maintain(self, should_yield: Callable[[], bool]) -> Maintenance:
        """Check draining servers if it is time, and audit some virtual servers."""
        next_check = self._check_draining()
        found = self._open().auditor.step(should_yield)
        if isinstance(found, Difference):
            log.info("ipvs.external_change", family=self.family, virtual_server=str(found))
            return Maintenance(0.0, ExternalChange("", 0, certain=False))
        times = [seconds for seconds in (next_check, found) if seconds is not None]
        return Maintenance(min(times, default=None))

    def _check_draining(self) -> float | None:
        """Delete drained servers if it is time; return the seconds until the next check."""
        now, draining = self._clock(), self._planner.draining
        if draining.next_check() is None:
            return None
        if now < self._next_check:
            return self._next_check - now
        results = self._remove_drained(list(draining.virtual_servers), now)
        self._audit.written()
        self._follow(results)
        _raise(results.failures)
        return draining.next_check()

    def _extended(self, settings: Settings) -> IpvsSettings:
        return IpvsSettings.of(
            settings, self._facts, scheduling(self._options.scheduler), self._options.excluded
        )

    def _still_missing_schedulers(self) -> frozenset[str]:
        """Return the missing schedulers that the kernel still lacks."""
        ipvs, missing = self._kernel.ipvs, self._facts.missing_schedulers
        return frozenset(name for name in missing if probing.lacks_scheduler(ipvs, name))

    def _record_schedulers(self, results: Results) -> None:
        """Record schedulers that the kernel lacks, and log each once."""
        missing = {o.server.scheduler: o.key for o in results.rescheduled}
        for name, key in missing.items():
            log.warning(
                "ipvs.no_scheduler",
                family=self.family,
                scheduler=name,
                virtual_server=" ".join(map(str, key)),
                effect=f"the scheduler {self._options.scheduler} is used",
                remedy=f"load the kernel module ip_vs_{name}",
            )
        if missing:
            known = self._facts.missing_schedulers.union(missing)
            self._facts = structs.replace(self._facts, missing_schedulers=known)

    def _report_annotations(self, plan: Plan) -> None:
        """Log each Service once whose annotations name an unknown scheduler or flag."""
        problems, reported = plan.annotation_problems, self._annotation_problems
        if reported:
            services = list(reported) if plan.is_resync else {port.service for port in plan.ports}
            for service in services:
                if service not in problems:
                    reported.pop(service, None)
        for service, problem in problems.items():
            if reported.get(service) == problem:
                continue
            reported[service] = problem
            REFUSALS.count("annotation", "scheduler")
            log.warning(
                "ipvs.unusable_annotation",
                family=self.family,
                service=str(service),
                error=problem,
                effect=f"the scheduler {self._options.scheduler} is used as it is",
            )


def _raise(failures: list[Failure]) -> None:
    """Raise the failures that concern no single Service port.

    Raises:
        BackendError: there are failures.
    """
    if failures:
        texts = "; ".join(map(described, failures[:_MAX_FAILURES]))
        more = len(failures) - _MAX_FAILURES
        raise BackendError(texts + (f"; and {more} more" if more > 0 else ""))
