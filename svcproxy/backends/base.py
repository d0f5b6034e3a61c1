"""What the sync loop asks of a backend, whichever part of the kernel it programs."""

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
    """The whole desired state of one family, the input of a plan from scratch.

    Attributes:
        ports: all Service ports of the family.
        settings: what the rules depend on besides Service ports.
        service_cidrs: the ranges of cluster IPs, for backends that drop packets to unassigned ones.
    """

    ports: Mapping[ServicePortName, ServicePort]
    settings: Settings
    service_cidrs: tuple[str, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """What an applied plan did.

    ``operations`` counts kernel operations by kind, in the backend's own words (for example
    ``chain_written``); it is empty when there was nothing to do. ``sizes`` tells how much the
    kernel holds now by kind, for example rules by table. ``written`` counts what this sync
    sent, by the same kinds.

    ``refused`` are the Service ports that the kernel refused in this sync, with the reason in
    words. The backend left each as it was before and applied everything else. The loop reports
    each once and passes it to ``plan_changes`` again, with back-off, until the kernel takes it;
    for that the backend must remember the state that the kernel still holds, not the refused one.
    """

    operations: Mapping[str, int]
    sizes: Mapping[str, int] = {}
    written: Mapping[str, int] = {}
    refused: Mapping[ServicePortName, str] = {}


class ExternalChange(msgspec.Struct, frozen=True):
    """Another program changed kernel state that svcproxy may have programmed.

    Attributes:
        process: the name of the process, as the kernel has it (up to 15 characters); empty if
            unknown.
        pid: its process ID in the initial PID namespace; 0 if unknown.
        certain: whether the change certainly affects svcproxy's objects; otherwise it may.
        families: the IP families that are affected.
        affects_inputs: an input of svcproxy changed, such as the node's addresses, not what it
            programs: the update that follows does not count as a repair.
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
        found: a change of another program that calls for a resync.
    """

    next_in: float | None = None
    found: ExternalChange | None = None


class Backend(Protocol[Observed, Plan]):
    """Programs one IP family.

    The sync loop calls from a single thread, in one of two ways: ``read``, ``plan`` and
    ``apply`` for a comparison from scratch, or ``plan_changes`` and ``apply`` for what changed
    since the last successful ``apply``. After a failure of any of them the next call is
    ``read``; a backend may therefore advance its memory of the kernel while planning.
    """

    @property
    def family(self) -> IPFamily:
        """The family that this backend programs."""

    @property
    def max_skipped_resyncs(self) -> int:
        """How many periodic resyncs in a row may be skipped while ``is_unchanged`` holds.

        The resync after them finds changes that ``is_unchanged`` cannot see.
        """

    def probe(self) -> None:
        """Check that the kernel and the tools can do the job, and prepare what must exist.

        Raises:
            BackendUnavailable: they cannot; the message names the remedy.
        """

    def is_unchanged(self) -> bool:
        """Whether the kernel certainly holds what the last ``apply`` left, by a cheap check.

        If so, the loop may skip a periodic resync. ``False`` if that is unknown.
        """

    def read(self) -> Observed:
        """Read what the kernel holds now, ours and what may be ours.

        Raises:
            BackendError: the kernel could not be read.
        """

    def plan(self, desired: Desired, observed: Observed) -> Plan:
        """Compute the difference between ``desired`` and what the kernel holds."""

    def plan_changes(self, changes: Changes, settings: Settings) -> Plan | None:
        """Compute what ``changes`` mean for the kernel as of the last ``apply``.

        Args:
            changes: the changed Service ports. A port that was refused before may be among them
                without having changed since.
            settings: the current settings; the same object as long as nothing in them changed.

        Returns:
            The plan, or ``None`` if only a resync can apply the changes.
        """

    def apply(self, plan: Plan) -> Outcome:
        """Make the kernel agree, in one transaction where it offers one; an empty plan is free.

        Raises:
            BackendError: the kernel refused; nothing can be assumed about its state.
        """

    def maintain(self, should_yield: Callable[[], bool]) -> Maintenance:
        """Do periodic work: let real servers drain, audit the kernel.

        The loop calls it after each sync, and again when the returned delay has passed.

        Args:
            should_yield: whether changes are waiting, so that long work should continue in the
                next call.

        Raises:
            BackendError: the kernel did not do what was asked.
        """

    def clean_up(self) -> None:
        """Remove everything of this backend from the kernel.

        Raises:
            BackendError: something could not be removed.
        """


class BackendError(Exception):
    """The kernel could not be read or written; the sync is retried from scratch."""


class TransactionError(BackendError):
    """The kernel refused a transaction: iptables-restore failed, or nftables' commit.

    kube-proxy counts these, and only these, as failures to restore.
    """


class BackendUnavailable(Exception):  # noqa: N818 - it states a condition, not a fault
    """This node cannot run the backend; the message is one line that names the remedy."""
