"""The chains that are independent of Services, and the jumps from built-in chains.

The texts are those of kube-proxy (``pkg/proxy/iptables/proxier.go``, 1.36), because kube-proxy
compares the full text of a jump when it cleans up or takes over.
"""

from collections.abc import Iterator

from svcproxy.backends.iptables.core import naming
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.xtables.core.masquerade import forward_rules, mark_rules, masquerade_rules
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, Rules, comment, rule
from svcproxy.backends.xtables.core.tableplan import Jump
from svcproxy.model.counters import INVALID_DROPPED, LOCALHOST_ACCEPTED
from svcproxy.model.names import IPFamily

SHARED_CHAINS = (
    naming.SERVICES,
    naming.EXTERNAL_SERVICES,
    naming.NODE_PORTS,
    naming.PROXY_FIREWALL,
)
"""The shared chains of the filter table; the order of their rules does not matter."""


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
"""The jumps, in the order in which kube-proxy inserts them at the top of built-in chains."""

KUBELET_JUMPS = (
    _jump(FILTER, "INPUT", naming.KUBELET_FIREWALL, "", new=False),
    _jump(FILTER, "OUTPUT", naming.KUBELET_FIREWALL, "", new=False),
)
"""Kubelet installs the same jumps, so clean-up keeps them."""


def static_chains(settings: IptablesSettings) -> dict[str, dict[str, Rules]]:
    """Return the chains that depend only on the settings, by table."""
    filters: dict[str, Rules] = {naming.FORWARD: tuple(_forward(settings))}
    if _serves_localhost(settings):
        # route_localnet alone would let hosts on the same network reach servers that listen on
        # 127.0.0.1 (CVE-2020-8558). Kubelet installs the same rule.
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
            # The destination was no cluster IP: clear the mark.
            f"-j MARK --set-xmark 0x0/{settings.mark}",
        )
    return {FILTER: filters, NAT: nat}


def _forward(settings: IptablesSettings) -> Iterator[str]:
    count = nfacct_match(INVALID_DROPPED) if settings.accounting else ""
    yield from forward_rules(settings.mark, drop_invalid=settings.drop_invalid, count=count)
    if settings.hairpin_match:
        # kube-proxy marks hairpin packets, so the rule above accepts them. svcproxy recognises
        # them by their addresses instead.
        yield f"{hairpin_match(settings.family)} -j ACCEPT"


def _postrouting(settings: IptablesSettings) -> Iterator[str]:
    if settings.hairpin_match:
        # A hairpin connection must reach the endpoint with another source address than its own.
        yield f"{hairpin_match(settings.family)} -j {naming.MARK_MASQ}"
    if settings.accounting and _serves_localhost(settings):
        # kube-proxy counts with one rule per node port. One rule is enough here: connections to
        # node ports on a loopback address are always marked, and no other packets sent there are.
        marked_packets = f"-m mark --mark {settings.mark}/{settings.mark}"
        loopback = "-m conntrack --ctorigdst 127.0.0.0/8"
        yield f"{marked_packets} {loopback} {nfacct_match(LOCALHOST_ACCEPTED)}"
    yield from masquerade_rules(settings.mark)


def nfacct_match(name: str) -> str:
    """Return a match that is always true and counts the packet in an nfacct object."""
    return f"-m nfacct --nfacct-name {name}"


def _serves_localhost(settings: IptablesSettings) -> bool:
    return settings.family is IPFamily.IPV4 and settings.localhost_node_ports


def _masquerades_from_outside(settings: IptablesSettings) -> bool:
    local = settings.local_traffic
    return settings.masquerade_all or (bool(local) and not local.matches_all)


def cluster_ip_rules(settings: IptablesSettings) -> Rules:
    """Return the first rules of KUBE-SERVICES, which jump to the tree of cluster IPs.

    kube-proxy masquerades packets from outside the cluster to a cluster IP with one rule per
    Service. svcproxy needs two rules in total: it marks such packets before they enter the tree of
    cluster IPs, and clears the mark if no cluster IP matches. Packets that have the mark already
    skip KUBE-SVC-FROM-OUTSIDE, so they keep it.
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
    """Return the last rules of KUBE-SERVICES: packets to a node address jump to KUBE-NODEPORTS.

    With ``node_port_ranges``, the rules match "a local address within the range" instead of listing
    the node's addresses, so addresses can be added and removed without a sync.
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
    """Return the match for hairpin packets: after DNAT, source and destination are the same.

    kube-proxy needs a rule in a chain per endpoint. One classic BPF program serves all endpoints:
    it compares the two addresses in the IP header, four bytes at a time.
    """
    source, destination, words = (12, 16, 1) if family is IPFamily.IPV4 else (8, 24, 4)
    code: list[str] = []
    for word in range(words):
        misses = 4 * (words - word) - 3
        code.append(f"32 0 0 {source + 4 * word}")  # A = source word
        code.append("7 0 0 0")  # X = A
        code.append(f"32 0 0 {destination + 4 * word}")  # A = destination word
        code.append(f"29 0 {misses} 0")  # if A != X, jump to the last instruction
    code.append("6 0 0 65535")  # match
    code.append("6 0 0 0")  # no match
    bytecode = ",".join((str(len(code)), *code))
    return f'-m conntrack --ctstate DNAT -m bpf --bytecode "{bytecode}"'
