"""What is said about a node first: its mode, whether it is up to date, and whether the kernel agrees."""

from collections.abc import Mapping, Sequence

import msgspec

from svcproxy.admin.core.protocol import FamilyStatus, Status
from svcproxy.explain.core.documents import KernelDifference, Part
from svcproxy.explain.core.view import NodeView
from svcproxy.model.names import REQUIRED_KINDS, IPFamily, Kind, ServicePortName

_SILENT_SECONDS = 300.0
"""The API server sends a bookmark about once a minute; after this time, its silence is mentioned."""


class KernelComparison(msgspec.Struct, frozen=True):
    """The kernel state of a family, compared with the desired one.

    Attributes:
        error: why the kernel could not be read; empty if it was read.
        total: the number of differences.
        by_port: the differences of each Service port that has any.
    """

    error: str = ""
    total: int = 0
    by_port: Mapping[ServicePortName, Sequence[KernelDifference]] = {}


class FamilySummary(Part, frozen=True, kw_only=True):
    """One IP family of a node.

    Attributes:
        family: ``IPv4`` or ``IPv6``.
        up_to_date: whether all changes that the daemon has received are programmed.
        state: the same in words, with what is pending.
        pending: the number of objects that wait for a sync.
        failing: the reason of the last sync if it failed.
        held: the number of Service ports that are held back.
        kernel_agrees: whether the kernel holds what it is meant to; absent if it was not read.
        kernel_differences: the number of differences.
        kernel_error: why the kernel could not be read.
    """

    family: IPFamily
    up_to_date: bool
    state: str
    pending: int = 0
    failing: str = ""
    held: int = 0
    kernel_agrees: bool | None = None
    kernel_differences: int = 0
    kernel_error: str = ""

    @property
    def kernel_text(self) -> str:
        """Whether the kernel agrees, in words."""
        if self.kernel_error:
            return f"kernel not read: {self.kernel_error}"
        if self.kernel_agrees is None:
            return "kernel not checked"
        if self.kernel_agrees:
            return "kernel agrees"
        plural = "" if self.kernel_differences == 1 else "s"
        return f"kernel differs: {self.kernel_differences} difference{plural}"


class NodeSummary(Part, frozen=True, kw_only=True):
    """The state of a node.

    Attributes:
        node: its name.
        mode: the proxy mode.
        families: its IP families.
        daemon: the version of the daemon; absent for manifests.
        resource_version: the newest one of Services and EndpointSlices; absent for manifests.
    """

    node: str
    mode: str
    families: tuple[FamilySummary, ...]
    daemon: str = ""
    resource_version: str = ""

    @property
    def lines(self) -> list[str]:
        """One line, or one for each family if they differ."""
        texts: dict[str, list[str]] = {}
        for about in self.families:
            version = f" (rv {self.resource_version})" if self.resource_version else ""
            text = f"{about.state}{version}, {about.kernel_text}"
            texts.setdefault(text, []).append(about.family.value)
        return [
            f"{self.node}  {self.mode}  {', '.join(names)}    {text}"
            for text, names in texts.items()
        ]


def node_summary(
    view: NodeView, kernel: Mapping[IPFamily, KernelComparison] | None = None
) -> NodeSummary:
    """Summarise a node.

    Args:
        view: the node.
        kernel: its kernel state by family; ``None`` if it was not read.
    """
    status = view.status
    return NodeSummary(
        node=view.node,
        mode=view.mode,
        families=tuple(_family(f, status, (kernel or {}).get(f)) for f in view.families),
        daemon=status.version if status else "",
        resource_version=_resource_version(status) if status else "",
    )


def _family(
    family: IPFamily, status: Status | None, kernel: KernelComparison | None
) -> FamilySummary:
    about = status.families.get(family, FamilyStatus()) if status else FamilyStatus()
    state = _pending(status, about) if status else ""
    agrees = None if kernel is None or kernel.error else not kernel.total
    return FamilySummary(
        family=family,
        up_to_date=not state,
        state=state or ("up to date" if status else "manifests"),
        pending=about.pending,
        failing=about.failing,
        held=len(about.held),
        kernel_agrees=agrees,
        kernel_differences=kernel.total if kernel else 0,
        kernel_error=kernel.error if kernel else "",
    )


def _pending(status: Status, about: FamilyStatus) -> str:
    """Return what is not programmed yet, in words; empty if everything is."""
    if about.failing:
        return f"the last sync failed: {about.failing}"
    waiting = [k.value for k in Kind if k in REQUIRED_KINDS and not _synced(status, k)]
    if waiting and not about.synced:
        return f"waits for the first list of {' and '.join(waiting)}"
    if not about.synced:
        return "not synced yet"
    if about.pending:
        return f"{about.pending} object{'' if about.pending == 1 else 's'} pending"
    silent = [w.heard for w in status.watches.values() if w.heard]
    if silent and status.now - max(silent) > _SILENT_SECONDS:
        return f"no word from the API server for {status.now - max(silent):.0f} s"
    return ""


def _synced(status: Status, kind: Kind) -> bool:
    return kind in status.watches and status.watches[kind].synced


def _resource_version(status: Status) -> str:
    """Return the newest resourceVersion of Services and EndpointSlices.

    They are compared as numbers, as the API has allowed since Kubernetes 1.35 (KEP-5504).
    """
    kinds = (Kind.SERVICE, Kind.ENDPOINT_SLICE)
    found = [status.watches[kind].resource_version for kind in kinds if kind in status.watches]
    return max(found, key=lambda version: (len(version), version), default="")
