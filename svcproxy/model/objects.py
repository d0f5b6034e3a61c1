"""The API objects after parsing: what the desired state is computed from."""

from datetime import datetime

import msgspec

from svcproxy.model.names import IPFamily, Kind, NamespacedName, Protocol


class ServicePortSpec(msgspec.Struct, frozen=True, gc=False):
    """One entry of ``spec.ports``; ``node_port`` is 0 when none is allocated."""

    name: str
    protocol: Protocol
    port: int
    node_port: int


class Service(msgspec.Struct, frozen=True, gc=False):
    """A Service that has to be proxied, both families together.

    Headless and ExternalName Services never become a ``Service``: the parser gives ``None`` for
    them. ``load_balancer_ips`` holds only ingress IPs in VIP mode (``ipMode: Proxy`` is left
    out). ``source_ranges`` are CIDRs as given, of both families. ``affinity_seconds`` is 0
    without ClientIP affinity. ``created`` orders Services that claim the same address
    (seconds since the epoch, 0.0 when unknown).
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
    """One entry of a slice's ``ports``: the target port behind a named Service port."""

    name: str
    protocol: Protocol
    port: int


class SliceEndpoint(msgspec.Struct, frozen=True, gc=False):
    """One entry of a slice's ``endpoints``, conditions already defaulted.

    Absent ``ready`` and ``serving`` mean true, absent ``terminating`` means false
    (discovery/v1). Only the first address counts, as for kube-proxy.
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

    ``triggered`` is the ``endpoints.kubernetes.io/last-change-trigger-time`` annotation, from
    which the network programming latency is measured; ``None`` when absent or unreadable.
    """

    name: NamespacedName
    service: NamespacedName
    family: IPFamily
    ports: tuple[SlicePort, ...]
    endpoints: tuple[SliceEndpoint, ...]
    triggered: datetime | None = None


class Node(msgspec.Struct, frozen=True, gc=False):
    """What svcproxy needs to know of its own Node object.

    ``addresses`` are InternalIPs first, then ExternalIPs, in the object's order.
    """

    name: str
    zone: str = ""
    pod_cidrs: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    deleting: bool = False
    taints: tuple[str, ...] = ()


class ServiceCIDR(msgspec.Struct, frozen=True, gc=False):
    """Ranges that the API server takes cluster IPs from, of both families (networking.k8s.io/v1).

    ``cidrs`` are canonical; the object is of the cluster, so its name has no namespace.
    """

    name: NamespacedName
    cidrs: tuple[str, ...]


ApiObject = Service | EndpointSlice | Node | ServiceCIDR

ObjectKey = tuple[Kind, NamespacedName]
"""What identifies an object; those of the whole cluster have no namespace."""


class Problem(msgspec.Struct, frozen=True, gc=False):
    """Why an API object or manifest was skipped: for one log line and one metric.

    ``origin`` is a file name for manifests and empty for the API; ``field`` is a path such as
    ``spec.ports[0].port``; ``reason`` says what is wrong with the value there.
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
