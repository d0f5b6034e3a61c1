"""The chains and ipsets of IPVS mode: names, kinds, capacity, and rules without Service ports.

The names of kube-proxy 1.36 (``pkg/proxy/ipvs``) are kept, so that either program can take over
from the other. svcproxy's own chains begin with ``KUBE-IPVS-``. kube-proxy does not know these, but
it flushes the chains that jump to them, which leaves them without effect. The jumps from built-in
chains have kube-proxy's exact texts, by which its clean-up and its take-over recognize them. Chain
names have at most 28 characters, set names at most 31.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.backends.xtables.core.hashing import port_hash
from svcproxy.backends.xtables.core.masquerade import forward_rules, mark_rules, masquerade_rules
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, Rules, comment, format_cidr, rule
from svcproxy.backends.xtables.core.tableplan import Jump
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.netlink.core.kernel_objects import SetEntry, SetKind
from svcproxy.netlink.core.operations import (
    AddEntries,
    CreateSet,
    DestroySet,
    SetOperation,
    SwapSets,
)

DUMMY_INTERFACE = "kube-ipvs0"
"""The interface with the addresses of virtual servers; kube-proxy uses the same name."""

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
"""nat: dispatches external and load balancer addresses that need rules to their Service ports."""
NODE_PORTS = "KUBE-IPVS-NODE-PORTS"
"""nat: dispatches node ports with the Local policy to their Service ports."""
SOURCES = "KUBE-IPVS-SOURCES"
"""nat: exempts packets from translation that the source ranges of a load balancer reject."""
REFUSE = "KUBE-IPVS-REFUSE"
"""filter: rejects packets to addresses without endpoints."""
NODE_SOURCES = "KUBE-IPVS-NODE-SOURCES"
"""filter: drops packets of the node itself to load balancers that do not admit the node."""

_OWN_PREFIX = "KUBE-IPVS-"
_EXTERNAL_PREFIX = "KUBE-IPVS-E-"
_REDIRECT_PREFIX = "KUBE-IPVS-R-"

LISTS = {
    NAT: (EXTERNAL, NODE_PORTS),
    FILTER: (NODE_SOURCES,),
}
"""The chains with rules of Service ports, by table; the order of their rules is irrelevant."""


def external_chain(name: ServicePortName) -> str:
    """Return the nat chain for packets of pods and of the node to external addresses of a port."""
    return _EXTERNAL_PREFIX + port_hash(name)


def redirect_chain(name: ServicePortName) -> str:
    """Return the nat chain that sends all other packets to the local endpoints of a port."""
    return _REDIRECT_PREFIX + port_hash(name)


def is_own_chain(chain: str) -> bool:
    """Whether a chain exists in svcproxy but not in kube-proxy."""
    return chain.startswith(_OWN_PREFIX) and chain not in {IPVS_FILTER, IPVS_OUT_FILTER}


# --- Sets -------------------------------------------------------------------------------------


class SetNames(NamedTuple):
    """The names of the ipsets of one family."""

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
        """Return the set of a protocol's node ports: all, or those with the Local policy."""
        suffix = protocol.keyword
        name: str = getattr(self, f"node_port_local_{suffix}" if local else f"node_port_{suffix}")
        return name

    @property
    def kinds(self) -> Mapping[str, SetKind]:
        """The kinds that the sets are created with, by name."""
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
_MAX_NAME = 31

SETS: Mapping[IPFamily, SetNames] = {
    IPFamily.IPV4: _NAMES,
    # kube-proxy inserts "6-" for IPv6 and truncates names that become too long.
    IPFamily.IPV6: SetNames(*(n.replace("KUBE-", "KUBE-6-", 1)[:_MAX_NAME] for n in _NAMES)),
}
SUBSTITUTES = {IPFamily.IPV4: "KUBE-IPVS-NEW", IPFamily.IPV6: "KUBE-6-IPVS-NEW"}
"""Temporary sets: filled, swapped with the set that they replace, and destroyed."""
KINDS: Mapping[str, SetKind] = {
    name: kind for names in SETS.values() for name, kind in names.kinds.items()
}
"""The kinds that the sets of both families are created with, by name."""

_UNLIMITED = 1 << 32


def capacity(kind: SetKind) -> int:
    """Return how many entries svcproxy puts into a set; a bitmap has space for all ports.

    The kernel counts entries by regions of the hash and may report a full set a little early.
    """
    return kind.maximum * 7 // 8 if kind.maximum else _UNLIMITED


def fits(present: SetKind, wanted: SetKind, entries: int) -> bool:
    """Whether a present set can hold a number of entries of the wanted kind."""
    return present.type == wanted.type and capacity(present) >= entries


def grown(kind: SetKind, entries: int) -> SetKind:
    """Return the kind with enough capacity: kube-proxy's, or at least twice the entries.

    Doubling keeps a growing set from being replaced again and again.
    """
    if entries <= capacity(kind):
        return kind
    return kind._replace(maximum=1 << (2 * entries - 1).bit_length())


def substitution(
    name: str, kind: SetKind, entries: Sequence[SetEntry], family: IPFamily
) -> Iterator[SetOperation]:
    """Replace a set by a new one with these entries; rules that refer to it see no gap.

    A set's capacity is fixed at its creation, and a set that rules refer to cannot be destroyed,
    but it can be swapped with another one atomically. The kernel refuses the swap if the present
    set is of another type or family and rules refer to it.
    """
    substitute = SUBSTITUTES[family]
    yield DestroySet(substitute)  # it exists if svcproxy was killed before the swap
    yield CreateSet(substitute, kind)
    if entries:
        yield AddEntries(substitute, kind, tuple(entries))
    yield SwapSets(substitute, name)
    yield DestroySet(substitute)


def substituted(operations: Iterable[SetOperation]) -> dict[str, list[str]]:
    """Return the sets that are replaced, by the name of their temporary set."""
    found: dict[str, list[str]] = {}
    for operation in operations:
        if isinstance(operation, SwapSets):
            found.setdefault(operation.name, []).append(operation.other)
    return found


# --- Rules that depend on settings alone --------------------------------------------------------


def _jump(table: str, source: str, target: str, note: str) -> Jump:
    return Jump(table, source, f"{comment(note)} -j {target}")


_FIREWALL = "kube-proxy firewall rules"
_ACCESS = "kubernetes ipvs access filter"

JUMPS = (
    _jump(NAT, "OUTPUT", SERVICES, "kubernetes service portals"),
    _jump(NAT, "PREROUTING", SERVICES, "kubernetes service portals"),
    _jump(NAT, "POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
    _jump(FILTER, "FORWARD", FORWARD, "kubernetes forwarding rules"),
    _jump(FILTER, "INPUT", NODE_PORT, "kubernetes health check rules"),
    _jump(FILTER, "INPUT", PROXY_FIREWALL, _FIREWALL),
    _jump(FILTER, "FORWARD", PROXY_FIREWALL, _FIREWALL),
    _jump(FILTER, "INPUT", IPVS_FILTER, _ACCESS),
    _jump(FILTER, "OUTPUT", IPVS_OUT_FILTER, _ACCESS),
)
"""In the order in which kube-proxy inserts them at the top of the built-in chains."""

_NEW = "-m conntrack --ctstate NEW"


def static_chains(settings: IpvsSettings) -> dict[str, dict[str, Rules]]:
    """Return the chains that depend on settings alone, by table."""
    sets = SETS[settings.family]
    nat: dict[str, Rules] = {
        MARK_MASQ: mark_rules(settings.mark),
        SERVICES: tuple(_services(settings, sets)),
        LOAD_BALANCER: (
            _match(sets.load_balancer_local, "dst,dst", "RETURN"),
            f"-j {MARK_MASQ}",
        ),
        NODE_PORT: tuple(_node_ports(sets)),
        SOURCES: (*_admit_sources(sets), "-j ACCEPT"),
        POSTROUTING: tuple(_postrouting(settings, sets)),
    }
    icmp = "icmp6" if settings.family is IPFamily.IPV6 else "icmp"
    reject = f"REJECT --reject-with {icmp}-port-unreachable"
    filters: dict[str, Rules] = {
        FORWARD: tuple(forward_rules(settings.mark, drop_invalid=settings.drop_invalid)),
        NODE_PORT: (
            _match(sets.health_check, "dst", "ACCEPT", "Kubernetes health check node port"),
        ),
        PROXY_FIREWALL: (f"{_NEW} -j {REFUSE}", _check_sources(sets)),
        SOURCE_RANGES: (*_admit_sources(sets), "-j DROP"),
        REFUSE: (
            _match(sets.drop, "dst,dst", "DROP", "has no local endpoints"),
            _match(sets.reject, "dst,dst", reject, "has no endpoints"),
        ),
        IPVS_FILTER: tuple(_protect_addresses(sets, reject)),
        IPVS_OUT_FILTER: (_check_sources(sets), f"-j {NODE_SOURCES}"),
    }
    return {NAT: nat, FILTER: filters}


def _match(name: str, fields: str, target: str, note: str = "", before: str = "") -> str:
    match = f"-m set --match-set {name} {fields}"
    return rule(before, comment(note) if note else "", match, f"-j {target}")


def _services(settings: IpvsSettings, sets: SetNames) -> Iterator[str]:
    """Yield the rules of KUBE-SERVICES, which the first packet of each connection traverses.

    Packets to a cluster IP are accepted early: the virtual server takes them without translation.
    A frontend that needs other endpoints than the virtual server at its address, or that has no
    virtual server, is dispatched by the chains of external addresses and node ports.
    """
    # IPVS cannot forward packets that this node sends from a loopback address.
    loopback = "127.0.0.0/8" if settings.family is IPFamily.IPV4 else "::1/128"
    yield f"-s {loopback} -j RETURN"
    note = "Kubernetes service load balancer ip + port for load balancer with sourceRange"
    yield _match(sets.firewall, "dst,dst", SOURCES, note)
    yield from _masquerade_cluster_ips(settings, sets)
    yield _match(sets.cluster_ip, "dst,dst", "ACCEPT")
    note = "Kubernetes service lb portal"
    yield _match(sets.load_balancer, "dst,dst", LOAD_BALANCER, note)
    for name in (sets.load_balancer_local, sets.external_ip, sets.external_ip_local):
        yield _match(name, "dst,dst", EXTERNAL)
    yield _match(sets.load_balancer, "dst,dst", "ACCEPT")
    for cidr in settings.node_port_ranges or ("",):
        destination = f"-d {format_cidr(cidr)}" if cidr else ""
        yield rule(destination, f"-m addrtype --dst-type LOCAL -j {NODE_PORT}")


def _masquerade_cluster_ips(settings: IpvsSettings, sets: SetNames) -> Iterator[str]:
    note = "Kubernetes service cluster ip + port for masquerade purpose"
    local = settings.local_traffic
    if settings.masquerade_all:
        yield _match(sets.cluster_ip, "dst,dst", MARK_MASQ, note)
        return
    if local and not local.matches_all:
        outside = f"! -s {format_cidr(local.source)}" if local.source else f"! -i {local.interface}"
        yield _match(sets.cluster_ip, "dst,dst", MARK_MASQ, note, outside)
        return
    # A cluster IP is local to the node, so the node's own packets have it as their source. Pods
    # could not reply to it.
    yield _match(sets.cluster_ip, "src,dst", MARK_MASQ, note)


def _node_ports(sets: SetNames) -> Iterator[str]:
    # Addresses of virtual servers are local to the node but serve no node ports.
    yield _match(sets.bound, "dst", "RETURN")
    for protocol in Protocol:
        before = f"-p {protocol.keyword}"
        fields = "dst,dst" if protocol is Protocol.SCTP else "dst"
        local = sets.node_port(protocol, local=True)
        name = protocol.value
        note = f"Kubernetes nodeport {name} port with externalTrafficPolicy=local"
        yield _match(local, fields, NODE_PORTS, note, before)
        yield _match(local, fields, "RETURN", "", before)
        note = f"Kubernetes nodeport {name} port for masquerade purpose"
        everywhere = sets.node_port(protocol, local=False)
        yield _match(everywhere, fields, MARK_MASQ, note, before)


def _postrouting(settings: IpvsSettings, sets: SetNames) -> Iterator[str]:
    # Hairpin: an endpoint that reaches itself through a Service must see another source address.
    note = "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose"
    yield _match(sets.loop_back, "dst,dst,src", "MASQUERADE", note)
    yield from masquerade_rules(settings.mark)


def _admit_sources(sets: SetNames) -> tuple[str, ...]:
    """Return from the chain for packets that the source ranges of a load balancer admit."""
    return (
        _match(sets.source_cidr, "dst,dst,src", "RETURN"),
        _match(sets.source_ip, "dst,dst,src", "RETURN"),
    )


def _check_sources(sets: SetNames) -> str:
    """Check new connections to load balancers with source ranges."""
    match = f"{_NEW} -m set --match-set {sets.firewall} dst,dst"
    return f"{match} -j {SOURCE_RANGES}"


def _protect_addresses(sets: SetNames, reject: str) -> Iterator[str]:
    """Yield the rules of KUBE-IPVS-FILTER: virtual servers' addresses serve only Service ports.

    The addresses are local to the node, so without these rules every program that listens on the
    node would be reachable there (kubernetes#72236). Packets that rules have translated belong to
    a Service port.
    """
    for name in (sets.load_balancer, sets.cluster_ip, sets.external_ip, sets.external_ip_local):
        yield _match(name, "dst,dst", "RETURN")
    yield _match(sets.health_check, "dst", "RETURN")
    yield "-m conntrack --ctstate DNAT -j RETURN"
    yield f"{_NEW} -m set --match-set {sets.bound} dst -j {reject}"
