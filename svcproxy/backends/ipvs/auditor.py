"""Verifying the kernel between resyncs: virtual servers by an audit, everything else by numbers.

IPVS sends no events when another program changes virtual servers. The auditor therefore reads and
compares them all the time, in short steps that do not hold up changes.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

from svcproxy.backends.base import BackendError
from svcproxy.backends.ipvs.core.audit import Audit, Difference
from svcproxy.backends.ipvs.core.refusals import Results
from svcproxy.backends.ipvs.kernel import Fingerprint, IpvsKernel
from svcproxy.netlink.core.kernel_objects import RealServers, VirtualServer, VirtualServerKey
from svcproxy.netlink.errors import NetlinkError

STEP_SECONDS = 0.05
"""The approximate maximum duration of a step, if no change is waiting. Long steps are efficient: for
each chunk the kernel walks its table from the start, and during a step the table stays in the CPU
caches."""
MIN_PAUSE_SECONDS = 0.01
PAUSE_FACTOR = 4
"""A pause is at least this many times as long as the step before: an audit takes a fifth of a CPU."""
SPACING = 0.95
"""The interval between two passes, as a fraction of the sync period: damage is repaired within one."""
SPREAD = 0.7
"""The fraction of the sync period over which one pass is spread, to take little CPU at any time."""
_EXPIRY_PERIODS = 4
"""Sync periods without a complete pass after which the state of virtual servers is unknown."""
_PORTS_PER_STEP = 2
"""Computing the expected lines of this many Service ports takes about as long as reading a chunk."""


class Source(Protocol):
    """Where the auditor reads virtual servers; each call may raise ``NetlinkError``."""

    def listing(self) -> Iterator[bytes]:
        """Read the listing of all virtual servers in chunks."""

    def virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """Read the properties of a virtual server; ``None`` if it does not exist."""

    def weights(self, key: VirtualServerKey) -> RealServers:
        """List the weights of a virtual server's real servers."""


class Auditor:
    """Runs audits in steps. Only the thread that executes plans may use it.

    Args:
        audit: compares virtual servers with their expected state.
        source: where virtual servers are read.
        period: the sync period in seconds.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self, audit: Audit, source: Source, period: float, clock: Callable[[], float]
    ) -> None:
        self.audit = audit
        self._source = source
        self._period = period
        self._clock = clock
        self._steps: Iterator[Difference | None] | None = None
        self._progress: Callable[[], float] = lambda: 0.0
        self._due = self._begun = self._checked = 0.0

    @property
    def current(self) -> bool:
        """Whether all virtual servers were as expected in a recent pass."""
        late = self._clock() - self._checked > _EXPIRY_PERIODS * self._period
        return self._steps is not None and not late

    def start(self) -> None:
        """Start after a resync: all virtual servers are as expected at this time."""
        self.audit.resynced()
        self._due = self._begun = self._checked = self._clock()
        self._steps, self._progress = self._computing(), lambda: self.audit.computed

    def stop(self) -> None:
        """Stop until the next ``start``."""
        self._steps = None

    def step(self, should_yield: Callable[[], bool]) -> float | Difference | None:
        """Make a step if it is due.

        Args:
            should_yield: whether changes are waiting, so that the step should end.

        Returns:
            The seconds until the next step, ``None`` if the auditor is stopped, or the difference
            that was found, which stops the auditor.

        Raises:
            NetlinkError: the kernel could not be read.
        """
        now = self._clock()
        if self._steps is None:
            return None
        if now < self._due:
            return self._due - now
        steps, self._steps = self._steps, None
        for found in steps:
            if found is not None:
                return found
            if should_yield() or self._clock() - now >= STEP_SECONDS:
                break
        else:
            return self._schedule_pass(now)
        self._steps = steps
        self._due = self._next_step(now, self._clock() - now)
        return self._due - now

    def _schedule_pass(self, now: float) -> float:
        """Schedule the next pass; return the seconds until then."""
        self._steps = self._pass()
        self._progress = lambda: self.audit.seen
        self._due = max(now + MIN_PAUSE_SECONDS, self._begun + SPACING * self._period)
        return self._due - now

    def _next_step(self, now: float, took: float) -> float:
        """Return the time of the step after one that began ``now``, to spread out the pass."""
        soon = now + took + max(MIN_PAUSE_SECONDS, PAUSE_FACTOR * took)
        return max(soon, self._begun + self._progress() * SPREAD * self._period)

    def _computing(self) -> Iterator[None]:
        while self.audit.outdated:
            self.audit.compute(_PORTS_PER_STEP)
            yield

    def _pass(self) -> Iterator[Difference | None]:
        """Make a pass in parts of about the same duration.

        Plans may be executed after each yield. The expected state is computed again before the
        pass continues.
        """
        self._begun = self._clock()
        yield from self._computing()
        if self.audit.size:
            self.audit.begin()
            for chunk in self._source.listing():
                yield self.audit.take(chunk)
                yield from self._computing()
            yield self.audit.end()
            for line in self.audit.unseen():
                yield from self._computing()
                key = self.audit.to_query(line)
                if key is not None:
                    yield self._query(key)
        self._checked = self._begun

    def _query(self, key: VirtualServerKey) -> Difference | None:
        server = self._source.virtual_server(key)
        weights = self._source.weights(key) if server is not None else {}
        return self.audit.answer(key, server, weights)


class Baseline:
    """The last state of the kernel that was verified, without virtual servers.

    Later changes by svcproxy add a known number of set entries and addresses to it, so the kernel
    is unchanged if the rules are the same and the numbers match. A change by another program that
    keeps the numbers is found by the next forced resync.
    """

    def __init__(self, kernel: IpvsKernel) -> None:
        self._kernel = kernel
        self._read: Fingerprint | None = None
        self._node_addresses = 0
        self._verified: tuple[Fingerprint, Counter[str]] | None = None

    def read(self, fingerprint: Fingerprint, bound: int) -> None:
        """Take over what a resync has read.

        Args:
            fingerprint: the fingerprint.
            bound: the number of addresses on ``kube-ipvs0``.
        """
        self._read = fingerprint
        self._node_addresses = fingerprint.counts["addresses"] - bound

    def resynced(self, results: Results, counts: Counter[str]) -> bool:
        """Verify the state after a resync; return whether it is as planned.

        If the resync had nothing to change, the state that it read is the verified one.

        Args:
            results: the results of the resync, with the failures that concern no Service port.
            counts: ``Planner.counts``.
        """
        found = self._verify(results, counts.copy()) if results.operations else self._read
        self._verified = found and (found, counts)
        self._read = None
        return self._verified is not None

    def _verify(self, results: Results, counts: Counter[str]) -> Fingerprint | None:
        """Return the present fingerprint if the numbers match those planned.

        Without it, the next periodic check would need another resync. Rules that another program
        changed between reading and writing must not be taken for svcproxy's.
        """
        if results.failures:
            return None
        counts["addresses"] += self._node_addresses
        found = self._fingerprint()
        if found is None or _growth(found.counts, counts):
            return None
        return found if self._kernel.only_own_rule_changes else None

    def invalidate(self) -> None:
        """Forget the verified state, until the next resync."""
        self._verified = None

    def is_unchanged(self, counts: Counter[str]) -> bool:
        """Whether only svcproxy has changed the kernel since it was verified.

        Args:
            counts: ``Planner.counts``.
        """
        if self._verified is None:
            return False
        found = self._fingerprint()
        if found is None:
            return False
        verified, before = self._verified
        growth = _growth(counts, before)
        return found.rules == verified.rules and _growth(found.counts, verified.counts) == growth

    def _fingerprint(self) -> Fingerprint | None:
        """Return the kernel's fingerprint; ``None`` if it cannot be read."""
        try:
            return self._kernel.fingerprint()
        except (BackendError, NetlinkError):
            return None


def _growth(now: Counter[str], before: Counter[str]) -> dict[str, int]:
    """Return the differences between two sets of numbers, without those that are 0."""
    growth = {name: now[name] - before[name] for name in now.keys() | before.keys()}
    return {name: number for name, number in growth.items() if number}
