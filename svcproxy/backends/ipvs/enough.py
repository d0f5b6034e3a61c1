"""Sets that have room for all their entries: how large they are made, and how they are replaced.

A set's largest number of entries is fixed when it is made, and rules that refer to a set keep it
from being destroyed. But two sets can be exchanged at once, whatever refers to them.
"""

from collections.abc import Iterable, Iterator, Sequence

from svcproxy.backends.ipvs.naming import SUBSTITUTES
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.kernel_objects import SetEntry, SetKind
from svcproxy.netlink.core.operations import (
    AddEntries,
    CreateSet,
    DestroySet,
    SetOperation,
    SwapSets,
)

_UNLIMITED = 1 << 32


def room(kind: SetKind) -> int:
    """How many entries a set is given; bitmaps have place for all that there can be.

    The kernel counts by regions of a hash, and may call it full a little early.
    """
    return kind.maximum * 7 // 8 if kind.maximum else _UNLIMITED


def fits(present: SetKind, wanted: SetKind, entries: int) -> bool:
    """Whether a set can hold so many entries of the wanted kind."""
    return present.type == wanted.type and room(present) >= entries


def roomy(kind: SetKind, entries: int) -> SetKind:
    """The kind with room for the entries: as kube-proxy makes it, or for twice as many and more.

    A set that grows is then not replaced again and again.
    """
    if entries <= room(kind):
        return kind
    return kind._replace(maximum=1 << (2 * entries - 1).bit_length())


def substitution(
    name: str, kind: SetKind, entries: Sequence[SetEntry], family: IPFamily
) -> Iterator[SetOperation]:
    """Put a new set with these entries in a set's place; rules that name it see no gap.

    The kernel refuses it for a set of another type or family that rules refer to.
    """
    substitute = SUBSTITUTES[family]
    yield DestroySet(substitute)  # of a process that was killed meanwhile
    yield CreateSet(substitute, kind)
    if entries:
        yield AddEntries(substitute, kind, tuple(entries))
    yield SwapSets(substitute, name)
    yield DestroySet(substitute)


def substitutes(operations: Iterable[SetOperation]) -> dict[str, list[str]]:
    """The sets whose place others take, by the name that these are filled under."""
    found: dict[str, list[str]] = {}
    for operation in operations:
        if isinstance(operation, SwapSets):
            found.setdefault(operation.name, []).append(operation.other)
    return found
