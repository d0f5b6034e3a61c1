"""How kube-proxy's and our own things are recognised, besides iptables' chains. Pure."""

from svcproxy.backends.iptables.core.naming import ENDPOINT_PREFIX
from svcproxy.backends.ipvs.naming import SETS, SUBSTITUTES

KUBE_PROXY_TABLE = "kube-proxy"
"""kube-proxy's nftables table, in the families ``ip`` and ``ip6``."""

IPVS_SETS = frozenset(name for names in (*SETS.values(), SUBSTITUTES.values()) for name in names)
"""The ipsets of IPVS mode, ours and kube-proxy's, of both families."""


def is_affinity_set(name: str) -> bool:
    """Whether an ipset is one in which our iptables mode remembers clients."""
    return name.startswith(ENDPOINT_PREFIX)
