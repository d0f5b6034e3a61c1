"""A Service port on this node, in one IP family: the input of every backend.

Traffic policies, readiness, termination and topology are already applied. Backends need no other
knowledge of Kubernetes.
"""

from enum import Enum

import msgspec

from svcproxy.model.names import ServicePortName


class FrontendKind(Enum):
    """The source of a frontend's address."""

    CLUSTER_IP = "cluster IP"
    EXTERNAL_IP = "external IP"
    LOAD_BALANCER = "loadbalancer IP"
    NODE_PORT = "node port"


class Verdict(Enum):
    """What happens to packets for a frontend.

    ``FORWARD``: they are forwarded to the endpoints of the frontend's traffic policy.
    ``REJECT``: no node has a usable endpoint.
    ``DROP``: the policy is Local, and only other nodes have usable endpoints. For external
    frontends this applies to clients outside the cluster. Pods and the node itself still reach
    ``cluster_endpoints`` (KEP-1138, KEP-2086, and kube-proxy's "short circuit" of local traffic).
    """

    FORWARD = "forward"
    REJECT = "reject"
    DROP = "drop"


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """An address and port at which clients reach the Service.

    ``address`` is empty for node ports, which are served at the node's addresses; the backend
    knows these. ``local`` is true if the frontend's traffic policy is Local.

    An address that a Service lists in several roles has one frontend. Its kind is the first role in
    the order cluster IP, external IP, load-balancer IP; ``also_load_balancer`` is true if it is also
    a load-balancer IP of the Service.
    """

    kind: FrontendKind
    address: str
    port: int
    local: bool
    verdict: Verdict
    also_load_balancer: bool = False

    @property
    def is_load_balancer(self) -> bool:
        """Whether the address is a load-balancer IP of the Service, possibly among other roles.

        kube-proxy's nftables and IPVS modes apply source ranges to every such address. Its iptables
        mode does so only if the address is not a cluster IP or external IP as well.
        """
        return self.also_load_balancer or self.kind is FrontendKind.LOAD_BALANCER


class Endpoint(msgspec.Struct, frozen=True, gc=False, order=True):
    """An address and port behind a Service port.

    ``is_local`` is true if the endpoint is on this node. ``node_unknown`` is true if its EndpointSlice
    names no node, as slices made by hand may; such an endpoint may be on this node.
    """

    address: str
    port: int
    is_local: bool = False
    node_unknown: bool = False


class ServicePort(msgspec.Struct, frozen=True, gc=False):
    """Everything that a backend needs to know about one Service port in one family.

    Attributes:
        name: the identity of the port.
        frontends: where clients reach the port.
        cluster_endpoints: the sorted endpoints for the Cluster policy; empty if nothing uses them.
        local_endpoints: the sorted endpoints for the Local policy; empty if nothing uses them.
        affinity_seconds: the timeout of ClientIP affinity; 0 without affinity.
        source_ranges: CIDRs to which load-balancer frontends are restricted; empty means open.
        health_check_node_port: the Service's health-check node port; 0 if there is none.
        local_ready: the addresses of the ready endpoints on this node, which the health-check node
            port counts. Terminating endpoints do not count, even if the lists fall back to them.
        serving: for UDP and SCTP, all endpoints that can still answer, in the lists or not:
            conntrack keeps their flows.
        annotations: the Service's annotations that the mode's backend interprets, sorted by key.
    """

    name: ServicePortName
    frontends: tuple[Frontend, ...]
    cluster_endpoints: tuple[Endpoint, ...]
    local_endpoints: tuple[Endpoint, ...]
    affinity_seconds: int = 0
    source_ranges: tuple[str, ...] = ()
    health_check_node_port: int = 0
    local_ready: tuple[str, ...] = ()
    serving: tuple[Endpoint, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
