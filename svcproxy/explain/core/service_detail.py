"""Builds the description of one Service: each endpoint with the reason why it is used or not."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import msgspec

from svcproxy.explain.core.node_summary import node_summary
from svcproxy.explain.core.service_documents import (
    EndpointInfo,
    HealthCheckInfo,
    PortDetail,
    PortInfo,
    ServiceDetail,
)
from svcproxy.explain.core.service_list import (
    NOTHING_OBSERVED,
    Observed,
    ServiceReader,
    policy_text,
)
from svcproxy.explain.core.view import FamilyView, NodeView
from svcproxy.model.names import IPFamily, NamespacedName, ServicePortName
from svcproxy.state.reasons import EndpointUse, Exclusion, Reason, endpoint_uses

_SUGGESTIONS = 3


class KernelObjects(NamedTuple):
    """The objects that carry a Service port, in the syntax of the kernel's tools.

    ``origin`` is ``kernel`` or ``desired``.
    """

    lines: Sequence[str] = ()
    origin: str = "desired"


ObjectsByPort = Mapping[tuple[IPFamily, ServicePortName], KernelObjects]


class UnknownServiceError(Exception):
    """The node serves no such Service; ``near`` are similar names."""

    def __init__(self, name: str, near: Sequence[str]) -> None:
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        super().__init__(
            f"this node serves no Service {name}{hint} (headless, ExternalName and malformed ones,"
            " and those of another proxy, are not served)"
        )
        self.near = near


def find_service(view: NodeView, text: str) -> NamespacedName:
    """Return the Service that a text names.

    Args:
        view: the node.
        text: ``namespace/name``; or the name only, if it is unambiguous.

    Raises:
        UnknownServiceError: there is no such Service, or several have the name.
    """
    services = {name for about in view.families.values() for name in about.state.services}
    namespace, slash, name = text.partition("/")
    wanted = NamespacedName(namespace, name)
    if slash and wanted in services:
        return wanted
    same = sorted(each for each in services if each.name == (name if slash else namespace))
    if len(same) == 1 and not slash:
        return same[0]
    near = [str(each) for each in same[:_SUGGESTIONS]]
    near = near or get_close_matches(text, sorted(map(str, services)), 1)
    raise UnknownServiceError(text, near)


def service_detail(
    view: NodeView,
    name: NamespacedName,
    observed: Observed = NOTHING_OBSERVED,
    objects: ObjectsByPort | None = None,
    family: IPFamily | None = None,
) -> ServiceDetail:
    """Describe one Service.

    Args:
        view: the node.
        name: the Service.
        observed: the kernel state and connections, as far as known.
        objects: the objects that carry each port, if they are to be shown.
        family: only this family; ``None`` for all.

    Raises:
        UnknownServiceError: the node does not serve it, in this family.
    """
    reader = ServiceReader(view, observed, name, family)
    if not reader.families:
        raise UnknownServiceError(f"{name} over {family}" if family else str(name), ())
    _, service = reader.families[0]
    infos = list(reader.ports())
    conflicts = reader.conflicts()
    return ServiceDetail(
        node=node_summary(view, observed.kernel),
        namespace=name.namespace,
        name=name.name,
        internal_policy=policy_text(local=service.internal_policy_local),
        external_policy=policy_text(local=service.external_policy_local),
        affinity_seconds=service.affinity_seconds,
        source_ranges=service.source_ranges,
        ignored_external_ips=() if view.config.allows_external_ips else service.external_ips,
        annotations=dict(service.annotations),
        health_checks=tuple(_health_checks(view, reader)),
        ports=tuple(
            _PortReader(view, observed, about, key).detail(info, objects or {})
            for about, key, info in infos
        ),
        conflicts=conflicts,
        notes=observed.notes,
        problems=reader.problems([info for _, _, info in infos], conflicts),
    )


def _health_checks(view: NodeView, reader: ServiceReader) -> Iterator[HealthCheckInfo]:
    """Yield the answer of the health-check node port in each family, from all ports together."""
    for family, service in reader.families:
        if not service.health_check_node_port:
            continue
        ports = view.families[family].state.ports
        ready: set[str] = set()
        for spec in service.ports:
            port = ports.get(ServicePortName(*service.name, spec.name, spec.protocol))
            ready.update(port.local_ready if port else ())
        yield HealthCheckInfo(
            family=family,
            port=service.health_check_node_port,
            local_endpoints=len(ready),
            status=200 if ready else 503,
        )


class _PortReader:
    """Describes one Service port in one family."""

    def __init__(
        self, view: NodeView, observed: Observed, about: FamilyView, name: ServicePortName
    ) -> None:
        status = view.status
        self._now = status.now if status else 0.0
        self._since = status.not_ready_since.get(str(name.service), {}) if status else {}
        self._kernel = (observed.kernel or {}).get(about.family)
        self._about = about
        self._name = name

    def detail(self, info: PortInfo, objects: ObjectsByPort) -> PortDetail:
        """Add endpoints and kernel objects to a port of a list."""
        found = objects.get((self._about.family, self._name), KernelObjects())
        return PortDetail(
            **msgspec.structs.asdict(info),
            endpoints=tuple(map(self._endpoint, endpoint_uses(self._about.state, self._name))),
            differences=tuple(self._kernel.by_port.get(self._name, ()) if self._kernel else ()),
            objects=tuple(found.lines),
            objects_from=found.origin,
        )

    def _endpoint(self, use: EndpointUse) -> EndpointInfo:
        since = None if use.entry.ready else self._since.get(use.address)
        seconds = None if since is None else max(0.0, self._now - since)
        return EndpointInfo(
            address=use.address,
            port=use.port,
            slice=str(use.slice),
            node=use.node,
            on_this_node=use.is_local,
            ready=use.entry.ready,
            serving=use.entry.serving,
            terminating=use.entry.terminating,
            zone_hints=use.entry.zone_hints,
            node_hints=use.entry.node_hints,
            cluster=use.in_cluster_list,
            local=use.in_local_list,
            reason=use.reason.value if use.reason else "",
            text=_text(use.exclusion, seconds),
            not_cluster=_text(use.not_cluster, seconds),
            not_local=_text(use.not_local, seconds),
            not_ready_seconds=seconds,
        )


def _text(excluded: Exclusion | None, seconds: float | None) -> str:
    """Return a reason with the time for which the endpoint has not been ready."""
    if excluded is None:
        return ""
    if excluded.reason is Reason.NOT_READY and seconds is not None:
        return f"{excluded} for {duration(seconds)}"
    return str(excluded)


def duration(seconds: float) -> str:
    """Return a duration in its largest two units: ``42 s``, ``5 min 3 s``, ``2 d 4 h``."""
    parts, rest = [], int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
