"""The chains that do not belong to a Service, and the jumps that lead into ours.

All texts are kube-proxy's (``pkg/proxy/iptables/proxier.go``, 1.36), because its clean-up and
its take-over recognise the jumps by their full text.
"""

from collections.abc import Iterator

from svcproxy.backends.iptables.core import naming
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.xtables.core.masquerade import forward_rules, mark_rules, masquerade_rules
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, Rules, comment, rule
from svcproxy.backends.xtables.core.tableplan import Jump
from svcproxy.model.counters import INVALID_DROPPED, LOCALHOST_ACCEPTED
from svcproxy.model.names import IPFamily

LISTS = (
    naming.SERVICES,
    naming.EXTERNAL_SERVICES,
    naming.NODE_PORTS,
    naming.PROXY_FIREWALL,
)
"""The chains of the filter table that hold rules of Services; their order does not matter."""


def _jump(table: str, source: str, target: str, note: str, *, new: bool) -> Jump:
    state = "-m conntrack --ctstate NEW" if new else ""
    return Jump(table, source, rule(state, comment(note) if note else "", f"-j {target}"))


_PORTALS = "kubernetes service portals"
_EXTERNAL = "kubernetes externally-visible service portals"
_FIREWALL = "kubernetes load balancer firewall"

JUMPS = (
    _jump(FILTER, "INPUT", naming.EXTERNAL_SERVICES, _EXTERNAL, new=True),
    _jump(FILTER, "FORWARD", naming.EXTERNAL_SERVICES, _EXTERNAL, new=True),
    _jump(FILTER, "INPUT", naming.NODE_PORTS, "kubernetes health check service ports", new=False),
    _jump(FILTER, "FORWARD", naming.SERVICES, _PORTALS, new=True),
    _jump(FILTER, "OUTPUT", naming.SERVICES, _PORTALS, new=True),
    _jump(FILTER, "FORWARD", naming.FORWARD, "kubernetes forwarding rules", new=False),
    _jump(FILTER, "INPUT", naming.PROXY_FIREWALL, _FIREWALL, new=True),
    _jump(FILTER, "OUTPUT", naming.PROXY_FIREWALL, _FIREWALL, new=True),
    _jump(FILTER, "FORWARD", naming.PROXY_FIREWALL, _FIREWALL, new=True),
    _jump(NAT, "OUTPUT", naming.SERVICES, _PORTALS, new=False),
    _jump(NAT, "PREROUTING", naming.SERVICES, _PORTALS, new=False),
    _jump(NAT, "POSTROUTING", naming.POSTROUTING, "kubernetes postrouting rules", new=False),
)
"""In the order in which kube-proxy prepends them."""

KUBELET_JUMPS = (
    _jump(FILTER, "INPUT", naming.KUBELET_FIREWALL, "", new=False),
    _jump(FILTER, "OUTPUT", naming.KUBELET_FIREWALL, "", new=False),
)
"""Kubelet lays the same ones; they stay when everything else of ours is cleaned up."""


def static_chains(settings: IptablesSettings) -> dict[str, dict[str, Rules]]:
    """The chains that depend on settings alone, by table."""
    filters: dict[str, Rules] = {naming.FORWARD: tuple(_forward(settings))}
    if _serves_localhost(settings):
        # Without it, route_localnet would let neighbours reach what listens on 127.0.0.1
        # (CVE-2020-8558). Kubelet keeps the same rule.
        note = comment("block incoming localnet connections")
        state = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"
        filters[naming.KUBELET_FIREWALL] = (
            f"! -s 127.0.0.0/8 -d 127.0.0.0/8 {note} {state} -j DROP",
        )
    nat: dict[str, Rules] = {
        naming.MARK_MASQ: mark_rules(settings.mark),
        naming.POSTROUTING: tuple(_postrouting(settings)),
    }
    if _masquerades_from_outside(settings):
        nat[naming.FROM_OUTSIDE] = (
            f"-j {naming.MARK_MASQ}",
            f"-j {naming.CLUSTER_IPS}",
            # It was for no cluster IP: as if nothing had been.
            f"-j MARK --set-xmark 0x0/{settings.mark}",
        )
    return {FILTER: filters, NAT: nat}


def _forward(settings: IptablesSettings) -> Iterator[str]:
    count = nfacct_match(INVALID_DROPPED) if settings.accounting else ""
    yield from forward_rules(settings.mark, drop_invalid=settings.drop_invalid, count=count)
    if settings.hairpin_match:
        # kube-proxy marks an endpoint's packets to itself and so lets them pass above; ours
        # are recognised by their addresses.
        yield f"{hairpin_match(settings.family)} -j ACCEPT"


def _postrouting(settings: IptablesSettings) -> Iterator[str]:
    if settings.hairpin_match:
        # An endpoint that was balanced to itself must see another source than itself.
        yield f"{hairpin_match(settings.family)} -j {naming.MARK_MASQ}"
    if settings.accounting and _serves_localhost(settings):
        # kube-proxy counts with a rule for each node port. What comes from a loopback address and
        # was sent to an endpoint is always masqueraded, and nothing else that was sent there is.
        marked_packets = f"-m mark --mark {settings.mark}/{settings.mark}"
        first = "-m conntrack --ctorigdst 127.0.0.0/8"
        yield f"{marked_packets} {first} {nfacct_match(LOCALHOST_ACCEPTED)}"
    yield from masquerade_rules(settings.mark)


def nfacct_match(name: str) -> str:
    """The match that counts a packet in an accounting object, and always matches."""
    return f"-m nfacct --nfacct-name {name}"


def _serves_localhost(settings: IptablesSettings) -> bool:
    return settings.family is IPFamily.IPV4 and settings.localhost_node_ports


def _masquerades_from_outside(settings: IptablesSettings) -> bool:
    local = settings.local_traffic
    return settings.masquerade_all or (bool(local) and not local.everybody)


def cluster_ip_rules(settings: IptablesSettings) -> Rules:
    """The rules that begin KUBE-SERVICES: cluster IPs, from outside and from inside.

    kube-proxy masquerades what comes to a cluster IP from outside the cluster with one rule in
    each Service's chain. Here such packets are marked before they enter the tree of cluster IPs
    and unmarked when they fall out of it: two rules instead of one for each Service. A packet
    that carries the mark already keeps it by staying out of that chain.
    """
    jumps = []
    if _masquerades_from_outside(settings):
        outside = ""
        if not settings.masquerade_all:
            local = settings.local_traffic
            outside = f"! -s {local.source}" if local.source else f"! -i {local.interface}"
        note = comment("masquerade traffic to cluster IPs from outside the cluster")
        unmarked = f"-m mark ! --mark {settings.mark}/{settings.mark}"
        jumps.append(rule(outside, note, unmarked, f"-j {naming.FROM_OUTSIDE}"))
    jumps.append(f"{comment('kubernetes cluster IPs')} -j {naming.CLUSTER_IPS}")
    return tuple(jumps)


def node_port_rules(settings: IptablesSettings) -> Rules:
    """The rules that end KUBE-SERVICES: what is for the node itself goes to KUBE-NODEPORTS.

    With ranges, the kernel is asked for "a local address within the range" instead of being
    given the node's addresses one by one, so addresses may come and go without a sync.
    """
    note = comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
    tail = f"{note} -m addrtype --dst-type LOCAL -j {naming.NODE_PORTS}"
    loopback = "127.0.0.0/8" if settings.family is IPFamily.IPV4 else "::1/128"
    served = _serves_localhost(settings)
    if not settings.node_port_ranges:
        return (tail if served else f"! -d {loopback} {tail}",)
    ranges = [r for r in settings.node_port_ranges if served or not _is_loopback(r)]
    return tuple(f"-d {r} {tail}" for r in ranges)


def _is_loopback(cidr: str) -> bool:
    return cidr.startswith("127.") or cidr in {"::1/128", "::1"}


def hairpin_match(family: IPFamily) -> str:
    """The match for translated packets whose source and destination are the same address.

    One classic BPF program for all endpoints, in place of one rule or chain for each: it
    compares the two addresses in the IP header, four bytes at a time. After DNAT they are equal
    exactly when an endpoint was sent to itself.
    """
    source, destination, words = (12, 16, 1) if family is IPFamily.IPV4 else (8, 24, 4)
    code: list[str] = []
    for word in range(words):
        misses = 4 * (words - word) - 3
        code.append(f"32 0 0 {source + 4 * word}")  # A = source word
        code.append("7 0 0 0")  # X = A
        code.append(f"32 0 0 {destination + 4 * word}")  # A = destination word
        code.append(f"29 0 {misses} 0")  # unless A == X, jump to the last instruction
    code.append("6 0 0 65535")  # match
    code.append("6 0 0 0")  # no match
    bytecode = ",".join((str(len(code)), *code))
    return f'-m conntrack --ctstate DNAT -m bpf --bytecode "{bytecode}"'
