"""What the kernel holds for a node, compared with what it is meant to hold."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from svcproxy.backends.base import Desired
from svcproxy.explain.core.documents import KernelDifference
from svcproxy.explain.core.node_summary import KernelComparison
from svcproxy.explain.core.service_detail import KernelObjects, ObjectsByPort
from svcproxy.explain.core.view import FamilyView, NodeView
from svcproxy.explain.mode_explainer import (
    Difference,
    KernelUnreadableError,
    ModeExplainer,
    mode_explainer,
)
from svcproxy.model.names import IPFamily, NamespacedName, ServicePortName
from svcproxy.model.serviceport import ServicePort


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
    try:
        kernel = explainer.read(about.settings, variant)
    except KernelUnreadableError as error:
        return FamilyKernel(error=str(error))
    return FamilyKernel(kernel, tuple(explainer.differences(desired_of(about), kernel)))


def desired_of(about: FamilyView) -> Desired:
    """Return the desired state of a family as the mode's planner takes it."""
    return Desired(about.state.ports, about.settings, about.state.service_cidrs)


def comparisons(kernel: Mapping[IPFamily, FamilyKernel]) -> Mapping[IPFamily, KernelComparison]:
    """Return kernel states as the documents describe them."""
    return {family: _comparison(found) for family, found in kernel.items()}


def _comparison(found: FamilyKernel) -> KernelComparison:
    by_port: dict[ServicePortName, list[KernelDifference]] = {}
    for each in found.differences:
        for name in each.service_ports:
            by_port.setdefault(name, []).append(document_of(each))
    return KernelComparison(found.error, len(found.differences), by_port)


def document_of(found: Difference) -> KernelDifference:
    """Return a difference as a part of a document."""
    return KernelDifference(
        difference=found.kind.value,
        object=found.object,
        desired=found.desired,
        actual=found.actual,
    )


def kernel_objects(
    view: NodeView, service: NamespacedName, kernel: Mapping[IPFamily, FamilyKernel] | None = None
) -> ObjectsByPort:
    """Return the objects that carry each port of a Service, in the syntax of the kernel's tools.

    Args:
        view: the node.
        service: the Service.
        kernel: the kernel state by family. Of a family that was not read, the objects are those
            that svcproxy would write.
    """
    explainer = mode_explainer(view.mode)
    if explainer is None:
        return {}
    found: dict[tuple[IPFamily, ServicePortName], KernelObjects] = {}
    for family, about in view.families.items():
        ports = [port for port in _ports(about, service) if port is not None]
        if not ports:
            continue
        state = (kernel or {}).get(family, FamilyKernel(error="not read"))
        if state.error:
            ruleset, origin = explainer.desired(desired_of(about)), "desired"
        else:
            ruleset, origin = explainer.ruleset(state.kernel), "kernel"
        for port in ports:
            lines = explainer.objects(ruleset, port, about.settings)
            found[family, port.name] = KernelObjects(lines, origin)
    return found


def _ports(about: FamilyView, name: NamespacedName) -> Iterator[ServicePort | None]:
    service = about.state.services.get(name)
    for spec in service.ports if service else ():
        yield about.state.ports.get(ServicePortName(*name, spec.name, spec.protocol))
