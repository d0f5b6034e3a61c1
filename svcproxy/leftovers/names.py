"""How kube-proxy's and our own things are recognised, besides iptables' chains.

Source: ``pkg/proxy/ipvs/ipset.go`` and ``pkg/proxy/nftables/proxier.go``, Kubernetes 1.36.
"""

from svcproxy.backends.iptables.naming import ENDPOINT_PREFIX

KUBE_PROXY_TABLE = "kube-proxy"
"""kube-proxy's nftables table, in the families ``ip`` and ``ip6``."""

DUMMY_DEVICE = "kube-ipvs0"
"""The link that holds the virtual servers' addresses, in both families."""

_LONGEST_SET_NAME = 31
_IPVS_SETS = (
    "KUBE-LOOP-BACK",
    "KUBE-CLUSTER-IP",
    "KUBE-EXTERNAL-IP",
    "KUBE-EXTERNAL-IP-LOCAL",
    "KUBE-LOAD-BALANCER",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-LOCAL",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR",
    "KUBE-NODE-PORT-TCP",
    "KUBE-NODE-PORT-LOCAL-TCP",
    "KUBE-NODE-PORT-UDP",
    "KUBE-NODE-PORT-LOCAL-UDP",
    "KUBE-NODE-PORT-SCTP-HASH",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
    "KUBE-HEALTH-CHECK-NODE-PORT",
    "KUBE-IPVS-IPS",
    # our own
    "KUBE-IPVS-REJECT",
    "KUBE-IPVS-DROP",
)
# Those for IPv6 have another prefix and are cut to the longest name that the kernel takes.
IPVS_SETS = frozenset(_IPVS_SETS) | {
    name.replace("KUBE-", "KUBE-6-", 1)[:_LONGEST_SET_NAME] for name in _IPVS_SETS
}
"""The ipsets of IPVS mode, kube-proxy's and ours, of both families."""


def is_affinity_set(name: str) -> bool:
    """Whether an ipset is one in which our iptables mode remembers clients."""
    return name.startswith(ENDPOINT_PREFIX)
