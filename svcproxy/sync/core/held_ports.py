"""The Service ports that are held back, for either reason."""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes
from svcproxy.sync.core.isolation import Isolation
from svcproxy.sync.core.quarantine import Quarantine


class HeldPorts:
    """Service ports that the kernel refused, and those for which planning failed.

    All times are seconds of one monotonic clock.

    Args:
        first_retry: seconds until the first retry of a refused port.
        period: seconds of the sync period.

    Attributes:
        refused: the ports that the kernel refused; a partial sync retries them.
        isolation: the ports for which planning failed; a resync retries them.
    """

    def __init__(self, first_retry: float, period: float) -> None:
        self.refused = Quarantine(first_retry, period)
        self.isolation = Isolation(period)

    @property
    def names(self) -> AbstractSet[ServicePortName]:
        """The Service ports that are held back."""
        return self.refused.names | self.isolation.names

    def reasons(self, limit: int) -> dict[ServicePortName, str]:
        """Return why ports are held back, at most ``limit`` of each kind; safe from any thread."""
        return {**self.refused.reasons(limit), **self.isolation.reasons(limit)}

    @property
    def next_due(self) -> float:
        """When the first retry is due; infinity if no port is held back."""
        return min(self.refused.next_due, self.isolation.next_due)

    def admit(
        self, changes: Changes, ports: Mapping[ServicePortName, ServicePort], now: float
    ) -> Changes:
        """Return the changes to plan: without isolated ports, with refused ones due for a retry.

        Args:
            changes: the changes since the last sync.
            ports: all Service ports.
            now: the time.
        """
        if self.refused.names:
            self.refused.release(changes.ports)
            # Only the isolation decides when to retry the ports that it leaves out.
            self.refused.release(self.isolation.names)
        retried = {name: ports.get(name) for name in self.refused.due(now)}
        return self.isolation.admit(changes.including(retried))

    def note_refused(
        self,
        refused: Mapping[ServicePortName, str],
        attempted: Iterable[ServicePortName] | None,
        now: float,
    ) -> list[tuple[ServicePortName, str]]:
        """Note which ports the kernel refused in a sync; see ``Quarantine.note``."""
        return self.refused.note(now, refused, attempted)
