"""The document of ``svcproxy diff``: what differs in the kernel, and the last repairs. Pure."""

import re
from collections.abc import Mapping, Sequence

import msgspec

from svcproxy.admin.core.protocol import FamilyStatus, Repair, Repairs, Status
from svcproxy.explain.core.differences import Difference, one_line
from svcproxy.explain.core.documents import Document, KernelDifference, Part
from svcproxy.explain.core.node_summary import KernelComparison, NodeSummary, node_summary
from svcproxy.explain.core.view import NodeView
from svcproxy.model.names import IPFamily

NAMES = 100
"""How many Service ports a difference names; a table that is missing concerns all."""

_COUNT = re.compile(r"^[\d,]+ ")
_NOT_OBJECTS = frozenset(("restore", "message", "compared_again"))
"""Kinds of operation that count how often a tool ran or a message was sent."""


class KernelFound(msgspec.Struct, frozen=True):
    """What was found in the kernel of a family.

    Attributes:
        differences: how it differs from the desired state.
        sizes: the number of objects in the kernel by kind.
        error: why the kernel could not be read; empty if it was read.
    """

    differences: Sequence[Difference] = ()
    sizes: Mapping[str, int] = {}
    error: str = ""


class DifferenceInfo(KernelDifference, frozen=True, kw_only=True):
    """A kernel object that differs from the desired state, or several of the same kind.

    Attributes:
        service_ports: the Service ports it belongs to, at most 100; absent for objects that all
            share.
        service_port_count: their number.
    """

    service_ports: tuple[str, ...] = ()
    service_port_count: int = 0


class FamilyDiff(Part, frozen=True, kw_only=True):
    """What differs in the kernel of one IP family.

    Attributes:
        family: ``IPv4`` or ``IPv6``.
        differences: what differs.
        held: differences of Service ports that the daemon holds back: they stay until the kernel
            accepts these ports.
        sizes: the number of svcproxy's objects in the kernel, by kind.
        error: why the kernel could not be read.
    """

    family: IPFamily
    differences: tuple[DifferenceInfo, ...]
    held: tuple[DifferenceInfo, ...] = ()
    sizes: Mapping[str, int] = {}
    error: str = ""


class RepairInfo(Part, frozen=True, kw_only=True):
    """A sync that restored kernel objects which another program had changed.

    Attributes:
        number: counts the repairs of this daemon from 1.
        at: when it was done, in seconds since 1970.
        family: the IP family.
        operations: the number of kernel operations by kind, for example ``element_added``.
        text: what was done and why, in words.
        process: the name of the program that made the change; absent if unknown.
        pid: its process ID; absent if unknown.
        seconds: from the event that reported the change, or from the begin of the resync that found
            it, until the repair was done.
        reported: whether an event of the kernel reported the change; otherwise a resync found it.
    """

    number: int
    at: float
    family: IPFamily
    operations: dict[str, int]
    text: str
    process: str = ""
    pid: int = 0
    seconds: float = 0.0
    reported: bool = False


class Diff(Document, frozen=True, kw_only=True):
    """How the kernel differs from the desired state, and the last repairs.

    Attributes:
        node: the state of the node.
        families: what differs, by IP family.
        repairs: the last repairs, oldest first.
        repairs_total: the number of repairs since the daemon started.
    """

    node: NodeSummary
    families: tuple[FamilyDiff, ...]
    repairs: tuple[RepairInfo, ...]
    repairs_total: int

    @property
    def differs(self) -> bool:
        """Whether anything differs, other than Service ports that are held back."""
        return any(family.differences for family in self.families)


def persisting(before: Sequence[Difference], after: Sequence[Difference]) -> list[Difference]:
    """Return the differences that an earlier reading has found as well.

    A sync may run between the reading of the objects and that of the kernel. What it changes is
    not a difference.
    """
    known = {_identity(each) for each in before}
    return [each for each in after if _identity(each) in known]


def _identity(difference: Difference) -> tuple[str, str]:
    """Return what a difference is about; the number of a summary may change."""
    return difference.kind.value, _COUNT.sub("", difference.object)


def diff(view: NodeView, states: Mapping[IPFamily, KernelFound], repairs: Repairs) -> Diff:
    """Make the document.

    Args:
        view: the node.
        states: what was found in the kernel, by family.
        repairs: the last repairs, oldest first.
    """
    families = tuple(_family(view.status, family, found) for family, found in states.items())
    comparison = {
        each.family: KernelComparison(each.error, len(each.differences)) for each in families
    }
    return Diff(
        node=node_summary(view, comparison),
        families=families,
        repairs=tuple(map(repair_info, repairs.repairs)),
        repairs_total=repairs.total,
    )


def _family(status: Status | None, family: IPFamily, found: KernelFound) -> FamilyDiff:
    about = status.families.get(family, FamilyStatus()) if status else FamilyStatus()
    differences: list[DifferenceInfo] = []
    held: list[DifferenceInfo] = []
    for each in found.differences:
        names = set(map(str, each.service_ports))
        (held if names and names <= about.held.keys() else differences).append(_info(each))
    return FamilyDiff(
        family=family,
        differences=tuple(differences),
        held=tuple(held),
        sizes=dict(found.sizes),
        error=found.error,
    )


def _info(found: Difference) -> DifferenceInfo:
    return DifferenceInfo(
        difference=found.kind.value,
        object=found.object,
        desired=found.desired,
        actual=found.actual,
        service_ports=tuple(map(str, found.service_ports[:NAMES])),
        service_port_count=len(found.service_ports),
    )


def repair_info(repair: Repair) -> RepairInfo:
    """Return a repair as a part of the document."""
    return RepairInfo(
        number=repair.number,
        at=repair.at,
        family=repair.family,
        operations=dict(repair.operations),
        text=f"{operations_text(repair.operations)} {_cause(repair)}",
        process=repair.process,
        pid=repair.pid,
        seconds=repair.seconds,
        reported=repair.reported,
    )


def _cause(repair: Repair) -> str:
    took = f"{repair.seconds * 1000:,.0f} ms"
    culprit = one_line(repair.process) or ("a process" if repair.pid else "an unknown process")
    if repair.pid:
        culprit += f" (pid {repair.pid})"
    if repair.reported:
        return f"{took} after a change by {culprit}"
    by = f", probably made by {culprit}" if repair.process or repair.pid else ""
    return f"in {took} by a resync that found the change{by}"


def operations_text(operations: Mapping[str, int]) -> str:
    """Return operations in words: ``2 elements added, 1 chain written``."""
    parts = [
        _counted(kind, count) for kind, count in operations.items() if kind not in _NOT_OBJECTS
    ]
    return ", ".join(parts) or "rules written"


def _counted(kind: str, count: int) -> str:
    noun, _, verb = kind.rpartition("_")
    return f"{size_text(noun or verb, count)} {verb if noun else ''}".rstrip()


def size_text(kind: str, count: int) -> str:
    """Return a number of objects in words: ``40 chains``, ``2 set entries``."""
    noun = kind.replace("_", " ")
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}{_plural_ending(noun)}"
    return f"{count:,} {noun}"


def _plural_ending(noun: str) -> str:
    return "es" if noun.endswith("s") else "s"
