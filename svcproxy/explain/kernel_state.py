"""What the kernel holds for a node, compared with what it is meant to hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from svcproxy.backends.base import Desired
from svcproxy.explain.core.view import FamilyView, NodeView
from svcproxy.explain.mode_explainer import (
    Difference,
    KernelUnreadableError,
    ModeExplainer,
    mode_explainer,
)
from svcproxy.model.names import IPFamily, ServicePortName


class FamilyKernel(msgspec.Struct, frozen=True):
    """The kernel state of one family.

    Attributes:
        kernel: what ``ModeExplainer.read`` returned; ``None`` if it could not be read.
        differences: how it differs from the desired state.
        error: why it could not be read, with the remedy; empty if it was read.
    """

    kernel: Any = None
    differences: tuple[Difference, ...] = ()
    error: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether the kernel holds what it is meant to hold; ``None`` if that is unknown."""
        return None if self.error else not self.differences


def read_kernel(view: NodeView) -> Mapping[IPFamily, FamilyKernel]:
    """Read the kernel state of each family of a node, and compare it with the desired one.

    Nothing in it changes the kernel. It takes as long as a resync, without the writes.

    Args:
        view: the node on which this process runs; of a daemon, not of manifests.
    """
    explainer = mode_explainer(view.mode)
    if explainer is None:
        unknown = FamilyKernel(error=f"the kernel state of mode {view.mode!r} is not known")
        return dict.fromkeys(view.families, unknown)
    variant = view.status.iptables_variant if view.status else ""
    return {family: _read(explainer, about, variant) for family, about in view.families.items()}


def _read(explainer: ModeExplainer[Any], about: FamilyView, variant: str) -> FamilyKernel:
    if not hasattr(explainer, "read"):
        return FamilyKernel(error="svcproxy cannot read the kernel state of this mode")
    try:
        kernel = explainer.read(about.settings, variant)
    except KernelUnreadableError as error:
        return FamilyKernel(error=str(error))
    return FamilyKernel(kernel, tuple(explainer.differences(desired_of(about), kernel)))


def desired_of(about: FamilyView) -> Desired:
    """Return the desired state of a family as the mode's planner takes it."""
    return Desired(about.state.ports, about.settings, about.state.service_cidrs)


def by_service_port(
    differences: Sequence[Difference],
) -> Mapping[ServicePortName, tuple[Difference, ...]]:
    """Group differences by Service port; those that concern no single one are left out."""
    found: dict[ServicePortName, list[Difference]] = {}
    for difference in differences:
        for name in difference.service_ports:
            found.setdefault(name, []).append(difference)
    return {name: tuple(each) for name, each in found.items()}
