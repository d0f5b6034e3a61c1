"""The document of ``svcproxy diff``: what differs in the kernel, and the last repairs. Pure."""

import re
from collections.abc import Mapping, Sequence

import msgspec

from svcproxy.admin.core.protocol import FamilyStatus, Repair, Repairs, Status
from svcproxy.explain.core.differences import Difference
from svcproxy.explain.core.documents import Document, KernelDifference, Part
from svcproxy.explain.core.node_summary import KernelComparison, NodeSummary, node_summary
from svcproxy.explain.core.view import NodeView
from svcproxy.model.names import IPFamily

NAMES = 100
"""How many Service ports a difference names; a table that is missing concerns all."""

_COUNT = re.compile(r"^[\d,]+ ")
_NOT_OBJECTS = frozenset(("restore", "message", "compared_again"))
"""Kinds of operation that count how often a tool ran or a message was sent."""


class FamilyState(msgspec.Struct, frozen=True):
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
        family: the IP family.
        service_ports: the Service ports it belongs to, at most 100; absent for objects that all
            share.
        service_port_count: their number.
    """

    family: IPFamily
    service_ports: tuple[str, ...] = ()
    service_port_count: int = 0


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
        sizes: the number of objects in the kernel, by family and kind.
        differences: what differs.
        held: differences of Service ports that the daemon holds back, with the reason; they are
            not repaired until the kernel accepts these ports.
        repairs: the last repairs, oldest first.
        repairs_total: the number of repairs since the daemon started.
    """

    node: NodeSummary
    sizes: dict[IPFamily, dict[str, int]]
    differences: tuple[DifferenceInfo, ...]
    held: tuple[DifferenceInfo, ...]
    repairs: tuple[RepairInfo, ...]
    repairs_total: int


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


def diff(view: NodeView, states: Mapping[IPFamily, FamilyState], repairs: Repairs) -> Diff:
    """Make the document.

    Args:
        view: the node.
        states: what was found in the kernel, by family.
        repairs: the last repairs, oldest first.
    """
    differences: list[DifferenceInfo] = []
    held: list[DifferenceInfo] = []
    comparison: dict[IPFamily, KernelComparison] = {}
    for family, state in states.items():
        reasons = _status(view.status, family).held
        counted = 0
        for each in state.differences:
            is_held = bool(each.service_ports) and all(
                str(name) in reasons for name in each.service_ports
            )
            (held if is_held else differences).append(_info(family, each))
            counted += not is_held
        comparison[family] = KernelComparison(state.error, counted)
    return Diff(
        node=node_summary(view, comparison),
        sizes={family: dict(state.sizes) for family, state in states.items()},
        differences=tuple(differences),
        held=tuple(held),
        repairs=tuple(map(repair_info, repairs.repairs)),
        repairs_total=repairs.total,
    )


def _status(status: Status | None, family: IPFamily) -> FamilyStatus:
    return status.families.get(family, FamilyStatus()) if status else FamilyStatus()


def _info(family: IPFamily, found: Difference) -> DifferenceInfo:
    return DifferenceInfo(
        difference=found.kind.value,
        object=found.object,
        desired=found.desired,
        actual=found.actual,
        family=family,
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
    culprit = repair.process or ("a process" if repair.pid else "an unknown process")
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
