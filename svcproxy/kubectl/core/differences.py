"""``kubectl svcproxy diff``: which node is behind, and whose kernel differs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from svcproxy.explain.core.documents import Document, Part
from svcproxy.kubectl.core.answers import Answer, nodes_text

_COMPARED = ("Service", "EndpointSlice", "ServiceCIDR")
"""The kinds of which every node should have the same objects; of Nodes, each has its own."""
_LONG_SILENCE = 150.0
"""Seconds. The API server sends a bookmark about once a minute to each watch."""


class WatchSeen(msgspec.Struct, rename="camel"):
    """The part of ``WatchState`` that is compared."""

    kind: str = ""
    resource_version: str = ""
    synced: bool = True
    silent_seconds: float | None = None
    objects: int = 0
    digest: str = ""


class FamilySeen(msgspec.Struct, rename="camel"):
    """The part of ``FamilyState`` that is compared."""

    family: str = ""
    state: str = ""
    up_to_date: bool = True


class StatusSeen(msgspec.Struct, rename="camel"):
    """The part of ``NodeStatus`` that is compared."""

    mode: str = ""
    version: str = ""
    families: list[FamilySeen] = []
    watches: list[WatchSeen] = []


class DifferenceSeen(msgspec.Struct, rename="camel"):
    """The part of ``KernelDifference`` that is shown."""

    difference: str = ""
    object: str = ""


class FamilyDiffSeen(msgspec.Struct, rename="camel"):
    """The part of ``FamilyDiff`` that is shown."""

    family: str = ""
    differences: list[DifferenceSeen] = []


class KernelFamilySeen(msgspec.Struct, rename="camel"):
    """The part of ``FamilySummary`` that decides whether the kernel agrees."""

    family: str
    kernel_agrees: bool | None = None
    kernel_differences: int = 0
    kernel_error: str = ""


class KernelNodeSeen(msgspec.Struct, rename="camel"):
    """The part of ``NodeSummary`` that is shown."""

    families: list[KernelFamilySeen]


class DiffSeen(msgspec.Struct, rename="camel"):
    """The part of ``Diff`` that is shown."""

    node: KernelNodeSeen
    families: list[FamilyDiffSeen] = []


class NodeReport(Part, frozen=True):
    """A node in ``ClusterDiff``.

    Attributes:
        node: the name of the node.
        problems: what is wrong with it, a line each; empty if it agrees.
        version: the version of its daemon.
        mode: its proxy mode.
        status: the answer of ``svcproxy status`` on it.
        diff: the answer of ``svcproxy diff`` on it.
    """

    node: str
    problems: tuple[str, ...]
    version: str = ""
    mode: str = ""
    status: Any = None
    diff: Any = None


class ClusterDiff(Document, frozen=True, kw_only=True):
    """The answer of ``kubectl svcproxy diff``.

    Attributes:
        nodes: the nodes.
        notes: what is worth knowing, but no problem.
    """

    nodes: tuple[NodeReport, ...]
    notes: tuple[str, ...] = ()


def problems_of(
    statuses: Sequence[Answer[StatusSeen]], diffs: Sequence[Answer[DiffSeen]]
) -> dict[str, list[str]]:
    """Return what is wrong with each node, in lines; empty lists for nodes that agree.

    Args:
        statuses: the answers of ``svcproxy status``.
        diffs: the answers of ``svcproxy diff``, of the same nodes.
    """
    found: dict[str, list[str]] = {answer.node: [] for answer in statuses}
    for answer in statuses:
        if answer.document is None:
            found[answer.node].append(f"does not answer: {answer.problem}")
    for node, text in _behind(statuses):
        found[node].append(text)
    for answer in statuses:
        if answer.document is not None:
            found[answer.node] += _syncs(answer.document)
    for diff in diffs:
        if diff.document is not None:
            found[diff.node] += _kernel(diff.document)
        elif not found[diff.node]:
            found[diff.node].append(f"diff does not answer: {diff.problem}")
    return found


def suspects(statuses: Sequence[Answer[StatusSeen]]) -> frozenset[str]:
    """Return the nodes that seem to be behind; changes may just be on their way to them."""
    return frozenset(node for node, _ in _behind(statuses))


def _behind(statuses: Sequence[Answer[StatusSeen]]) -> Iterator[tuple[str, str]]:
    """Yield the nodes whose objects differ from those of the others, or that hear nothing."""
    groups: dict[tuple[str, str], dict[str, StatusSeen]] = {}
    for answer in statuses:
        if answer.document is not None:
            # Other modes keep other annotations, and other versions other fields.
            key = (answer.document.version, answer.document.mode)
            groups.setdefault(key, {})[answer.node] = answer.document
    everywhere = [watches for group in groups.values() for watches in group.values()]
    newest = {
        kind: max((_number(w) for s in everywhere if (w := _watch(s, kind))), default=0)
        for kind in _COMPARED
    }
    for kind in _COMPARED:
        for group in groups.values():
            watches = {n: w for n, status in group.items() if (w := _watch(status, kind))}
            yield from _behind_in(kind, watches, newest[kind])


def _behind_in(
    kind: str, watches: Mapping[str, WatchSeen], newest: int
) -> Iterator[tuple[str, str]]:
    reference = _reference(watches)
    for node, watch in watches.items():
        silence = watch.silent_seconds or 0.0
        if reference and watch.digest != reference.digest:
            others = _version(reference, newest)
            yield node, f"is behind: {_described(kind, watch)}, the others {others}{_silent(watch)}"
        elif _number(watch) < newest and silence > _LONG_SILENCE:
            yield (
                node,
                f"may be behind: {_described(kind, watch)}, the newest is {newest}{_silent(watch)}",
            )
        elif not watch.synced:
            yield node, f"has no complete list of {kind}s yet"


def _reference(watches: Mapping[str, WatchSeen]) -> WatchSeen | None:
    """Return the watch with the newest objects; without resourceVersions, the most frequent ones."""
    if not watches:
        return None
    counts = Counter(watch.digest for watch in watches.values())
    return max(watches.values(), key=lambda w: (_number(w), counts[w.digest], w.objects))


def _described(kind: str, watch: WatchSeen) -> str:
    version = f" at rv {watch.resource_version}" if watch.resource_version else ""
    return f"{watch.objects} {kind}s{version}"


def _version(reference: WatchSeen, newest: int) -> str:
    if not reference.resource_version:
        return f"have {reference.objects}" if reference.objects else "have none"
    return f"have {reference.objects} at {max(newest, _number(reference))}"


def _silent(watch: WatchSeen) -> str:
    silence = watch.silent_seconds
    return "" if silence is None else f", last word from the API server {silence:.0f} s ago"


def _number(watch: WatchSeen) -> int:
    """ResourceVersions may be compared as numbers since Kubernetes 1.35 (KEP-5504)."""
    text = watch.resource_version
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 25 else 0


def _watch(status: StatusSeen, kind: str) -> WatchSeen | None:
    return next((watch for watch in status.watches if watch.kind == kind), None)


def _syncs(status: StatusSeen) -> Iterator[str]:
    for family in status.families:
        if not family.up_to_date:
            yield f"{family.family}: {family.state}"


def _kernel(found: DiffSeen) -> Iterator[str]:
    details = {each.family: each.differences for each in found.families}
    for about in found.node.families:
        differences = details.get(about.family, [])
        if about.kernel_error:
            yield f"{about.family}: kernel not read: {about.kernel_error}"
        elif not differences and about.kernel_agrees is not True:
            yield f"{about.family}: kernel differs: {about.kernel_differences} differences"
        elif differences:
            counts = Counter(each.difference for each in differences)
            numbers = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
            more = ", …" if len(differences) > 1 else ""
            yield f"{about.family}: kernel differs: {numbers} ({differences[0].object}{more})"


def notes_of(statuses: Sequence[Answer[StatusSeen]]) -> list[str]:
    """Return what is worth knowing, but no problem: nodes of several versions or modes."""
    groups: dict[tuple[str, str], list[str]] = {}
    for answer in statuses:
        if answer.document is not None:
            key = (answer.document.version, answer.document.mode)
            groups.setdefault(key, []).append(answer.node)
    if len(groups) < 2:
        return []
    return [
        f"{nodes_text(nodes, len(statuses))}: svcproxy {version}, {mode} mode"
        for (version, mode), nodes in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
