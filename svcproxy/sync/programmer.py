"""Planning and applying: the two steps of a sync that involve the backend."""

from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

from svcproxy.backends.base import Backend, BackendError, Desired, Outcome
from svcproxy.backends.settings import Settings
from svcproxy.model.names import ServicePortName
from svcproxy.model.objects import Node
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes, DesiredState
from svcproxy.sync.core.isolation import Isolation
from svcproxy.sync.report import Reporter

Observed = TypeVar("Observed")
Plan = TypeVar("Plan")


class Programmed(NamedTuple):
    """What a sync did.

    Attributes:
        outcome: the backend's result.
        planned: when the plan was ready, in seconds of the loop's clock.
        full: whether the whole kernel state was compared.
    """

    outcome: Outcome
    planned: float
    full: bool


class Programmer(Generic[Observed, Plan]):
    """Programs the kernel with the Service ports of one family.

    Args:
        backend: the backend of the family.
        state: the desired state of the family.
        settings_for: computes the settings for a Node object.
        isolation: the Service ports to leave out because planning failed for them.
        reporter: reports exceptions in planning.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        backend: Backend[Observed, Plan],
        state: DesiredState,
        *,
        settings_for: Callable[[Node | None], Settings],
        isolation: Isolation,
        reporter: Reporter,
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._state = state
        self._settings_for = settings_for
        self._settings = settings_for(state.node)
        self._isolation = isolation
        self._reporter = reporter
        self._clock = clock

    def update_settings(self) -> None:
        """Compute the settings for the changed Node object; equal ones stay the same object."""
        settings = self._settings_for(self._state.node)
        if settings != self._settings:
            self._settings = settings

    def program(self, changes: Changes, *, full: bool, pending: Changes) -> Programmed:
        """Plan and apply.

        Args:
            changes: the changed Service ports, for an incremental plan.
            full: compare the whole kernel state instead.
            pending: all changes since the last success, the likely causes of an exception.

        Raises:
            BackendError: the kernel could not be read or written.
        """
        plan = None if full else self._plan_changes(changes)
        if plan is None:
            full = True
            plan = self._plan_all(self._backend.read(), pending)
        planned = self._clock()
        return Programmed(self._backend.apply(plan), planned, full)

    def _plan_changes(self, changes: Changes) -> Plan | None:
        """Plan the changes; ``None`` if only a comparison of the whole state can apply them."""
        try:
            return self._backend.plan_changes(changes, self._settings)
        except BackendError:
            raise
        except Exception as error:  # noqa: BLE001 - reported; _plan_all finds the cause
            self._reporter.defect("planning", error)
            return None

    def _plan_all(self, observed: Observed, pending: Changes) -> Plan:
        """Plan from scratch; leave out the Service ports for which planning fails."""
        state, now = self._state, self._clock()

        def plan(ports: Mapping[ServicePortName, ServicePort]) -> Plan:
            return self._backend.plan(Desired(ports, self._settings, state.service_cidrs), observed)

        try:
            made = plan(self._isolation.admitted(state.ports, now))
        except (BackendError, MemoryError):
            raise
        except Exception:
            found = self._isolation.search(plan, state.ports, pending, now)
            if found is None:
                raise
            for name, error in found.items():
                self._reporter.defect("planning", error, service_port=str(name))
            return plan(self._isolation.admitted(state.ports, now))
        self._isolation.succeeded(now)
        return made
