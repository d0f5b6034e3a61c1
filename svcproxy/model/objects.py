"""API objects after parsing: the input of the desired state."""

from datetime import datetime

import msgspec

from svcproxy.model.names import IPFamily, Kind, NamespacedName, Protocol


class ServicePortSpec(msgspec.Struct, frozen=True, gc=False):
    """An entry of ``spec.ports``; ``node_port`` is 0 if none is allocated."""

    name: str
    protocol: Protocol
    port: int
    node_port: int


class Service(msgspec.Struct, frozen=True, gc=False):
    """A Service that is to be proxied, in both families.

    Headless and ExternalName Services are not represented: the parser returns ``None`` for them.

    Attributes:
        name: the name of the Service.
        ports: the entries of ``spec.ports``.
        cluster_ips: the cluster IPs of both families.
        external_ips: ``spec.externalIPs``.
        load_balancer_ips: the ingress IPs in VIP mode; those with ``ipMode: Proxy`` are left out.
        source_ranges: ``spec.loadBalancerSourceRanges``, of both families.
        internal_policy_local: whether ``spec.internalTrafficPolicy`` is Local.
        external_policy_local: whether ``spec.externalTrafficPolicy`` is Local.
        affinity_seconds: the timeout of ClientIP affinity; 0 without affinity.
        health_check_node_port: ``spec.healthCheckNodePort``; 0 if there is none.
        created: the creation time in seconds since 1970, 0.0 if unknown; the older of two Services
            that claim an address gets it.
        annotations: the annotations that the mode's backend interprets, sorted by key.
    """

    name: NamespacedName
    ports: tuple[ServicePortSpec, ...]
    cluster_ips: tuple[str, ...]
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    internal_policy_local: bool = False
    external_policy_local: bool = False
    affinity_seconds: int = 0
    health_check_node_port: int = 0
    created: float = 0.0
    annotations: tuple[tuple[str, str], ...] = ()


class SlicePort(msgspec.Struct, frozen=True, gc=False):
    """An entry of a slice's ``ports``: the target port of a named Service port."""

    name: str
    protocol: Protocol
    port: int


class SliceEndpoint(msgspec.Struct, frozen=True, gc=False):
    """An entry of a slice's ``endpoints``, with defaulted conditions.

    Absent ``ready`` and ``serving`` mean true, absent ``terminating`` means false (discovery/v1). As
    in kube-proxy, only the first address counts.
    """

    address: str
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str = ""
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()


class EndpointSlice(msgspec.Struct, frozen=True, gc=False):
    """An EndpointSlice of one IP family that belongs to a Service.

    ``triggered`` is the ``endpoints.kubernetes.io/last-change-trigger-time`` annotation, from which
    the network programming latency is measured; ``None`` if absent or malformed.
    """

    name: NamespacedName
    service: NamespacedName
    family: IPFamily
    ports: tuple[SlicePort, ...]
    endpoints: tuple[SliceEndpoint, ...]
    triggered: datetime | None = None


class Node(msgspec.Struct, frozen=True, gc=False):
    """The fields of this node's Node object that svcproxy uses.

    ``addresses`` are the InternalIPs, then the ExternalIPs, in the object's order.
    """

    name: str
    zone: str = ""
    pod_cidrs: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    deleting: bool = False
    taints: tuple[str, ...] = ()


class ServiceCIDR(msgspec.Struct, frozen=True, gc=False):
    """The ranges of cluster IPs that a ServiceCIDR declares (networking.k8s.io/v1).

    ``cidrs`` are canonical, and of both families. The object is cluster-scoped.
    """

    name: NamespacedName
    cidrs: tuple[str, ...]


ApiObject = Service | EndpointSlice | Node | ServiceCIDR

ObjectKey = tuple[Kind, NamespacedName]
"""The identity of an object; cluster-scoped objects have an empty namespace."""


class Problem(msgspec.Struct, frozen=True, gc=False):
    """The reason why an API object or manifest was skipped, for the log and a metric.

    Attributes:
        kind: the kind of the object, if known.
        name: the name of the object, if known.
        field: the path of the field, such as ``spec.ports[0].port``; empty for the whole object.
        reason: what is wrong with the value.
        origin: the file and line of a manifest; empty for the API.
    """

    kind: Kind | None
    name: NamespacedName | None
    field: str
    reason: str
    origin: str = ""

    def __str__(self) -> str:
        where = " ".join(
            part for part in (self.origin, self.kind or "", str(self.name or "")) if part
        )
        return f"{where}: {self.field}: {self.reason}" if self.field else f"{where}: {self.reason}"
