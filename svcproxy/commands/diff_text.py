"""Prints differences and repairs for people."""

import time
from collections.abc import Sequence
from datetime import datetime

from svcproxy.commands.output import Cell, Output, Style
from svcproxy.explain.core.diff_documents import (
    Diff,
    DifferenceInfo,
    FamilyDiff,
    RepairInfo,
    size_text,
)
from svcproxy.explain.core.node_summary import NodeSummary

_NAMES = 3
_DIFFERENCES = 200
"""How many differences are printed; JSON has all."""


def write_diff(output: Output, found: Diff) -> None:
    """Print the state of the node, its differences and the last repairs."""
    write_state(output, found)
    if found.repairs:
        output.line("last repairs")
        write_repairs(output, found.repairs)
    else:
        output.line(Cell("no repairs since the daemon started", Style.FAINT))


def write_state(output: Output, found: Diff) -> None:
    """Print the state of the node and its differences."""
    _write_node(output, found.node)
    for about in found.families:
        _write_family(output, about)


def _write_family(output: Output, about: FamilyDiff) -> None:
    family = about.family.value
    text = ", ".join(size_text(kind, count) for kind, count in about.sizes.items() if count)
    if text:
        output.line(Cell(f"{family}  {text} in the kernel", Style.FAINT))
    for each in about.differences[:_DIFFERENCES]:
        _write_difference(output, family, each)
    if len(about.differences) > _DIFFERENCES:
        output.line(f"{family}  and {len(about.differences) - _DIFFERENCES:,} more: see -o json")
    if about.held:
        names = sorted({name for each in about.held for name in each.service_ports})
        output.line(f"{family}  held back by the daemon, see svcproxy show: {_names(names)}")


def _write_node(output: Output, node: NodeSummary) -> None:
    good = all(about.up_to_date and about.kernel_agrees is not False for about in node.families)
    for line in node.lines:
        output.line(Cell(line, Style.STRONG if good else Style.WARNING))


def _write_difference(output: Output, family: str, found: DifferenceInfo) -> None:
    names = _names(found.service_ports, found.service_port_count)
    output.line(
        f"{family}  {found.object}: ",
        Cell(found.difference, Style.BAD),
        f"  {names}" if names else "",
    )
    for label, text, style in (
        ("desired", found.desired, Style.GOOD),
        ("actual", found.actual, Style.BAD),
    ):
        for number, line in enumerate(text.split("\n") if text else ()):
            output.line(f"      {label if not number else '':<8}", Cell(line, style))


def _names(names: Sequence[str], count: int = 0) -> str:
    count = max(count, len(names))
    shown = ", ".join(names[:_NAMES])
    return f"{shown} and {count - _NAMES:,} more" if count > _NAMES else shown


def write_repairs(output: Output, repairs: Sequence[RepairInfo]) -> None:
    """Print repairs, a line each."""
    output.table([(_clock(each.at), each.family.value, each.text) for each in repairs], indent=2)


def _clock(at: float) -> str:
    """Return a time in the node's time zone, with the date unless it is today."""
    then = datetime.fromtimestamp(at).astimezone()
    today = datetime.fromtimestamp(time.time()).astimezone().date()
    return then.strftime("%H:%M:%S" if then.date() == today else "%Y-%m-%d %H:%M:%S")
