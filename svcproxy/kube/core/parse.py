"""Parses wire types to the model: checks every field, fills in defaults, makes addresses canonical.

Which objects are skipped (``None``) and which defaults apply follows kube-proxy:
``pkg/proxy/util/utils.go`` (``ShouldSkipService``), ``serviceport.go`` and
``endpointslicecache.go``. The selectors of ``cmd/kube-proxy/app/server.go`` are applied here again, so
that manifests are filtered as the API server filters.
"""

from functools import lru_cache
from sys import intern

from svcproxy import limits
from svcproxy.kube.core import wire
from svcproxy.kube.core.addresses import (
    canonical_cluster_ip,
    canonical_endpoint_ip,
    canonical_ip,
    is_ipv6,
    is_plain_ipv4,
)
from svcproxy.kube.core.field_parsing import (
    check_list_length,
    check_port,
    parse_address_field,
    parse_address_list,
    parse_cidrs_field,
    parse_epoch_seconds,
    parse_timestamp,
)
from svcproxy.kube.core.validation import (
    LABEL_VALUES,
    LABELS,
    SUBDOMAINS,
    TAINT_KEYS,
    LimitExceededError,
    NameRule,
    quoted,
)
from svcproxy.kube.core.wire import ParseError
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
_NO_KEYS: frozenset[str] = frozenset()


def parse_object(obj: wire.WireObject, annotations: frozenset[str] = _NO_KEYS) -> ApiObject | None:
    """Parse an object of any kind.

    Args:
        obj: the decoded object.
        annotations: the annotation keys of Services to keep, see ``parse_service``.

    Returns:
        The parsed object, or ``None`` if it is not to be proxied.

    Raises:
        ParseError: the object is malformed.
    """
    if isinstance(obj, wire.EndpointSlice):
        return parse_endpoint_slice(obj)
    if isinstance(obj, wire.Service):
        return parse_service(obj, annotations)
    if isinstance(obj, wire.ServiceCIDR):
        return parse_service_cidr(obj)
    return parse_node(obj)


def parse_service(obj: wire.Service, annotations: frozenset[str] = _NO_KEYS) -> Service | None:
    """Parse a Service.

    Args:
        obj: the decoded Service.
        annotations: the keys of the annotations to keep: those that the mode's backend interprets.
            Changes to other annotations leave the parsed Service equal.

    Returns:
        ``None`` for an ExternalName or headless Service, and for one that the label
        ``service.kubernetes.io/service-proxy-name`` assigns to another proxy.

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
    external_ips = parse_address_list(canonical_endpoint_ip, spec.external_ips, "spec.externalIPs")
    external_local = spec.external_traffic_policy == "Local" and (
        spec.type in {"LoadBalancer", "NodePort"} or bool(external_ips)
    )
    checked = external_local and spec.type == "LoadBalancer"
    service = Service(
        name=_namespaced(obj.metadata, LABELS),
        ports=_service_ports(spec),
        cluster_ips=parse_address_list(
            canonical_cluster_ip,
            addresses,
            "spec.clusterIPs" if spec.cluster_ips else "spec.clusterIP",
        ),
        external_ips=external_ips,
        load_balancer_ips=_load_balancer_ips(obj.status),
        source_ranges=parse_cidrs_field(
            spec.load_balancer_source_ranges, "spec.loadBalancerSourceRanges"
        ),
        internal_policy_local=spec.internal_traffic_policy == "Local",
        external_policy_local=external_local,
        affinity_seconds=_affinity(spec),
        health_check_node_port=_health_check_port(spec) if checked else 0,
        created=parse_epoch_seconds(obj.metadata.creation_timestamp),
        annotations=_annotations(obj.metadata.annotations, annotations),
    )
    if len(service.ports) > 1 or external_ips or service.load_balancer_ips:
        _check_frontends(service)
    return service


def parse_endpoint_slice(obj: wire.EndpointSlice) -> EndpointSlice | None:
    """Parse an EndpointSlice.

    Ports that are absent or 0 and endpoints without an address are skipped, not refused. Only the
    first address of an endpoint counts (``endpointslicecache.go``).

    Returns:
        ``None`` for a slice that belongs to no Service or to a headless one, or has host names.

    Raises:
        ParseError: the slice is malformed.
    """
    labels = obj.metadata.labels or {}
    service = labels.get(SERVICE_NAME_LABEL)
    if not service or HEADLESS_LABEL in labels or obj.address_type == "FQDN":
        return None
    family = _FAMILIES.get(obj.address_type or "")
    if family is None:
        raise ParseError("addressType", f"{quoted(obj.address_type)} is not IPv4, IPv6 or FQDN")
    name = _namespaced(obj.metadata, SUBDOMAINS)
    if not LABEL_VALUES.allowed(service):
        raise ParseError(f"metadata.labels[{SERVICE_NAME_LABEL}]", LABEL_VALUES.reason(service))
    ports, endpoints = obj.ports or [], obj.endpoints or []
    if len(ports) > 1 and len(endpoints) * len(ports) > limits.SLICE_TARGETS:
        counts = f"{len(endpoints)} endpoints with {len(ports)} ports"
        reason = f"{counts} exceed {limits.SLICE_TARGETS} (endpoints times ports)"
        raise LimitExceededError("endpoints", reason, "slice_targets")
    return EndpointSlice(
        name=name,
        service=NamespacedName(name.namespace, intern(service)),
        family=family,
        ports=_slice_ports(ports),
        endpoints=_endpoints(endpoints, family),
        triggered=parse_timestamp((obj.metadata.annotations or {}).get(TRIGGER_ANNOTATION)),
    )


def parse_node(obj: wire.Node) -> Node:
    """Parse a Node.

    Raises:
        ParseError: the Node is malformed.
    """
    spec = obj.spec or wire.NodeSpec()
    check_list_length(spec.pod_cidrs, "spec.podCIDRs")
    cidrs = parse_cidrs_field(spec.pod_cidrs, "spec.podCIDRs")
    zone = (obj.metadata.labels or {}).get(ZONE_LABEL, "")
    return Node(
        name=_cluster_name(obj.metadata),
        zone=LABEL_VALUES.at(f"metadata.labels[{ZONE_LABEL}]", zone),
        pod_cidrs=cidrs
        or parse_cidrs_field([spec.pod_cidr] if spec.pod_cidr else None, "spec.podCIDR"),
        addresses=_node_addresses(obj.status),
        deleting=obj.metadata.deletion_timestamp is not None,
        taints=_taints(spec.taints),
    )


def parse_service_cidr(obj: wire.ServiceCIDR) -> ServiceCIDR:
    """Parse a ServiceCIDR. As in kube-proxy, one that is being deleted still counts.

    Raises:
        ParseError: the ServiceCIDR is malformed.
    """
    cidrs = obj.spec.cidrs if obj.spec else None
    check_list_length(cidrs, "spec.cidrs")
    name = NamespacedName("", _cluster_name(obj.metadata))
    return ServiceCIDR(name, parse_cidrs_field(cidrs, "spec.cidrs"))


def _namespaced(metadata: wire.ObjectMeta, rule: NameRule) -> NamespacedName:
    if not metadata.name:
        raise ParseError("metadata.name", "is missing")
    if not metadata.namespace:
        raise ParseError("metadata.namespace", "is missing")
    if not rule.allowed(metadata.name):
        raise ParseError("metadata.name", rule.reason(metadata.name))
    try:
        return NamespacedName(LABELS[metadata.namespace], metadata.name)
    except ValueError as error:
        raise ParseError("metadata.namespace", str(error)) from None


def _cluster_name(metadata: wire.ObjectMeta) -> str:
    if not metadata.name:
        raise ParseError("metadata.name", "is missing")
    return SUBDOMAINS.at("metadata.name", metadata.name)


def _check_frontends(service: Service) -> None:
    """Check the number of rules of a Service; each load-balancer IP repeats all source ranges."""
    balanced, ranges = len(service.load_balancer_ips), len(service.source_ranges)
    addresses = len(service.cluster_ips) + len(service.external_ips) + balanced
    ports = len(service.ports)
    if ports * (addresses + ranges * max(1, balanced)) > limits.SERVICE_FRONTENDS:
        counts = f"{ports} ports with {addresses} addresses and {ranges} source ranges"
        rule = "ports times addresses, with all ranges for each load-balancer IP"
        reason = f"{counts} exceed {limits.SERVICE_FRONTENDS} ({rule})"
        raise LimitExceededError("spec.ports", reason, "service_frontends")


def _service_ports(spec: wire.ServiceSpec) -> tuple[ServicePortSpec, ...]:
    has_node_ports = spec.type in {"NodePort", "LoadBalancer"}
    ports = []
    for index, port in enumerate(spec.ports or ()):
        if not port.port:
            reason = "is missing" if port.port is None else "0 is not a port"
            raise ParseError(f"spec.ports[{index}].port", reason)
        name, protocol, number = _port(port, port.port, "spec.ports", index)
        node_port = port.node_port if has_node_ports else 0
        if node_port:
            check_port(node_port, f"spec.ports[{index}].nodePort")
        ports.append(ServicePortSpec(name, protocol, number, node_port or 0))
    return tuple(ports)


def _slice_ports(ports: list[wire.EndpointPort]) -> tuple[SlicePort, ...]:
    return tuple(
        [
            SlicePort(*_port(port, port.port, "ports", index))
            for index, port in enumerate(ports)
            if port.port
        ]
    )


def _port(
    port: wire.ServicePort | wire.EndpointPort, number: int, ports: str, index: int
) -> tuple[str, Protocol, int]:
    try:
        name = LABELS[port.name] if port.name else ""
    except ValueError as error:
        raise ParseError(f"{ports}[{index}].name", str(error)) from None
    protocol = _PROTOCOLS.get(port.protocol or "TCP")
    if protocol is None:
        reason = f"{quoted(port.protocol)} is not TCP, UDP or SCTP"
        raise ParseError(f"{ports}[{index}].protocol", reason)
    if not 0 < number < 65536:
        check_port(number, f"{ports}[{index}].port")
    return name, protocol, number


def _endpoints(endpoints: list[wire.Endpoint], family: IPFamily) -> tuple[SliceEndpoint, ...]:
    """Parse a slice's endpoints. Hot path: the first list of a large cluster has 100,000."""
    is_v4 = family is IPFamily.IPV4
    parsed = []
    for index, endpoint in enumerate(endpoints):
        if not endpoint.addresses:
            continue
        address = endpoint.addresses[0]
        if not (is_v4 and is_plain_ipv4(address)):
            address = _endpoint_address(address, index, family)
        try:
            node_name = SUBDOMAINS[endpoint.node_name] if endpoint.node_name else ""
        except ValueError as error:
            raise ParseError(f"endpoints[{index}].nodeName", str(error)) from None
        conditions = endpoint.conditions
        hints = endpoint.hints
        parsed.append(
            SliceEndpoint(
                address,
                conditions is None or conditions.ready is not False,
                conditions is None or conditions.serving is not False,
                conditions is not None and conditions.terminating is True,
                node_name,
                _hints(hints.for_zones, "Zones", index) if hints and hints.for_zones else (),
                _hints(hints.for_nodes, "Nodes", index) if hints and hints.for_nodes else (),
            )
        )
    return tuple(parsed)


def _endpoint_address(text: str, index: int, family: IPFamily) -> str:
    field = f"endpoints[{index}].addresses[0]"
    address = parse_address_field(canonical_endpoint_ip, text, field)
    if is_ipv6(address) is not (family is IPFamily.IPV6):
        raise ParseError(field, f"{address!r} is not {family}")
    return address


def _hints(hints: list[wire.Hint], of: str, endpoint: int) -> tuple[str, ...]:
    names = LABEL_VALUES if of == "Zones" else SUBDOMAINS
    if len(hints) == 1 and hints[0].name in names:
        return _single_hint(hints[0].name)
    field = f"endpoints[{endpoint}].hints.for{of}"
    check_list_length(hints, field)
    return tuple(names.at(f"{field}[{i}].name", hint.name) for i, hint in enumerate(hints))


@lru_cache(maxsize=1024)
def _single_hint(name: str) -> tuple[str, ...]:
    """Share the tuple of the usual case: one zone for thousands of endpoints."""
    return (name,)


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
            f"{quoted(seconds)} is not between 1 and {MAX_AFFINITY_SECONDS}",
        )
    return seconds


def _health_check_port(spec: wire.ServiceSpec) -> int:
    port = spec.health_check_node_port or 0
    check_port(port, "spec.healthCheckNodePort")
    return port


def _load_balancer_ips(status: wire.ServiceStatus | None) -> tuple[str, ...]:
    """Return the ingress IPs in VIP mode, without host names and IPs in Proxy mode."""
    balancer = status.load_balancer if status else None
    ips = []
    for index, ingress in enumerate((balancer.ingress if balancer else None) or []):
        if not ingress.ip or ingress.ip_mode not in {None, "VIP"}:
            continue
        field = f"status.loadBalancer.ingress[{index}].ip"
        ips.append(parse_address_field(canonical_ip, ingress.ip, field))
    return tuple(ips)


def _node_addresses(status: wire.NodeStatus | None) -> tuple[str, ...]:
    found: dict[str, list[str]] = {"InternalIP": [], "ExternalIP": []}
    addresses = (status.addresses if status else None) or []
    check_list_length(addresses, "status.addresses")
    for index, entry in enumerate(addresses):
        if entry.type in found:
            field = f"status.addresses[{index}].address"
            found[entry.type].append(parse_address_field(canonical_ip, entry.address, field))
    return (*found["InternalIP"], *found["ExternalIP"])


def _taints(taints: list[wire.Taint] | None) -> tuple[str, ...]:
    check_list_length(taints, "spec.taints")
    return tuple(
        TAINT_KEYS.at(f"spec.taints[{index}].key", taint.key)
        for index, taint in enumerate(taints or ())
    )


def _annotations(found: dict[str, str] | None, keys: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """Keep the annotations with the given keys, sorted, each value cut to the limit."""
    if not keys or not found:
        return ()
    kept = sorted(key for key in keys if key in found)
    return tuple([(key, found[key][: limits.ANNOTATION_CHARACTERS]) for key in kept])
