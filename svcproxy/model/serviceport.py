"""The finished meaning of a Service port on this node, in one IP family.

Backends receive these values and need no other knowledge of Kubernetes: policies, readiness,
termination and topology are already decided.
"""

from enum import Enum

import msgspec

from svcproxy.model.names import ServicePortName


class FrontendKind(Enum):
    """Where a frontend's address comes from."""

    CLUSTER_IP = "cluster IP"
    EXTERNAL_IP = "external IP"
    LOAD_BALANCER = "loadbalancer IP"
    NODE_PORT = "node port"


class Verdict(Enum):
    """What happens to a packet for a frontend.

    ``FORWARD``: it goes to the endpoint list of the frontend's policy. ``REJECT``: the Service
    has no usable endpoint anywhere. ``DROP``: it has some, but the policy is Local and none is
    on this node; for external frontends this concerns outside clients only, pods of this
    cluster and the node itself still reach ``cluster_endpoints`` (KEP-1138, KEP-2086 and
    kube-proxy's "short circuit" of local traffic).
    """

    FORWARD = "forward"
    REJECT = "reject"
    DROP = "drop"


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """One address and port at which clients reach the Service.

    ``address`` is empty for node ports: they are served on the node's addresses, which the
    backend knows. ``local`` is true when the frontend's traffic policy is Local.

    An address that a Service names in several roles has one frontend. Its kind is the first role in
    the order cluster IP, external IP, load-balancer IP; ``also_load_balancer`` says whether it is
    also a load-balancer IP of the Service.
    """

    kind: FrontendKind
    address: str
    port: int
    local: bool
    verdict: Verdict
    also_load_balancer: bool = False

    @property
    def is_load_balancer(self) -> bool:
        """Whether the address is a load-balancer IP of the Service, perhaps among other roles.

        kube-proxy's nftables and IPVS modes apply the source ranges to every such address; its
        iptables mode does so only if the address is not also a cluster IP or external IP.
        """
        return self.also_load_balancer or self.kind is FrontendKind.LOAD_BALANCER


class Endpoint(msgspec.Struct, frozen=True, gc=False, order=True):
    """One address and port behind a Service port.

    ``is_local`` means: on this node; ``unplaced``: its EndpointSlice names no node, as those made
    by hand may, so it may be here.
    """

    address: str
    port: int
    is_local: bool = False
    unplaced: bool = False


class ServicePort(msgspec.Struct, frozen=True, gc=False):
    """Everything a backend has to know about one Service port in one family.

    ``cluster_endpoints`` is the list for Cluster policy (empty when nothing uses it),
    ``local_endpoints`` the list for Local policy (likewise); both are sorted. ``source_ranges``
    restrict load-balancer frontends only; empty means open. ``affinity_seconds`` is 0 without
    ClientIP affinity. ``health_check_node_port`` is 0 when the Service has none;
    ``local_ready`` are then the addresses of the ready endpoints on this node, which that port's
    health answer counts (terminating ones do not count, whatever the lists fall back to).
    ``serving`` are, for UDP and SCTP, all endpoints that can still answer, whether the lists hold
    them or not: conntrack leaves their flows alone. ``annotations`` are those of the Service that
    the mode's backend interprets, sorted by key.
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
