"""Names of chains and ipsets, as kube-proxy 1.36 has them (``pkg/proxy/ipvs``), and our own.

kube-proxy flushes the chains that are named here without ``KUBE-IPVS-``'s additions and lays its
own rules, so those additions, which only they lead to, lose their meaning when it takes over.
They all begin with ``KUBE-IPVS-``. Chain names have at most 28 characters, set names 31.
"""

from collections.abc import Mapping
from typing import NamedTuple

from svcproxy.backends.xtables.core.hashing import port_hash
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.netlink.core.kernel_objects import SetKind

DUMMY_INTERFACE = "kube-ipvs0"
"""The interface with the addresses of virtual servers, named as in kube-proxy to take over from it."""

SERVICES = "KUBE-SERVICES"
POSTROUTING = "KUBE-POSTROUTING"
NODE_PORT = "KUBE-NODE-PORT"
LOAD_BALANCER = "KUBE-LOAD-BALANCER"
MARK_MASQ = "KUBE-MARK-MASQ"
FORWARD = "KUBE-FORWARD"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
SOURCE_RANGES = "KUBE-SOURCE-RANGES-FIREWALL"
IPVS_FILTER = "KUBE-IPVS-FILTER"
IPVS_OUT_FILTER = "KUBE-IPVS-OUT-FILTER"

EXTERNAL = "KUBE-IPVS-EXTERNAL"
"""nat: finds the Service port of an external or load-balancer address that needs rules."""
NODE_PORTS = "KUBE-IPVS-NODE-PORTS"
"""nat: finds the Service port of a node port with the Local policy."""
SOURCES = "KUBE-IPVS-SOURCES"
"""nat: leaves what a load balancer's source ranges refuse untranslated."""
REFUSE = "KUBE-IPVS-REFUSE"
"""filter: refuses what has no endpoints."""
NODE_SOURCES = "KUBE-IPVS-NODE-SOURCES"
"""filter: load balancers that the node itself may not use."""

_OWN = "KUBE-IPVS-"
_EXTERNAL_PREFIX = "KUBE-IPVS-E-"
_REDIRECT_PREFIX = "KUBE-IPVS-R-"


def external_chain(name: ServicePortName) -> str:
    """The nat chain of what pods and the node itself send to a port's external addresses."""
    return _EXTERNAL_PREFIX + port_hash(name)


def redirect_chain(name: ServicePortName) -> str:
    """The nat chain that sends all the rest to the virtual server of local endpoints."""
    return _REDIRECT_PREFIX + port_hash(name)


def is_own_chain(chain: str) -> bool:
    """Whether a chain is one that kube-proxy does not have."""
    return chain.startswith(_OWN) and chain not in {IPVS_FILTER, IPVS_OUT_FILTER}


class SetNames(NamedTuple):
    """The ipsets of one family."""

    loop_back: str
    cluster_ip: str
    external_ip: str
    external_ip_local: str
    load_balancer: str
    load_balancer_local: str
    firewall: str
    source_cidr: str
    source_ip: str
    node_port_tcp: str
    node_port_local_tcp: str
    node_port_udp: str
    node_port_local_udp: str
    node_port_sctp: str
    node_port_local_sctp: str
    health_check: str
    bound: str
    reject: str
    drop: str

    def node_port(self, protocol: Protocol, *, local: bool) -> str:
        """The set of node ports of a protocol, all or those with the Local policy."""
        suffix = protocol.keyword
        name: str = getattr(self, f"node_port_local_{suffix}" if local else f"node_port_{suffix}")
        return name

    @property
    def kinds(self) -> Mapping[str, SetKind]:
        """How each set is made, by name."""
        return dict(zip(self, _KINDS, strict=True))


_ADDRESS_PORT = SetKind("hash:ip,port")
_WITH_ADDRESS = SetKind("hash:ip,port,ip")
_PORT = SetKind("bitmap:port", 0)
_KINDS = (
    _WITH_ADDRESS,
    *(_ADDRESS_PORT,) * 6,
    SetKind("hash:ip,port,net"),
    _WITH_ADDRESS,
    *(_PORT,) * 4,
    *(_ADDRESS_PORT,) * 2,
    _PORT,
    SetKind("hash:ip"),
    *(_ADDRESS_PORT,) * 2,
)
_NAMES = SetNames(
    loop_back="KUBE-LOOP-BACK",
    cluster_ip="KUBE-CLUSTER-IP",
    external_ip="KUBE-EXTERNAL-IP",
    external_ip_local="KUBE-EXTERNAL-IP-LOCAL",
    load_balancer="KUBE-LOAD-BALANCER",
    load_balancer_local="KUBE-LOAD-BALANCER-LOCAL",
    firewall="KUBE-LOAD-BALANCER-FW",
    source_cidr="KUBE-LOAD-BALANCER-SOURCE-CIDR",
    source_ip="KUBE-LOAD-BALANCER-SOURCE-IP",
    node_port_tcp="KUBE-NODE-PORT-TCP",
    node_port_local_tcp="KUBE-NODE-PORT-LOCAL-TCP",
    node_port_udp="KUBE-NODE-PORT-UDP",
    node_port_local_udp="KUBE-NODE-PORT-LOCAL-UDP",
    node_port_sctp="KUBE-NODE-PORT-SCTP-HASH",
    node_port_local_sctp="KUBE-NODE-PORT-LOCAL-SCTP-HASH",
    health_check="KUBE-HEALTH-CHECK-NODE-PORT",
    bound="KUBE-IPVS-IPS",
    reject="KUBE-IPVS-REJECT",
    drop="KUBE-IPVS-DROP",
)
_LONGEST = 31

SUBSTITUTES = {IPFamily.IPV4: "KUBE-IPVS-NEW", IPFamily.IPV6: "KUBE-6-IPVS-NEW"}
"""Sets that are filled in order to be swapped for another, and then destroyed."""

SETS: Mapping[IPFamily, SetNames] = {
    IPFamily.IPV4: _NAMES,
    # A set holds one family only; kube-proxy names the other's so, and cuts what gets too long.
    IPFamily.IPV6: SetNames(*(n.replace("KUBE-", "KUBE-6-", 1)[:_LONGEST] for n in _NAMES)),
}
