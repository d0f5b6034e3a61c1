"""Applying all changes but those that iptables-restore or the kernel refuses.

A restore is atomic per table: one rule that the kernel refuses would block all Services. This
module runs only after such a refusal. If iptables-restore names input lines, the Service ports that
they belong to are left out. If it names none (the kernel refuses a legacy table as a whole), or if
more ports are refused one after another, the ports are bisected until the refused ones are found.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping

import msgspec

from svcproxy.backends.base import Desired, Outcome, TransactionError
from svcproxy.backends.iptables.core.plan import Observed, Plan
from svcproxy.backends.iptables.core.planner import Planner
from svcproxy.backends.iptables.core.render import PortRules, render
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.xtables.core.restoretext import RestoreRefused
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT
from svcproxy.backends.xtables.core.tableplan import TablePlan
from svcproxy.limits import IPTABLES_ISOLATION_RESTORES
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort

Ports = Mapping[ServicePortName, ServicePort | None]

_NAMED = 4
"""How many times named ports are left out before the remaining ports are bisected as well."""
_NOT_TRIED = "not tried: too many other Service ports were refused in this sync"


class Kernel(msgspec.Struct, frozen=True):
    """What isolation needs from the backend.

    Attributes:
        carry_out: applies a plan; raises ``RestoreRefused`` or ``BackendError``.
        read: reads what the kernel holds.
        check: raises ``BackendError`` if iptables takes no input at all.
    """

    carry_out: Callable[[Plan], Outcome]
    read: Callable[[], Observed]
    check: Callable[[], None]


class Isolation:
    """One refused plan: finds the Service ports that are refused, and applies all others."""

    def __init__(self, planner: Planner, kernel: Kernel, error: RestoreRefused) -> None:
        self._planner = planner
        self._kernel = kernel
        self._error = error
        self._left = IPTABLES_ISOLATION_RESTORES
        self._applied: list[Outcome] = []
        self._refused: dict[ServicePortName, str] = {}

    def apply_changes(self, ports: Ports) -> Outcome:
        """Apply changes whose plan was refused.

        Raises:
            BackendError: the refusal is not due to single Service ports.
        """
        self._kernel.check()
        self._take_back(self._error)
        self._apply(ports, self._error)
        return self._outcome()

    def apply_all(self, desired: Desired, settings: IptablesSettings) -> Outcome:
        """Apply the whole desired state, whose plan was refused.

        Raises:
            BackendError: the refusal is not due to single Service ports.
        """
        self._kernel.check()
        error, suspects = self._error, frozenset(desired.ports)
        for _ in range(_NAMED):
            self._planner.undo()
            owners = self._owners(error, desired.ports)
            if not owners:
                break
            self._refuse(owners, error)
            try:
                self._compare(desired, settings, self._refused.keys())
            except RestoreRefused as another:
                error = another
            else:
                return self._outcome()
        else:
            self._planner.undo()
        # Leave out every port that differs from the kernel, apply the rest, then add the former.
        suspects = frozenset(_differing(desired.ports, settings, self._kernel.read()))
        self._compare(desired, settings, suspects | self._refused.keys())
        remaining = {n: desired.ports[n] for n in suspects if n not in self._refused}
        self._apply(remaining, error, halved=True)
        return self._outcome()

    def _compare(
        self, desired: Desired, settings: IptablesSettings, held: Collection[ServicePortName]
    ) -> None:
        plan = self._planner.plan(desired, settings, self._kernel.read(), held)
        self._spend()
        self._applied.append(self._kernel.carry_out(plan))

    def _apply(self, ports: Ports, error: RestoreRefused, *, halved: bool = False) -> None:
        """Apply changes in groups; ``error`` is the refusal of all of them at once."""
        groups: deque[tuple[Ports, RestoreRefused | None]] = deque()
        groups.append((ports, None if halved else error))
        named = 0
        while groups:
            group, failure = groups.popleft()
            if failure is None:
                failure = self._attempt(group)
                if failure is None:
                    continue
            owners = self._owners(failure, group) or (set(group) if len(group) == 1 else set())
            self._refuse(owners, failure)
            rest = {name: port for name, port in group.items() if name not in owners}
            named += bool(owners)
            pieces = [rest] if owners and named <= _NAMED else _halves(rest)
            groups.extend((piece, None) for piece in pieces if piece)

    def _attempt(self, ports: Ports) -> RestoreRefused | None:
        """Apply some changes; return the refusal, ``None`` on success."""
        if not self._left:
            if not self._applied:
                raise TransactionError(str(self._error))
            self._refused.update(dict.fromkeys(ports, _NOT_TRIED))
            return None
        plan = self._planner.plan_changes(ports)
        self._spend()
        try:
            self._applied.append(self._kernel.carry_out(plan))
        except RestoreRefused as error:
            self._take_back(error)
            return error
        return None

    def _take_back(self, error: RestoreRefused) -> None:
        """Undo a plan; if its first table was committed, undo that in the kernel as well."""
        filters = self._planner.undo()
        if error.partial and filters:
            self._kernel.carry_out(Plan({FILTER: filters, NAT: TablePlan()}, {}))

    def _spend(self) -> None:
        self._left = max(0, self._left - 1)

    def _refuse(self, names: Collection[ServicePortName], error: RestoreRefused) -> None:
        self._refused.update(dict.fromkeys(names, str(error)))

    def _owners(self, error: RestoreRefused, ports: Ports) -> set[ServicePortName]:
        """The Service ports that the named lines belong to."""
        wanted = {part for line in error.lines for part in _named_by(line) if part}
        if not wanted:
            return set()
        return {
            name
            for name, port in ports.items()
            if port is not None and not wanted.isdisjoint(_names(port, self._planner.settings))
        }

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


def _halves(ports: Ports) -> list[Ports]:
    """Return two groups; ports that need the same kernel features are next to each other."""
    names = sorted(ports, key=lambda name: (_needs(ports[name]), name))
    middle = len(names) // 2
    return [{n: ports[n] for n in names[:middle]}, {n: ports[n] for n in names[middle:]}]


def _needs(port: ServicePort | None) -> tuple[str, bool, bool]:
    """Return the kernel features that a port needs and that a kernel may lack, as a sort key."""
    if port is None:
        return "", False, False
    return port.name.protocol.value, bool(port.affinity_seconds), bool(port.source_ranges)


def _named_by(line: str) -> tuple[str, str]:
    """Return the chain that a line of a restore input names, and the rule; either may be empty."""
    command, _, rest = line.partition(" ")
    if command.startswith(":"):
        return command[1:], ""
    chain, _, text = rest.partition(" ")
    return chain, text


def _names(port: ServicePort, settings: IptablesSettings) -> Iterator[str]:
    """Yield what ``_named_by`` may return for a Service port: its chains, and rules in shared ones."""
    try:
        rules = render(port, settings)
    except ValueError:
        return
    yield from rules.chains
    yield from rules.sets
    yield from _shared(rules)


def _shared(rules: PortRules) -> Iterator[str]:
    """The rules of a Service port in chains that it shares with others."""
    for entries in (rules.cluster_ips, rules.external_ips, rules.node_ports):
        yield from entries.values()
    for texts in rules.lists.values():
        yield from texts


def _differing(
    ports: Mapping[ServicePortName, ServicePort], settings: IptablesSettings, observed: Observed
) -> Iterator[ServicePortName]:
    """Yield the Service ports whose rules are not all in the kernel."""
    nat = observed.tables.get(NAT, {})
    held = {
        text for table in observed.tables.values() for rules in table.values() for text in rules
    }
    for name, port in ports.items():
        try:
            rules = render(port, settings)
        except ValueError:
            continue
        same = rules.sets <= observed.sets
        same = same and all(nat.get(chain) == texts for chain, texts in rules.chains.items())
        if not (same and held.issuperset(_shared(rules))):
            yield name
