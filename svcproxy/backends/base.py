"""The interface between the sync loop and the backends."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes

Observed = TypeVar("Observed")
Plan = TypeVar("Plan")


class Desired(msgspec.Struct, frozen=True):
    """The whole desired state of one family: the input of ``Backend.plan``.

    Attributes:
        ports: all Service ports of the family.
        settings: what the rules depend on besides Service ports.
        service_cidrs: the ranges of cluster IPs, for backends that drop packets to unassigned ones.
    """

    ports: Mapping[ServicePortName, ServicePort]
    settings: Settings
    service_cidrs: tuple[str, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """The result of applying a plan.

    A backend leaves a Service port that the kernel refuses in its former state, and applies
    everything else. The loop reports the port once and passes it to ``plan_changes`` again, with
    back-off, until the kernel accepts it. Until then the backend must remember the state that the
    kernel holds, not the refused one.

    Attributes:
        operations: the number of kernel operations by kind, in the backend's terms (for example
            ``chain_written``); empty if nothing differed.
        sizes: the number of objects in the kernel by kind, for example rules by table.
        written: the number of objects that this sync wrote, by the same kinds.
        refused: the Service ports that the kernel refused in this sync, with the reasons.
    """

    operations: Mapping[str, int]
    sizes: Mapping[str, int] = {}
    written: Mapping[str, int] = {}
    refused: Mapping[ServicePortName, str] = {}


class ExternalChange(msgspec.Struct, frozen=True):
    """Another program changed kernel state that svcproxy may have programmed.

    Attributes:
        process: the name of the process, which the kernel cuts to 15 characters; empty if unknown.
        pid: its process ID in the initial PID namespace; 0 if unknown.
        certain: whether the change certainly affects svcproxy's objects; otherwise it may.
        families: the IP families that are affected.
        affects_inputs: whether an input of svcproxy changed, such as the node's addresses, and not
            its rules. The resync that follows does not count as a repair.
    """

    process: str
    pid: int
    certain: bool = True
    families: frozenset[IPFamily] = frozenset(IPFamily)
    affects_inputs: bool = False


class Maintenance(NamedTuple):
    """The result of ``Backend.maintain``.

    Attributes:
        next_in: seconds until the next call; ``None`` for not before the next sync.
        found: a change by another program that calls for a resync.
    """

    next_in: float | None = None
    found: ExternalChange | None = None


class Backend(Protocol[Observed, Plan]):
    """Programs one IP family.

    The sync loop calls it from a single thread. A full sync calls ``read``, ``plan`` and ``apply``;
    a partial sync calls ``plan_changes`` and ``apply``, with the changes since the last successful
    ``apply``. ``plan`` and ``plan_changes`` compute from their arguments and from what ``probe``,
    ``read`` and ``apply`` learned about the kernel. They do no I/O. After any failure the next call
    is ``read``, so a backend may update its record of the kernel's state while planning.
    """

    @property
    def family(self) -> IPFamily:
        """The IP family."""

    @property
    def settings(self) -> Settings:
        """The settings of the last plan, with what the backend knows about the kernel.

        Safe from any thread.
        """

    @property
    def max_skipped_resyncs(self) -> int:
        """How many periodic resyncs in a row may be skipped while ``is_unchanged`` holds.

        The resync after them finds changes that ``is_unchanged`` cannot see.
        """

    def probe(self) -> None:
        """Check the kernel and the programs that the backend needs, and set kernel parameters.

        Raises:
            BackendUnavailable: something is missing; the message names the remedy.
        """

    def is_unchanged(self) -> bool:
        """Check cheaply whether the kernel's state is certainly that of the last ``apply``.

        If so, the loop may skip a periodic resync. Return ``False`` if it is unknown.
        """

    def read(self) -> Observed:
        """Read the state of all kernel objects that may belong to the backend.

        Raises:
            BackendError: the kernel could not be read.
        """

    def plan(self, desired: Desired, observed: Observed) -> Plan:
        """Compute what makes the ``observed`` state equal to the ``desired`` one.

        It may be called again with the same ``observed`` state and fewer Service ports.
        """

    def plan_changes(self, changes: Changes, settings: Settings) -> Plan | None:
        """Compute what applies ``changes`` to the state after the last ``apply``.

        Args:
            changes: the changed Service ports, and unchanged ones that the kernel refused before.
            settings: the current settings; the same object as long as they are equal.

        Returns:
            The plan, or ``None`` if only a resync can apply the changes.
        """

    def apply(self, plan: Plan) -> Outcome:
        """Execute the plan, in one transaction if the kernel has transactions.

        An empty plan costs nothing.

        Raises:
            BackendError: the kernel refused; its state is unknown.
        """

    def maintain(self, should_yield: Callable[[], bool]) -> Maintenance:
        """Do periodic work, such as to remove drained real servers and to audit the kernel.

        The loop calls it after each sync, and again after the returned delay.

        Args:
            should_yield: returns whether changes are waiting; long work should then stop and
                continue in the next call.

        Raises:
            BackendError: the kernel refused.
        """


class BackendError(Exception):
    """The kernel could not be read or written; the loop retries with a full sync."""


class TransactionError(BackendError):
    """The kernel refused a transaction of iptables-restore or nf_tables.

    Only these count as restore failures in kube-proxy's metrics.
    """


class BackendUnavailable(Exception):  # noqa: N818 - it states a condition, not a fault
    """This node cannot run the backend; the message is one line that names the remedy."""
