"""The chains that do not belong to a Service port, and the jumps that lead into ours.

The jumps have kube-proxy's texts (``pkg/proxy/ipvs/proxier.go``, 1.36), because its clean-up and
its take-over recognise them by those; the rules' texts are free, for it flushes the chains.
"""

from collections.abc import Iterator

from svcproxy.backends.ipvs import naming
from svcproxy.backends.ipvs.naming import SETS, SetNames
from svcproxy.backends.ipvs.settings import IpvsSettings
from svcproxy.backends.xtables.core.masquerade import forward_rules, mark_rules, masquerade_rules
from svcproxy.backends.xtables.core.rule_text import (
    FILTER,
    NAT,
    Rules,
    comment,
    format_cidr,
    rule,
)
from svcproxy.backends.xtables.core.tableplan import Jump
from svcproxy.model.names import IPFamily, Protocol

LISTS = {
    NAT: (naming.EXTERNAL, naming.NODE_PORTS),
    FILTER: (naming.NODE_SOURCES,),
}
"""The chains that hold rules of Service ports, by table; their order does not matter."""


def _jump(table: str, source: str, target: str, note: str) -> Jump:
    return Jump(table, source, f"{comment(note)} -j {target}")


_FIREWALL = "kube-proxy firewall rules"
_ACCESS = "kubernetes ipvs access filter"

JUMPS = (
    _jump(NAT, "OUTPUT", naming.SERVICES, "kubernetes service portals"),
    _jump(NAT, "PREROUTING", naming.SERVICES, "kubernetes service portals"),
    _jump(NAT, "POSTROUTING", naming.POSTROUTING, "kubernetes postrouting rules"),
    _jump(FILTER, "FORWARD", naming.FORWARD, "kubernetes forwarding rules"),
    _jump(FILTER, "INPUT", naming.NODE_PORT, "kubernetes health check rules"),
    _jump(FILTER, "INPUT", naming.PROXY_FIREWALL, _FIREWALL),
    _jump(FILTER, "FORWARD", naming.PROXY_FIREWALL, _FIREWALL),
    _jump(FILTER, "INPUT", naming.IPVS_FILTER, _ACCESS),
    _jump(FILTER, "OUTPUT", naming.IPVS_OUT_FILTER, _ACCESS),
)
"""In the order in which kube-proxy prepends them."""

_NEW = "-m conntrack --ctstate NEW"


def static_chains(settings: IpvsSettings) -> dict[str, dict[str, Rules]]:
    """The chains that depend on settings alone, by table."""
    sets = SETS[settings.family]
    nat: dict[str, Rules] = {
        naming.MARK_MASQ: mark_rules(settings.mark),
        naming.SERVICES: tuple(_services(settings, sets)),
        naming.LOAD_BALANCER: (
            _match(sets.load_balancer_local, "dst,dst", "RETURN"),
            f"-j {naming.MARK_MASQ}",
        ),
        naming.NODE_PORT: tuple(_node_ports(sets)),
        naming.SOURCES: (*_allowed(sets), "-j ACCEPT"),
        naming.POSTROUTING: tuple(_postrouting(settings, sets)),
    }
    unreachable = "icmp6" if settings.family is IPFamily.IPV6 else "icmp"
    reject = f"REJECT --reject-with {unreachable}-port-unreachable"
    filters: dict[str, Rules] = {
        naming.FORWARD: tuple(forward_rules(settings.mark, drop_invalid=settings.drop_invalid)),
        naming.NODE_PORT: (
            _match(sets.health_check, "dst", "ACCEPT", "Kubernetes health check node port"),
        ),
        naming.PROXY_FIREWALL: (f"{_NEW} -j {naming.REFUSE}", _check_sources(sets)),
        naming.SOURCE_RANGES: (*_allowed(sets), "-j DROP"),
        naming.REFUSE: (
            _match(sets.drop, "dst,dst", "DROP", "has no local endpoints"),
            _match(sets.reject, "dst,dst", reject, "has no endpoints"),
        ),
        naming.IPVS_FILTER: tuple(_access(sets, reject)),
        naming.IPVS_OUT_FILTER: (_check_sources(sets), f"-j {naming.NODE_SOURCES}"),
    }
    return {NAT: nat, FILTER: filters}


def _match(name: str, fields: str, target: str, note: str = "", before: str = "") -> str:
    match = f"-m set --match-set {name} {fields}"
    return rule(before, comment(note) if note else "", match, f"-j {target}")


def _services(settings: IpvsSettings, sets: SetNames) -> Iterator[str]:
    """KUBE-SERVICES, for the first packet of each connection.

    What is for a cluster IP goes no further: the virtual server takes it as it is. What needs
    another list of endpoints than the virtual server at its address has, or has none there, is
    found in the chains of external addresses and node ports.
    """
    # What this node sends from a loopback address could not be sent on by IPVS.
    loopback = "127.0.0.0/8" if settings.family is IPFamily.IPV4 else "::1/128"
    yield f"-s {loopback} -j RETURN"
    note = "Kubernetes service load balancer ip + port for load balancer with sourceRange"
    yield _match(sets.firewall, "dst,dst", naming.SOURCES, note)
    yield from _masquerade_cluster_ips(settings, sets)
    yield _match(sets.cluster_ip, "dst,dst", "ACCEPT")
    note = "Kubernetes service lb portal"
    yield _match(sets.load_balancer, "dst,dst", naming.LOAD_BALANCER, note)
    for name in (sets.load_balancer_local, sets.external_ip, sets.external_ip_local):
        yield _match(name, "dst,dst", naming.EXTERNAL)
    yield _match(sets.load_balancer, "dst,dst", "ACCEPT")
    for cidr in settings.node_port_ranges or ("",):
        destination = f"-d {format_cidr(cidr)}" if cidr else ""
        yield rule(destination, f"-m addrtype --dst-type LOCAL -j {naming.NODE_PORT}")


def _masquerade_cluster_ips(settings: IpvsSettings, sets: SetNames) -> Iterator[str]:
    note = "Kubernetes service cluster ip + port for masquerade purpose"
    local = settings.local_traffic
    if settings.masquerade_all:
        yield _match(sets.cluster_ip, "dst,dst", naming.MARK_MASQ, note)
        return
    if local and not local.matches_all:
        outside = f"! -s {format_cidr(local.source)}" if local.source else f"! -i {local.interface}"
        yield _match(sets.cluster_ip, "dst,dst", naming.MARK_MASQ, note, outside)
        return
    # The node takes a cluster IP for its own address and sends from it; no pod could answer.
    yield _match(sets.cluster_ip, "src,dst", naming.MARK_MASQ, note)


def _node_ports(sets: SetNames) -> Iterator[str]:
    # The addresses of virtual servers are local, too, but no node port is served there.
    yield _match(sets.bound, "dst", "RETURN")
    for protocol in Protocol:
        before = f"-p {protocol.keyword}"
        fields = "dst,dst" if protocol is Protocol.SCTP else "dst"
        local = sets.node_port(protocol, local=True)
        name = protocol.value
        note = f"Kubernetes nodeport {name} port with externalTrafficPolicy=local"
        yield _match(local, fields, naming.NODE_PORTS, note, before)
        yield _match(local, fields, "RETURN", "", before)
        note = f"Kubernetes nodeport {name} port for masquerade purpose"
        everywhere = sets.node_port(protocol, local=False)
        yield _match(everywhere, fields, naming.MARK_MASQ, note, before)


def _postrouting(settings: IpvsSettings, sets: SetNames) -> Iterator[str]:
    # An endpoint that was balanced to itself must see another source than itself.
    note = "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose"
    yield _match(sets.loop_back, "dst,dst,src", "MASQUERADE", note)
    yield from masquerade_rules(settings.mark)


def _allowed(sets: SetNames) -> tuple[str, ...]:
    """Pass what the source ranges of a load balancer allow."""
    return (
        _match(sets.source_cidr, "dst,dst,src", "RETURN"),
        _match(sets.source_ip, "dst,dst,src", "RETURN"),
    )


def _check_sources(sets: SetNames) -> str:
    """Lead new connections to load balancers with source ranges to where those are checked."""
    match = f"{_NEW} -m set --match-set {sets.firewall} dst,dst"
    return f"{match} -j {naming.SOURCE_RANGES}"


def _access(sets: SetNames, reject: str) -> Iterator[str]:
    """KUBE-IPVS-FILTER: an address of a virtual server leads to Services' ports only.

    It is local, so that all that listens on the node would be reachable there
    (kubernetes#72236). What our own rules have sent there is a Service's.
    """
    for name in (sets.load_balancer, sets.cluster_ip, sets.external_ip, sets.external_ip_local):
        yield _match(name, "dst,dst", "RETURN")
    yield _match(sets.health_check, "dst", "RETURN")
    yield "-m conntrack --ctstate DNAT -j RETURN"
    yield f"{_NEW} -m set --match-set {sets.bound} dst -j {reject}"
