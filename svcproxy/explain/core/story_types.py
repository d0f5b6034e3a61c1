"""The answer to "what happens to this packet on this node?", in the terms of Services."""

from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_address

import msgspec

from svcproxy.backends.settings import Settings
from svcproxy.config import LocalMode
from svcproxy.explain.core.packet import Host
from svcproxy.model.names import Protocol, ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort


class Client(StrEnum):
    """How a client is classified: this decides masquerading and traffic policies."""

    POD = "pod"
    NODE = "node"
    OUTSIDE = "outside"


class Ending(StrEnum):
    """What becomes of a packet."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    DROPPED = "dropped"
    NOT_A_SERVICE = "not a service"


class Question(msgspec.Struct, frozen=True):
    """The first packet of a connection.

    Attributes:
        source: the source address.
        destination: the destination address, of the same family.
        port: the destination port.
        protocol: the protocol.
        interface: the interface on which it arrives; empty if the node itself sends it.
    """

    source: str
    destination: str
    port: int
    protocol: Protocol = Protocol.TCP
    interface: str = ""

    @property
    def sent_by_node(self) -> bool:
        """Whether the node itself sends the packet."""
        return not self.interface


class Situation(msgspec.Struct, frozen=True):
    """What the answer depends on besides the packet.

    Attributes:
        mode: the proxy mode.
        ports: all Service ports of the family.
        settings: the settings of the mode.
        host: the node's addresses.
        detection: ``--detect-local-mode``.
    """

    mode: str
    ports: Mapping[ServicePortName, ServicePort]
    settings: Settings
    host: Host
    detection: LocalMode = LocalMode.CLUSTER_CIDR


class Candidate(msgspec.Struct, frozen=True):
    """An endpoint that a new connection may get.

    Attributes:
        endpoint: the endpoint.
        probability: how likely it is.
        masqueraded: whether the endpoint sees an address of the node as the source.
        why: why the source is masqueraded or kept.
    """

    endpoint: Endpoint
    probability: float
    masqueraded: bool
    why: str

    @property
    def target(self) -> str:
        """The endpoint as ``address:port``, or ``[address]:port`` for IPv6."""
        return target_of(self.endpoint)


class Story(msgspec.Struct, frozen=True):
    """What happens to a packet, and why.

    Attributes:
        question: the packet.
        client: how the client is classified.
        classified: the setting that decides it, in words.
        ending: what becomes of the packet.
        reason: why, in words.
        port: the Service port that the packet is for; ``None`` if it is for none.
        frontend: the frontend that it hits.
        policy: what the traffic policy means for this client, in words.
        admitted: what the source ranges say, in words; empty if there are none.
        candidates: the endpoints, if the packet is delivered.
    """

    question: Question
    client: Client
    classified: str
    ending: Ending
    reason: str
    port: ServicePort | None = None
    frontend: Frontend | None = None
    policy: str = ""
    admitted: str = ""
    candidates: tuple[Candidate, ...] = ()


class Differences(msgspec.Struct, frozen=True):
    """In what the modes differ (``docs/behaviour.md``, ``docs/compatibility.md``).

    Attributes:
        sends_unserved_out: packets that the node sends to external and load-balancer IPs without
            endpoints leave the node.
        restricts_every_role: source ranges apply to every load-balancer IP, also to one that is an
            external IP or the cluster IP as well.
        restricts_without_endpoints: source ranges apply to Services without endpoints.
        knows_all_hairpins: hairpin traffic of endpoints on other nodes is masqueraded as well. Such
            traffic passes this node only if the network sends it there.
        refuses_at_all_node_addresses: node ports without endpoints are refused at every address of
            the node, also at those that do not serve node ports.
        checks_cluster_ips: other ports of cluster IPs are refused, unassigned cluster IPs dropped.
        assigns_addresses: cluster IPs and load-balancer IPs are addresses of the node.
        serves_localhost: node ports may be served on 127.0.0.0/8.
    """

    sends_unserved_out: bool = True
    restricts_every_role: bool = True
    restricts_without_endpoints: bool = False
    knows_all_hairpins: bool = False
    refuses_at_all_node_addresses: bool = False
    checks_cluster_ips: bool = False
    assigns_addresses: bool = False
    serves_localhost: bool = True


_MODES = {
    "iptables": Differences(
        restricts_every_role=False, knows_all_hairpins=True, refuses_at_all_node_addresses=True
    ),
    "nftables": Differences(
        sends_unserved_out=False, restricts_without_endpoints=True, checks_cluster_ips=True
    ),
    "ipvs": Differences(assigns_addresses=True, serves_localhost=False),
}


def differences(mode: str) -> Differences:
    """Return in what a mode differs from the others."""
    return _MODES[mode]


def is_external(frontend: Frontend) -> bool:
    """Whether ``externalTrafficPolicy`` applies to a frontend."""
    return frontend.kind is not FrontendKind.CLUSTER_IP


def place(address: str, port: int) -> str:
    """Return ``address:port``, or ``[address]:port`` for IPv6."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def target_of(endpoint: Endpoint) -> str:
    """Return the endpoint as ``address:port``, or ``[address]:port`` for IPv6."""
    return place(str(ip_address(endpoint.address)), endpoint.port)
