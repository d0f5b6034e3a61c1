"""From wire types to the model: everything is checked, defaulted and canonical afterwards.

What is skipped (``None``) and what is defaulted follows kube-proxy: ``pkg/proxy/util/utils.go``
(``ShouldSkipService``), ``serviceport.go``, ``endpointslicecache.go`` and the selectors of
``cmd/kube-proxy/app/server.go``, repeated here so that manifests behave as the API does.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from sys import intern

from svcproxy.kube import wire
from svcproxy.kube.addresses import canonical_cidr, canonical_ip, is_ipv6
from svcproxy.kube.wire import ParseError
from svcproxy.model.names import IPFamily, NamespacedName, Protocol
from svcproxy.model.objects import (
    ApiObject,
    EndpointSlice,
    Node,
    Service,
    ServiceCIDR,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)

__all__ = [
    "ParseError",
    "parse_endpoint_slice",
    "parse_node",
    "parse_object",
    "parse_service",
    "parse_service_cidr",
]

SERVICE_PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
ZONE_LABEL = "topology.kubernetes.io/zone"
TRIGGER_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"
DEFAULT_AFFINITY_SECONDS = 10800
MAX_AFFINITY_SECONDS = 86400

_PROTOCOLS = {protocol.value: protocol for protocol in Protocol}
_FAMILIES = {family.value: family for family in IPFamily}
_ANNOTATION_MARKS = ("svcproxy", "kube-router.io/")


def parse_object(obj: wire.WireObject) -> ApiObject | None:
    """Parse an object of any kind.

    Returns:
        The parsed object, or ``None`` for one that is not to be proxied.

    Raises:
        ParseError: the object is malformed.
    """
    if isinstance(obj, wire.EndpointSlice):
        return parse_endpoint_slice(obj)
    if isinstance(obj, wire.Service):
        return parse_service(obj)
    if isinstance(obj, wire.ServiceCIDR):
        return parse_service_cidr(obj)
    return parse_node(obj)


def parse_service(obj: wire.Service) -> Service | None:
    """Parse a Service.

    Returns:
        ``None`` for an ExternalName or headless Service, and for one that its
        ``service.kubernetes.io/service-proxy-name`` label gives to another proxy.

    Raises:
        ParseError: the Service is malformed.
    """
    spec = obj.spec or wire.ServiceSpec()
    addresses = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    first = spec.cluster_ip if spec.cluster_ip is not None else next(iter(addresses), "")
    if spec.type == "ExternalName" or first in {"", "None"}:
        return None
    if SERVICE_PROXY_NAME_LABEL in (obj.metadata.labels or {}):
        return None
    external_ips = _addresses(spec.external_ips, "spec.externalIPs")
    external_local = spec.external_traffic_policy == "Local" and (
        spec.type in {"LoadBalancer", "NodePort"} or bool(external_ips)
    )
    checked = external_local and spec.type == "LoadBalancer"
    return Service(
        name=_namespaced(obj.metadata),
        ports=_service_ports(spec),
        cluster_ips=_addresses(
            addresses, "spec.clusterIPs" if spec.cluster_ips else "spec.clusterIP"
        ),
        external_ips=external_ips,
        load_balancer_ips=_load_balancer_ips(obj.status),
        source_ranges=_cidrs(spec.load_balancer_source_ranges, "spec.loadBalancerSourceRanges"),
        internal_policy_local=spec.internal_traffic_policy == "Local",
        external_policy_local=external_local,
        affinity_seconds=_affinity(spec),
        health_check_node_port=_health_check_port(spec) if checked else 0,
        created=_epoch(obj.metadata.creation_timestamp),
        annotations=_annotations(obj.metadata),
    )


def parse_endpoint_slice(obj: wire.EndpointSlice) -> EndpointSlice | None:
    """Parse an EndpointSlice.

    Ports that are absent or 0 and endpoints without address are left out, not refused; only the
    first address of an endpoint counts (``endpointslicecache.go``).

    Returns:
        ``None`` for one that belongs to no Service, to a headless one, or holds host names.

    Raises:
        ParseError: the slice is malformed.
    """
    labels = obj.metadata.labels or {}
    service = labels.get(SERVICE_NAME_LABEL)
    if not service or HEADLESS_LABEL in labels or obj.address_type == "FQDN":
        return None
    family = _FAMILIES.get(obj.address_type or "")
    if family is None:
        raise ParseError("addressType", f"{obj.address_type!r} is not IPv4, IPv6 or FQDN")
    name = _namespaced(obj.metadata)
    return EndpointSlice(
        name=name,
        service=NamespacedName(name.namespace, intern(service)),
        family=family,
        ports=_slice_ports(obj.ports or []),
        endpoints=_endpoints(obj.endpoints or [], family),
        triggered=_timestamp((obj.metadata.annotations or {}).get(TRIGGER_ANNOTATION)),
    )


def parse_node(obj: wire.Node) -> Node:
    """Parse a Node.

    Raises:
        ParseError: the Node is malformed.
    """
    if not obj.metadata.name:
        raise ParseError("metadata.name", "is missing")
    spec = obj.spec or wire.NodeSpec()
    cidrs = _cidrs(spec.pod_cidrs, "spec.podCIDRs")
    return Node(
        name=intern(obj.metadata.name),
        zone=intern((obj.metadata.labels or {}).get(ZONE_LABEL, "")),
        pod_cidrs=cidrs or _cidrs([spec.pod_cidr] if spec.pod_cidr else None, "spec.podCIDR"),
        addresses=_node_addresses(obj.status),
        deleting=obj.metadata.deletion_timestamp is not None,
        taints=tuple(taint.key for taint in spec.taints or []),
    )


def parse_service_cidr(obj: wire.ServiceCIDR) -> ServiceCIDR:
    """Parse a ServiceCIDR. One that is being deleted still counts, as for kube-proxy.

    Raises:
        ParseError: the ServiceCIDR is malformed.
    """
    if not obj.metadata.name:
        raise ParseError("metadata.name", "is missing")
    cidrs = _cidrs(obj.spec.cidrs if obj.spec else None, "spec.cidrs")
    return ServiceCIDR(NamespacedName("", obj.metadata.name), cidrs)


def _namespaced(metadata: wire.ObjectMeta) -> NamespacedName:
    if not metadata.name:
        raise ParseError("metadata.name", "is missing")
    if not metadata.namespace:
        raise ParseError("metadata.namespace", "is missing")
    return NamespacedName(intern(metadata.namespace), metadata.name)


def _service_ports(spec: wire.ServiceSpec) -> tuple[ServicePortSpec, ...]:
    has_node_ports = spec.type in {"NodePort", "LoadBalancer"}
    ports = []
    for index, port in enumerate(spec.ports or []):
        field = f"spec.ports[{index}]"
        if not port.port:
            raise ParseError(f"{field}.port", "is missing" if port.port is None else "0 is no port")
        ports.append(
            ServicePortSpec(
                name=intern(port.name or ""),
                protocol=_protocol(port.protocol, field),
                port=_port(port.port, f"{field}.port"),
                node_port=_port(port.node_port or 0, f"{field}.nodePort") if has_node_ports else 0,
            )
        )
    return tuple(ports)


def _slice_ports(ports: Iterable[wire.EndpointPort]) -> tuple[SlicePort, ...]:
    return tuple(
        SlicePort(
            name=intern(port.name or ""),
            protocol=_protocol(port.protocol, f"ports[{index}]"),
            port=_port(port.port, f"ports[{index}].port"),
        )
        for index, port in enumerate(ports)
        if port.port
    )


def _endpoints(endpoints: list[wire.Endpoint], family: IPFamily) -> tuple[SliceEndpoint, ...]:
    """Parse a slice's endpoints: the hot path, 100,000 of them in a big cluster's first list."""
    want_v6 = family is IPFamily.IPV6
    parsed = []
    for index, endpoint in enumerate(endpoints):
        if not endpoint.addresses:
            continue
        try:
            address = canonical_ip(endpoint.addresses[0])
        except ValueError as error:
            raise ParseError(f"endpoints[{index}].addresses[0]", str(error)) from error
        if is_ipv6(address) is not want_v6:
            raise ParseError(f"endpoints[{index}].addresses[0]", f"{address!r} is not {family}")
        conditions = endpoint.conditions
        hints = endpoint.hints
        parsed.append(
            SliceEndpoint(
                address,
                conditions is None or conditions.ready is not False,
                conditions is None or conditions.serving is not False,
                conditions is not None and conditions.terminating is True,
                intern(endpoint.node_name) if endpoint.node_name else "",
                _hints(hints.for_zones) if hints and hints.for_zones else (),
                _hints(hints.for_nodes) if hints and hints.for_nodes else (),
            )
        )
    return tuple(parsed)


def _hints(hints: list[wire.Hint]) -> tuple[str, ...]:
    if len(hints) == 1:
        return _single_hint(hints[0].name)
    return tuple(intern(hint.name) for hint in hints)


@lru_cache(maxsize=1024)
def _single_hint(name: str) -> tuple[str, ...]:
    """Share the tuple of the usual case: one zone, the same for thousands of endpoints."""
    return (name,)


def _protocol(text: str | None, field: str) -> Protocol:
    if not text:
        return Protocol.TCP
    protocol = _PROTOCOLS.get(text)
    if protocol is None:
        raise ParseError(f"{field}.protocol", f"{text!r} is not TCP, UDP or SCTP")
    return protocol


def _port(number: int | None, field: str) -> int:
    if number is None:
        return 0
    if not 0 <= number <= 65535:
        raise ParseError(field, f"{number} is not between 1 and 65535")
    return number


def _affinity(spec: wire.ServiceSpec) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None:
        return DEFAULT_AFFINITY_SECONDS
    if not 1 <= seconds <= MAX_AFFINITY_SECONDS:
        raise ParseError(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            f"{seconds} is not between 1 and {MAX_AFFINITY_SECONDS}",
        )
    return seconds


def _health_check_port(spec: wire.ServiceSpec) -> int:
    return _port(spec.health_check_node_port, "spec.healthCheckNodePort")


def _load_balancer_ips(status: wire.ServiceStatus | None) -> tuple[str, ...]:
    """Take the IPs of VIP-style load balancers; proxying ones and host names are not ours."""
    balancer = status.load_balancer if status else None
    ips = []
    for index, ingress in enumerate((balancer.ingress if balancer else None) or []):
        if not ingress.ip or ingress.ip_mode not in {None, "VIP"}:
            continue
        field = f"status.loadBalancer.ingress[{index}].ip"
        ips.append(_canonical(canonical_ip, ingress.ip, field))
    return tuple(ips)


def _node_addresses(status: wire.NodeStatus | None) -> tuple[str, ...]:
    found: dict[str, list[str]] = {"InternalIP": [], "ExternalIP": []}
    for index, entry in enumerate((status.addresses if status else None) or []):
        if entry.type in found:
            field = f"status.addresses[{index}].address"
            found[entry.type].append(_canonical(canonical_ip, entry.address, field))
    return (*found["InternalIP"], *found["ExternalIP"])


def _addresses(texts: list[str] | None, field: str) -> tuple[str, ...]:
    return _all_canonical(canonical_ip, texts, field)


def _cidrs(texts: list[str] | None, field: str) -> tuple[str, ...]:
    return _all_canonical(canonical_cidr, texts, field)


def _all_canonical(
    canonical: Callable[[str], str], texts: list[str] | None, field: str
) -> tuple[str, ...]:
    """Canonicalise a list; blank entries, which old API servers let pass, are no entries.

    The API server also mistakenly allows white space around source ranges (``serviceport.go``).
    A field in the singular (``spec.clusterIP``) is a list of one and is named without an index.
    """
    if not texts:
        return ()
    return tuple(
        _canonical(canonical, text.strip(), f"{field}[{index}]" if field.endswith("s") else field)
        for index, text in enumerate(texts)
        if text and not text.isspace()
    )


def _canonical(canonical: Callable[[str], str], text: str, field: str) -> str:
    try:
        return canonical(text)
    except ValueError as error:
        raise ParseError(field, str(error)) from error


def _annotations(metadata: wire.ObjectMeta) -> tuple[tuple[str, str], ...]:
    """Keep the annotations that speak to service proxies like this one, sorted."""
    if not metadata.annotations:
        return ()
    return tuple(
        sorted(
            (key, value)
            for key, value in metadata.annotations.items()
            if any(mark in key for mark in _ANNOTATION_MARKS)
        )
    )


def _timestamp(text: str | None) -> datetime | None:
    """Read RFC 3339 with any number of fractional digits; ``None`` for anything else."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _epoch(text: str | None) -> float:
    moment = _timestamp(text)
    return moment.timestamp() if moment else 0.0
