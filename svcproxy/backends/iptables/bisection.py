"""Applying all changes except those that iptables-restore or the kernel refuses.

A restore is atomic per table: one rule that the kernel refuses would block all Services. This
module runs only after such a refusal. If iptables-restore names input lines, the Service ports that
they belong to are left out. If it names none (the kernel refuses a legacy table as a whole), or if
more ports are refused one after another, the ports are bisected until the refused ones are found.
"""

from collections import deque
from collections.abc import Callable, Collection

import msgspec

from svcproxy.backends.base import Desired, Outcome, TransactionError
from svcproxy.backends.iptables.core.plan import Observed, Plan
from svcproxy.backends.iptables.core.planner import Planner
from svcproxy.backends.iptables.core.refused_ports import (
    PortChanges,
    halves,
    ports_in_lines,
    ports_not_programmed,
)
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.xtables.core.restoretext import RestoreRefused
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT
from svcproxy.backends.xtables.core.tableplan import TablePlan
from svcproxy.limits import IPTABLES_ISOLATION_RESTORES
from svcproxy.model.names import ServicePortName

_NAMED_ATTEMPTS = 4
"""How often the ports in the named lines are left out before the others are bisected as well."""
_NOT_TRIED = "not tried: too many other Service ports were refused in this sync"


class KernelAccess(msgspec.Struct, frozen=True):
    """The functions of the backend that ``Bisection`` calls.

    Attributes:
        execute: executes a plan; raises ``RestoreRefused`` or ``BackendError``.
        read: reads the tables and ipsets.
        check: raises ``BackendError`` if iptables accepts no input at all.
    """

    execute: Callable[[Plan], Outcome]
    read: Callable[[], Observed]
    check: Callable[[], None]


class Bisection:
    """Finds the refused Service ports of one refused plan, and applies all others.

    Args:
        planner: the planner that made the refused plan.
        kernel: access to the kernel.
        error: the refusal of the plan.
    """

    def __init__(self, planner: Planner, kernel: KernelAccess, error: RestoreRefused) -> None:
        self._planner = planner
        self._kernel = kernel
        self._error = error
        self._restores_left = IPTABLES_ISOLATION_RESTORES
        self._applied: list[Outcome] = []
        self._refused: dict[ServicePortName, str] = {}

    def apply_changes(self, ports: PortChanges) -> Outcome:
        """Apply changes whose plan was refused.

        Raises:
            BackendError: the refusal is not due to single Service ports.
        """
        self._kernel.check()
        self._undo(self._error)
        self._apply_in_groups(ports, self._error)
        return self._outcome()

    def apply_all(self, desired: Desired, settings: IptablesSettings) -> Outcome:
        """Apply the whole desired state, whose plan was refused.

        Raises:
            BackendError: the refusal is not due to single Service ports.
        """
        self._kernel.check()
        error = self._error
        for _ in range(_NAMED_ATTEMPTS):
            self._planner.undo()
            named = ports_in_lines(error.lines, desired.ports, self._planner.settings)
            if not named:
                break
            self._refuse(named, error)
            try:
                self._resync(desired, settings, self._refused.keys())
            except RestoreRefused as another:
                error = another
            else:
                return self._outcome()
        else:
            self._planner.undo()
        # Leave out every port that differs from the kernel, apply the rest, then add the ports
        # that were left out in groups.
        suspects = frozenset(ports_not_programmed(desired.ports, settings, self._kernel.read()))
        self._resync(desired, settings, suspects | self._refused.keys())
        remaining = {n: desired.ports[n] for n in suspects if n not in self._refused}
        self._apply_in_groups(remaining)
        return self._outcome()

    def _resync(
        self, desired: Desired, settings: IptablesSettings, excluded: Collection[ServicePortName]
    ) -> None:
        plan = self._planner.plan(desired, settings, self._kernel.read(), excluded)
        self._count_restore()
        self._applied.append(self._kernel.execute(plan))

    def _apply_in_groups(self, ports: PortChanges, error: RestoreRefused | None = None) -> None:
        """Apply changes in groups; ``error`` is the refusal of all of them in one group."""
        groups: deque[tuple[PortChanges, RestoreRefused | None]] = deque([(ports, error)])
        named_attempts = 0
        while groups:
            group, failure = groups.popleft()
            if failure is None:
                failure = self._attempt(group)
                if failure is None:
                    continue
            refused = ports_in_lines(failure.lines, group, self._planner.settings)
            if not refused and len(group) == 1:
                refused = set(group)
            self._refuse(refused, failure)
            rest = {name: port for name, port in group.items() if name not in refused}
            named_attempts += bool(refused)
            retry_as_one = refused and named_attempts <= _NAMED_ATTEMPTS
            groups.extend((p, None) for p in ([rest] if retry_as_one else halves(rest)) if p)

    def _attempt(self, ports: PortChanges) -> RestoreRefused | None:
        """Apply some changes; return the refusal, ``None`` on success."""
        if not self._restores_left:
            if not self._applied:
                raise TransactionError(str(self._error))
            self._refused.update(dict.fromkeys(ports, _NOT_TRIED))
            return None
        plan = self._planner.plan_changes(ports)
        self._count_restore()
        try:
            self._applied.append(self._kernel.execute(plan))
        except RestoreRefused as error:
            self._undo(error)
            return error
        return None

    def _undo(self, error: RestoreRefused) -> None:
        """Undo the last plan; if its first table was committed, undo that in the kernel as well."""
        filters = self._planner.undo()
        if error.partial and filters:
            self._kernel.execute(Plan({FILTER: filters, NAT: TablePlan()}, {}))

    def _count_restore(self) -> None:
        self._restores_left = max(0, self._restores_left - 1)

    def _refuse(self, names: Collection[ServicePortName], error: RestoreRefused) -> None:
        self._refused.update(dict.fromkeys(names, str(error)))

    def _outcome(self) -> Outcome:
        """Return the sum of all applied plans."""
        operations: dict[str, int] = {}
        written: dict[str, int] = {}
        for outcome in self._applied:
            for total, counts in ((operations, outcome.operations), (written, outcome.written)):
                for kind, count in counts.items():
                    total[kind] = total.get(kind, 0) + count
        refused = dict(self._refused)
        for outcome in self._applied:
            refused.update(outcome.refused)
        return Outcome(operations, self._planner.sizes, written, refused)
