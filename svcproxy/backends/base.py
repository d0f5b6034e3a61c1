"""What the sync loop asks of a backend, whichever part of the kernel it programs."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import msgspec

from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.objects import Node
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes

Observed = TypeVar("Observed")
Plan = TypeVar("Plan")


class Desired(msgspec.Struct, frozen=True):
    """The whole desired state of one family, the input of a plan from scratch.

    ``service_cidrs`` are the ranges that cluster IPs are taken from, for backends that drop what
    is sent to those that nobody has.
    """

    ports: Mapping[ServicePortName, ServicePort]
    node: Node | None
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
    """A change that somebody else has made to what we may have programmed.

    Attributes:
        process: the name of the process, as the kernel has it (up to 15 characters); empty when
            nobody knows.
        pid: its number in the initial pid namespace; 0 when unknown.
        sure: whether it was ours for sure that was changed; otherwise it may have been.
        families: of which families.
        outside: an input of ours changed, such as the node's addresses, not what we program: the
            update that follows does not count as a repair.
    """

    process: str
    pid: int
    sure: bool = True
    families: frozenset[IPFamily] = frozenset(IPFamily)
    outside: bool = False


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
    def spares(self) -> int:
        """How many periodic comparisons may be spared in a row while ``untouched`` says so.

        What it cannot see is found by the one after them.
        """

    def probe(self) -> None:
        """Check that the kernel and the tools can do the job, and prepare what must exist.

        Raises:
            BackendUnavailable: they cannot; the message names the remedy.
        """

    def untouched(self) -> bool:
        """Whether the kernel surely holds what the last ``apply`` left, if that is cheap to tell.

        It spares the periodic comparison; ``False`` when it cannot be told.
        """

    def read(self) -> Observed:
        """Read what the kernel holds now, ours and what may be ours.

        Raises:
            BackendError: the kernel could not be read.
        """

    def plan(self, desired: Desired, observed: Observed) -> Plan:
        """Compute the difference between ``desired`` and what the kernel holds."""

    def plan_changes(self, changes: Changes, node: Node | None) -> Plan | None:
        """Compute what ``changes`` mean for the kernel as of the last ``apply``.

        ``node`` is the present Node object, for when ``changes`` say that it changed. A Service
        port that was refused before may be among ``changes`` without having changed since.

        Returns:
            The plan, or ``None`` when only a comparison from scratch will do.
        """

    def apply(self, plan: Plan) -> Outcome:
        """Make the kernel agree, in one transaction where it offers one; an empty plan is free.

        Raises:
            BackendError: the kernel refused; nothing can be assumed about its state.
        """

    def tend(self, hurry: Callable[[], bool]) -> float | ExternalChange | None:
        """Do what only passing time calls for; called after each sync, and when time is up.

        Args:
            hurry: whether something has come that is more important, so that what takes long had
                better go on at the next call.

        Returns:
            Seconds until it wants to be called again, ``None`` for not before the next sync; or
            what others have done, if it came upon such a thing, which calls for a comparison.

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
