"""The recording backend: it writes to a dictionary instead of the kernel."""

from collections.abc import Callable

import structlog

from svcproxy.backends.base import Desired, Maintenance, Outcome
from svcproxy.backends.recording.core import plan as planning
from svcproxy.backends.recording.core.plan import Plan, Ports
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes

log = structlog.get_logger()


class RecordingBackend:
    """Records the Service ports of one family; it needs no privileges and changes nothing.

    Args:
        family: the IP family.

    Attributes:
        recorded: the Service ports as of the last sync.
        last: what the last sync changed; ``None`` before the first sync.
    """

    max_skipped_resyncs = 9

    def __init__(self, family: IPFamily) -> None:
        self._family = family
        self.recorded: dict[ServicePortName, ServicePort] = {}
        self.last: Plan | None = None

    @property
    def family(self) -> IPFamily:
        """The family that this backend records."""
        return self._family

    @property
    def settings(self) -> Settings:
        """The settings of the last plan."""
        return Settings(self._family) if self.last is None else self.last.settings

    def probe(self) -> None:
        """Do nothing: the backend runs anywhere."""

    def is_unchanged(self) -> bool:
        """Return ``True`` after the first sync: no other program can change the record."""
        return self.last is not None

    def read(self) -> Ports:
        """Return the recorded Service ports."""
        return dict(self.recorded)

    def plan(self, desired: Desired, observed: Ports) -> Plan:
        """Compare all Service ports."""
        return planning.resync(desired.ports, observed, desired.settings)

    def plan_changes(self, changes: Changes, settings: Settings) -> Plan | None:
        """Compare the changed Service ports; changed settings need a resync, as in any backend."""
        if self.last is None or settings != self.last.settings:
            return None
        return planning.changes(changes.ports, self.recorded, settings)

    def apply(self, plan: Plan) -> Outcome:
        """Record the plan, and log each operation at debug level."""
        for operation in plan.operations:
            if operation.after is None:
                del self.recorded[operation.name]
            else:
                self.recorded[operation.name] = operation.after
            log.debug(
                "recorded",
                family=self._family,
                operation=operation.kind,
                service_port=str(operation.name),
            )
        self.last = plan
        sizes = {"service_ports": len(self.recorded)}
        return Outcome(plan.counts(), sizes, {"service_ports": len(plan.operations)})

    def maintain(self, _should_yield: Callable[[], bool]) -> Maintenance:
        """Do nothing: the record does not depend on time."""
        return Maintenance()
