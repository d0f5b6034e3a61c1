"""Builds the list of Services: what each means on this node, and what is wrong with it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from svcproxy.explain.core.documents import ConnectionCounts, FrontendKey
from svcproxy.explain.core.node_summary import KernelComparison, node_summary
from svcproxy.explain.core.service_documents import (
    ConflictInfo,
    FrontendInfo,
    PortInfo,
    ServiceList,
    ServiceSummary,
)
from svcproxy.explain.core.view import FamilyView, NodeView
from svcproxy.model.names import IPFamily, NamespacedName, ServicePortName
from svcproxy.model.objects import Service
from svcproxy.model.serviceport import Frontend, FrontendKind, ServicePort
from svcproxy.state.slices import PortKey
from svcproxy.state.verdicts import KnownEndpoints, conflict_text, known_endpoints, refusal

FRONTEND_TYPES = {
    FrontendKind.CLUSTER_IP: "clusterIP",
    FrontendKind.EXTERNAL_IP: "externalIP",
    FrontendKind.LOAD_BALANCER: "loadBalancerIP",
    FrontendKind.NODE_PORT: "nodePort",
}
"""The kinds of frontends in documents."""


class Observed(NamedTuple):
    """What was observed on the node besides the desired state.

    Attributes:
        kernel: the kernel state by family; ``None`` if it was not read.
        connections: the connections of frontends; ``None`` if they were not counted.
        notes: what could not be found out, in words.
    """

    kernel: Mapping[IPFamily, KernelComparison] | None = None
    connections: Mapping[FrontendKey, ConnectionCounts] | None = None
    notes: tuple[str, ...] = ()


class Selection(msgspec.Struct, frozen=True):
    """Which Services to list.

    Attributes:
        namespace: only those of this namespace; empty for all.
        problems: only those with problems.
        family: only this family; ``None`` for all.
    """

    namespace: str = ""
    problems: bool = False
    family: IPFamily | None = None


NOTHING_OBSERVED = Observed()
ALL_SERVICES = Selection()


def service_list(
    view: NodeView, observed: Observed = NOTHING_OBSERVED, selection: Selection = ALL_SERVICES
) -> ServiceList:
    """List the Services of a node.

    Args:
        view: the node.
        observed: its kernel state and connections, as far as known.
        selection: which Services to list.
    """
    names = sorted({name for about in view.families.values() for name in about.state.services})
    found = []
    for name in names:
        if selection.namespace not in {"", name.namespace}:
            continue
        service = ServiceReader(view, observed, name, selection.family).summary()
        if service.ports and (service.problems or not selection.problems):
            found.append(service)
    return ServiceList(
        node=node_summary(view, observed.kernel),
        services=tuple(found),
        selected_of=len(names),
        notes=observed.notes,
    )


class ServiceReader:
    """Reads one Service of a view, in one or all families.

    Args:
        view: the node.
        observed: its kernel state and connections, as far as known.
        name: the Service.
        family: the family; ``None`` for all.
    """

    def __init__(
        self,
        view: NodeView,
        observed: Observed,
        name: NamespacedName,
        family: IPFamily | None = None,
    ) -> None:
        self._view = view
        self._observed = observed
        self.name = name
        self.families = [
            (each, about.state.services[name])
            for each, about in view.families.items()
            if family in {None, each} and name in about.state.services
        ]

    def summary(self) -> ServiceSummary:
        """Return the Service as an item of a list."""
        ports = tuple(info for _, _, info in self.ports())
        conflicts = self.conflicts()
        return ServiceSummary(
            namespace=self.name.namespace,
            name=self.name.name,
            ports=ports,
            conflicts=conflicts,
            problems=self.problems(ports, conflicts),
        )

    def ports(self) -> Iterator[tuple[FamilyView, ServicePortName, PortInfo]]:
        """Yield the ports of the Service, each once for each family."""
        for family, service in self.families:
            about = self._view.families[family]
            known = known_endpoints(about.state, service)
            for spec in service.ports:
                key = ServicePortName(*self.name, spec.name, spec.protocol)
                yield about, key, self._port(about, key, known)

    def _port(
        self, about: FamilyView, name: ServicePortName, known: Mapping[PortKey, KnownEndpoints]
    ) -> PortInfo:
        endpoints = known[name.port, name.protocol]
        port = about.state.ports.get(name)  # none if it could not be computed
        return PortInfo(
            name=name.port,
            protocol=name.protocol,
            family=about.family,
            frontends=self._frontends(about, port, endpoints) if port else (),
            kernel_differences=self._differences(about.family, name),
            held=self._held(about.family, name),
        )

    def _frontends(
        self, about: FamilyView, port: ServicePort, known: KnownEndpoints
    ) -> tuple[FrontendInfo, ...]:
        return tuple(self._frontend(about, port, each, known) for each in port.frontends)

    def _frontend(
        self, about: FamilyView, port: ServicePort, frontend: Frontend, known: KnownEndpoints
    ) -> FrontendInfo:
        protocol = port.name.protocol
        used = port.local_endpoints if frontend.local else port.cluster_endpoints
        is_node_port = frontend.kind is FrontendKind.NODE_PORT
        key = (about.family, frontend.address, frontend.port, protocol)
        return FrontendInfo(
            address=frontend.address,
            port=frontend.port,
            protocol=protocol,
            type=FRONTEND_TYPES[frontend.kind],
            policy=policy_text(local=frontend.local),
            endpoints_used=len(used),
            endpoints_known=len(known.candidates),
            verdict=frontend.verdict.value,
            also_load_balancer=frontend.also_load_balancer,
            node_addresses=about.settings.node_port_ranges if is_node_port else (),
            reason=refusal(frontend, known),
            connections=(self._observed.connections or {}).get(key),
        )

    def _differences(self, family: IPFamily, name: ServicePortName) -> int | None:
        kernel = (self._observed.kernel or {}).get(family)
        return None if kernel is None or kernel.error else len(kernel.by_port.get(name, ()))

    def _held(self, family: IPFamily, name: ServicePortName) -> str:
        status = self._view.status
        about = status.families.get(family) if status else None
        return about.held.get(str(name), "") if about else ""

    def conflicts(self) -> tuple[ConflictInfo, ...]:
        """Return the addresses that the Service claims and another one serves."""
        return tuple(
            ConflictInfo(
                address=conflict.address.address,
                port=conflict.address.port,
                protocol=conflict.address.protocol,
                family=family,
                served_by=str(conflict.winner),
                text=conflict_text(self._view.families[family].state, conflict),
            )
            for family, _ in self.families
            for conflict in self._view.families[family].state.conflicts_of(self.name)
        )

    def problems(
        self, ports: Sequence[PortInfo], conflicts: Sequence[ConflictInfo]
    ) -> tuple[str, ...]:
        """Return everything that is wrong with the Service, each text once."""
        found: dict[str, None] = {}
        for port in ports:
            found.update((f.reason, None) for f in port.frontends if f.reason)
            if port.held:
                found[f"held back: {port.held}"] = None
            if port.kernel_differences:
                found[f"the kernel differs ({port.kernel_differences})"] = None
        found.update((conflict.text, None) for conflict in conflicts)
        for family, service in self.families:
            found.update((text, None) for text in self._defects(family, service))
        return tuple(found)

    def _defects(self, family: IPFamily, service: Service) -> Iterator[str]:
        changes = self._view.families[family].changes
        if service.name in changes.truncated:
            yield "has more endpoints than the limit allows"
        if service.name in changes.defects:
            yield f"cannot be computed: {changes.defects[service.name]!r}"


def policy_text(*, local: bool) -> str:
    """Return a traffic policy in the API's spelling."""
    return "Local" if local else "Cluster"
