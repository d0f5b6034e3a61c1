"""The documents that describe Services: ``ServiceList`` and ``ServiceDetail``."""

from collections.abc import Mapping

from svcproxy.explain.core.documents import ConnectionCounts, Document, KernelDifference, Part
from svcproxy.explain.core.node_summary import NodeSummary
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.state.verdicts import frontend_text


class FrontendInfo(Part, frozen=True, kw_only=True):
    """An address and port at which clients reach a Service.

    Attributes:
        address: the IP address; empty for a node port.
        port: the port.
        protocol: ``TCP``, ``UDP`` or ``SCTP``.
        type: ``clusterIP``, ``externalIP``, ``loadBalancerIP`` or ``nodePort``.
        also_load_balancer: whether the address is a load-balancer IP of the Service as well.
        node_addresses: the CIDRs whose local addresses serve a node port; absent for all.
        policy: the traffic policy: ``Cluster`` or ``Local``.
        endpoints_used: the number of endpoints to which it forwards. With the Local policy, those
            for clients outside the cluster.
        endpoints_known: the number of endpoints in the Service's slices, used or not.
        verdict: ``forward``, ``reject`` or ``drop``.
        reason: why packets are refused or dropped, in words.
        connections: its connections; absent if they are not counted.
    """

    address: str
    port: int
    protocol: Protocol
    type: str
    policy: str
    endpoints_used: int
    endpoints_known: int
    verdict: str
    also_load_balancer: bool = False
    node_addresses: tuple[str, ...] = ()
    reason: str = ""
    connections: ConnectionCounts | None = None

    @property
    def text(self) -> str:
        """Its address as text: ``10.96.0.10:80/tcp``."""
        return frontend_text(self.address, self.port, self.protocol)


class PortInfo(Part, frozen=True, kw_only=True):
    """A Service port in one IP family.

    Attributes:
        name: the name of the port; empty if it has none.
        protocol: ``TCP``, ``UDP`` or ``SCTP``.
        family: ``IPv4`` or ``IPv6``.
        frontends: the addresses at which it is served.
        kernel_differences: the number of its kernel objects that differ; absent if the kernel was
            not read.
        held: why the port is held back: the kernel refused it, or it could not be planned.
    """

    name: str
    protocol: Protocol
    family: IPFamily
    frontends: tuple[FrontendInfo, ...]
    kernel_differences: int | None = None
    held: str = ""

    @property
    def kernel_text(self) -> str:
        """Whether the kernel agrees: ``yes``, ``no: 2 differences``, or ``-`` if it was not read."""
        if self.kernel_differences is None:
            return "-"
        if not self.kernel_differences:
            return "yes"
        return f"no: {self.kernel_differences} difference{'s' * (self.kernel_differences > 1)}"


class ConflictInfo(Part, frozen=True, kw_only=True):
    """An address that a Service claims and another one serves.

    Attributes:
        address: the IP address; empty for a node port.
        port: the port.
        protocol: ``TCP``, ``UDP`` or ``SCTP``.
        family: ``IPv4`` or ``IPv6``.
        served_by: the other Service, as ``namespace/name``.
        text: the same in words, with what decided.
    """

    address: str
    port: int
    protocol: Protocol
    family: IPFamily
    served_by: str
    text: str


class ServiceSummary(Part, frozen=True, kw_only=True):
    """A Service in a list.

    Attributes:
        namespace: its namespace.
        name: its name.
        ports: its ports, each once for each family.
        conflicts: addresses that it claims and another Service serves.
        problems: everything that is wrong with it, in words.
    """

    namespace: str
    name: str
    ports: tuple[PortInfo, ...]
    conflicts: tuple[ConflictInfo, ...] = ()
    problems: tuple[str, ...] = ()


class ServiceList(Document, frozen=True, kw_only=True):
    """All Services that a node serves.

    Attributes:
        node: the state of the node.
        services: the Services, sorted by namespace and name.
        selected_of: the number of Services before filters.
        notes: what could not be found out, in words.
    """

    node: NodeSummary
    services: tuple[ServiceSummary, ...]
    selected_of: int
    notes: tuple[str, ...] = ()


class EndpointInfo(Part, frozen=True, kw_only=True):
    """An entry of an EndpointSlice, and how it is used for a Service port.

    Attributes:
        address: the IP address.
        port: the target port; absent if the slice does not have the Service port.
        slice: the EndpointSlice, as ``namespace/name``.
        node: its node; absent if the slice names none.
        on_this_node: whether it is on this node.
        ready: the condition.
        serving: the condition.
        terminating: the condition.
        zone_hints: the zones for which it is meant.
        node_hints: the nodes for which it is meant.
        cluster: whether frontends with the Cluster policy forward to it. For an external address
            with the Local policy, clients inside the cluster use these endpoints.
        local: whether frontends with the Local policy forward to it.
        reason: why it is not used, as one of a few fixed texts; absent if it is used.
        text: the same in words, with zone, node or time.
        not_local: why the Local policy does not use it, in words; absent if it does, or if no
            frontend has that policy.
        not_cluster: the same for the Cluster policy.
        not_ready_seconds: for how long it has not been ready; absent if it is or if that is unknown.
    """

    address: str
    slice: str
    on_this_node: bool
    ready: bool
    serving: bool
    terminating: bool
    cluster: bool
    local: bool
    port: int = 0
    node: str = ""
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()
    reason: str = ""
    text: str = ""
    not_local: str = ""
    not_cluster: str = ""
    not_ready_seconds: float | None = None


class PortDetail(PortInfo, frozen=True, kw_only=True):
    """A Service port in one IP family, with its endpoints and kernel objects.

    Attributes:
        endpoints: the entries of the Service's EndpointSlices, sorted by address.
        differences: the kernel objects that differ from the desired state.
        objects: the objects that carry the port, in the syntax of the kernel's tools.
        objects_from: ``kernel`` if these were read from the kernel, or ``desired`` if they are what
            svcproxy would write.
    """

    endpoints: tuple[EndpointInfo, ...]
    differences: tuple[KernelDifference, ...] = ()
    objects: tuple[str, ...] = ()
    objects_from: str = "desired"


class HealthCheckInfo(Part, frozen=True, kw_only=True):
    """The health-check node port of a Service in one IP family.

    Attributes:
        family: ``IPv4`` or ``IPv6``.
        port: the port.
        local_endpoints: the number of ready endpoints on this node, which it reports.
        status: the HTTP status of its answer while the proxy is healthy: 200 or 503.
    """

    family: IPFamily
    port: int
    local_endpoints: int
    status: int


class ServiceDetail(Document, frozen=True, kw_only=True):
    """One Service.

    Attributes:
        node: the state of the node.
        namespace: its namespace.
        name: its name.
        internal_policy: the internal traffic policy: ``Cluster`` or ``Local``.
        external_policy: the external traffic policy.
        affinity_seconds: the timeout of ClientIP affinity; 0 without affinity.
        source_ranges: the CIDRs to which its load-balancer IPs are restricted; empty means open.
        ignored_external_ips: its external IPs, if the flags forbid to serve them.
        annotations: its annotations that the proxy mode interprets.
        health_checks: its health-check node port in each family.
        ports: its ports, each once for each family.
        conflicts: addresses that it claims and another Service serves.
        problems: everything that is wrong with it, in words.
        notes: what could not be found out, in words.
    """

    node: NodeSummary
    namespace: str
    name: str
    internal_policy: str
    external_policy: str
    affinity_seconds: int
    source_ranges: tuple[str, ...]
    ignored_external_ips: tuple[str, ...]
    annotations: Mapping[str, str]
    health_checks: tuple[HealthCheckInfo, ...]
    ports: tuple[PortDetail, ...]
    conflicts: tuple[ConflictInfo, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
