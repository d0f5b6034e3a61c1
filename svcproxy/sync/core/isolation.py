"""Finding the Service ports for which planning fails, so that all others can be programmed.

An exception in planning is a defect of svcproxy that a single object most likely triggers. Without
isolation, this object would stop all syncs of its family.
"""

from collections.abc import Callable, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from svcproxy import limits
from svcproxy.backends.base import BackendError
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes
from svcproxy.sync.core.quarantine import Quarantine

Ports = Mapping[ServicePortName, ServicePort]
PlanAll = Callable[[Ports], object]


def isolate(
    plan: PlanAll, ports: Ports, suspects: AbstractSet[ServicePortName], kept: Ports
) -> dict[ServicePortName, Exception] | None:
    """Find the Service ports for which ``plan`` raises, by bisection.

    Args:
        plan: plans the given Service ports; may be called any number of times.
        ports: all Service ports as they should be.
        suspects: those that may be the cause.
        kept: the state in which a suspect is planned while it is left out; without one, it is
            absent.

    Returns:
        The Service ports to leave out, each with its exception; ``None`` if planning fails without
        all suspects, too, or if finding them takes more than ``limits.ISOLATION_PLANS`` plans.
    """
    if _failure(plan, _replaced(ports, suspects, kept)) is not None:
        return None
    found: dict[ServicePortName, Exception] = {}
    cleared: set[ServicePortName] = set()
    groups: list[Sequence[ServicePortName]] = [sorted(suspects)]
    for _ in range(limits.ISOLATION_PLANS):
        if not groups:
            return found
        group = groups.pop()
        error = _failure(plan, _replaced(ports, suspects - cleared - set(group), kept))
        if error is None:
            cleared.update(group)
        elif len(group) > 1:
            middle = len(group) // 2
            groups += [group[middle:], group[:middle]]
        elif group:
            found[group[0]] = error
    return None if groups else found


def _failure(plan: PlanAll, ports: Ports) -> Exception | None:
    try:
        plan(ports)
    except (BackendError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - the search is for any exception
        return error
    return None


def _replaced(ports: Ports, held: AbstractSet[ServicePortName], kept: Ports) -> Ports:
    """Return ``ports`` with the ``held`` ones in the state of ``kept``, or absent."""
    if not held:
        return ports
    rest = {name: port for name, port in ports.items() if name not in held}
    return {**rest, **{name: kept[name] for name in held if name in kept}}


class Isolation:
    """The Service ports that are left out of plans because planning failed for them.

    Each keeps its last good state. They are retried with back-off only, also if they change
    meanwhile, because each attempt may cost many plans.

    Args:
        period: seconds of the sync period: the wait before the first retry.
    """

    def __init__(self, period: float) -> None:
        self._held = Quarantine(period, limits.ISOLATION_RETRY_SECONDS)
        self._kept: dict[ServicePortName, ServicePort] = {}

    @property
    def names(self) -> KeysView[ServicePortName]:
        """The Service ports that are left out."""
        return self._held.names

    def reasons(self, limit: int) -> dict[ServicePortName, str]:
        """Return the exceptions as text of at most ``limit`` ports; safe from any thread."""
        return self._held.reasons(limit)

    @property
    def next_due(self) -> float:
        """When the first of them is due for a retry, by a plan from scratch."""
        return self._held.next_due

    def admit(self, changes: Changes) -> Changes:
        """Return ``changes`` without the Service ports that are left out, unless they are deleted."""
        if not self._held.names:
            return changes
        self._held.release([name for name, port in changes.ports.items() if port is None])
        self._forget()
        held = self._held.names
        ports = {name: port for name, port in changes.ports.items() if name not in held}
        return msgspec.structs.replace(changes, ports=ports)

    def admitted(self, ports: Ports, now: float) -> Ports:
        """Return the Service ports for a plan from scratch, with those that are due for a retry."""
        if not self._held.names:
            return ports
        return _replaced(ports, self._held.names - set(self._held.due(now)), self._kept)

    def search(
        self, plan: PlanAll, ports: Ports, changed: Changes, now: float
    ) -> dict[ServicePortName, Exception] | None:
        """Find the Service ports for which planning fails, and leave them out from now on.

        Args:
            plan: as for ``isolate``.
            ports: all Service ports.
            changed: what has changed since the last success; searched before all others.
            now: the time.

        Returns:
            The newly found Service ports, to be reported; ``None`` if none explain the failure.
        """
        kept = {**changed.previous, **self._kept}
        suspects = {*(changed.ports.keys() & ports.keys()), *self._held.names} & ports.keys()
        found = isolate(plan, ports, suspects, kept) if suspects else {}
        if not found or _failure(plan, _replaced(ports, found.keys(), kept)) is not None:
            kept = {name: port for name, port in kept.items() if name in self._kept}
            found = isolate(plan, ports, set(ports), kept)
        if not found:
            return None
        unreported = self._held.note(now, {name: repr(e)[:200] for name, e in found.items()}, None)
        self._kept = {name: kept[name] for name in found if name in kept}
        return {name: found[name] for name, _ in unreported}

    def succeeded(self, now: float) -> None:
        """Note that a plan from scratch with those that were due has succeeded."""
        self._held.release(self._held.due(now))
        self._forget()

    def _forget(self) -> None:
        for name in self._kept.keys() - self._held.names:
            del self._kept[name]
