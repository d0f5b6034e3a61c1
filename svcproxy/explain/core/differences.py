"""Differences between the desired state and the kernel's, as values. Pure."""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from itertools import islice
from typing import TypeVar

import msgspec

from svcproxy.model.names import ServicePortName

LISTED = 20
"""How many differences of the same kind in the same place are listed one by one; more are one
``Difference``, so that an empty map of 50,000 elements is a line."""
_EXAMPLES = 3

Item = TypeVar("Item")


class DifferenceKind(StrEnum):
    """How a kernel object differs from the desired state."""

    MISSING = "missing"
    UNEXPECTED = "unexpected"
    DIFFERENT = "different"


class Difference(msgspec.Struct, frozen=True):
    """A kernel object that differs from the desired state.

    Attributes:
        kind: how it differs.
        object: what it is, in words with its name: ``chain KUBE-SVC-… of table nat``.
        service_ports: the Service ports it belongs to, sorted; empty for objects that all share.
        desired: what it should be, in the kernel tool's syntax; empty if it should not exist.
        actual: what it is; empty if it is missing.
    """

    kind: DifferenceKind
    object: str
    service_ports: tuple[ServicePortName, ...] = ()
    desired: str = ""
    actual: str = ""

    def __str__(self) -> str:
        return f"{self.object}: {self.kind.value}"

    def with_safe_name(self) -> "Difference":
        """Return the same difference with the name of its object in one line."""
        name = one_line(self.object)
        return self if name == self.object else msgspec.structs.replace(self, object=name)


def grouped(
    items: Sequence[Item],
    plural: str,
    describe: Callable[[Item], Difference],
    owners: Callable[[Item], Iterable[ServicePortName]],
) -> list[Difference]:
    """Describe objects of one kind that differ in the same way; many become one difference.

    Args:
        items: the objects.
        plural: what they are together, for example ``elements of map all3``.
        describe: describes one of them.
        owners: the Service ports of one of them, which is cheaper than its description.
    """
    if len(items) <= LISTED:
        return [describe(item) for item in items]
    examples = [describe(item) for item in islice(items, _EXAMPLES)]
    names = {name for item in items for name in owners(item)}
    return [
        Difference(
            examples[0].kind,
            f"{len(items):,} {plural}",
            tuple(sorted(names)),
            _joined(found.desired for found in examples),
            _joined(found.actual for found in examples),
        )
    ]


def one_line(text: str) -> str:
    """Return a text without line breaks and tabs, which other programs' names and comments may have.

    All other control characters are escaped where a command prints them.
    """
    return text.translate(_BREAKS)


_BREAKS = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def limited(lines: Iterable[str]) -> str:
    """Return lines as a text; of more than ``LISTED``, the first ones and an ellipsis."""
    found = [one_line(line) for line in islice(lines, LISTED + 1)]
    return "\n".join([*found[:LISTED], "…"] if len(found) > LISTED else found)


def _joined(texts: Iterable[str]) -> str:
    """Return examples as lines that end with an ellipsis; empty without any."""
    found = [text for text in texts if text]
    return "\n".join([*found, "…"]) if found else ""


def differing_lines(desired: Sequence[str], actual: Sequence[str]) -> tuple[str, str]:
    """Return the lines of each side from the first to the last that differs."""
    start = 0
    shortest = min(len(desired), len(actual))
    while start < shortest and desired[start] == actual[start]:
        start += 1
    end = 0
    while end < shortest - start and desired[-1 - end] == actual[-1 - end]:
        end += 1
    return (
        limited(desired[start : len(desired) - end]),
        limited(actual[start : len(actual) - end]),
    )
