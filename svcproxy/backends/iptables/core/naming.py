"""Chain names, as kube-proxy 1.36 computes them (``pkg/proxy/iptables/proxier.go``).

Both kube-proxy and svcproxy delete every nat chain that has one of the five per-Service prefixes
and is not in their desired state. Therefore the chains that only svcproxy has, of dispatch trees
and balance trees, carry one of these prefixes as well. Chain names have at most 28 characters.
"""

from svcproxy.backends.xtables.core.hashing import hash16
from svcproxy.model.names import ServicePortName

SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
NODE_PORTS = "KUBE-NODEPORTS"
POSTROUTING = "KUBE-POSTROUTING"
MARK_MASQ = "KUBE-MARK-MASQ"
FORWARD = "KUBE-FORWARD"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
KUBELET_FIREWALL = "KUBE-FIREWALL"
CANARY = "KUBE-PROXY-CANARY"

CLUSTER_PREFIX = "KUBE-SVC-"
LOCAL_PREFIX = "KUBE-SVL-"
FIREWALL_PREFIX = "KUBE-FW-"
EXTERNAL_PREFIX = "KUBE-EXT-"
ENDPOINT_PREFIX = "KUBE-SEP-"

CLUSTER_IPS = "KUBE-SVC-CLUSTER-IPS"
"""The root of the dispatch tree of cluster IPs."""
FROM_OUTSIDE = "KUBE-SVC-FROM-OUTSIDE"
"""Enters the tree of cluster IPs with the masquerade mark set."""

SERVICE_PREFIXES = (
    CLUSTER_PREFIX,
    LOCAL_PREFIX,
    FIREWALL_PREFIX,
    EXTERNAL_PREFIX,
    ENDPOINT_PREFIX,
)


def endpoint_chain(name: ServicePortName, target: str) -> str:
    """Return the KUBE-SEP chain of an endpoint.

    Args:
        name: the Service port.
        target: ``address:port`` of the endpoint, in the format of ``--to-destination``.
    """
    return ENDPOINT_PREFIX + hash16(f"{name}{name.protocol.keyword}{target}")


def is_service_chain(chain: str) -> bool:
    """Whether a nat chain is a per-Service chain of svcproxy or kube-proxy.

    Neither creates names with other characters than letters, digits and hyphens. A restore input
    could not even name some such chains of other programs.
    """
    return chain.startswith(SERVICE_PREFIXES) and is_plain(chain)


def is_plain(chain: str) -> bool:
    """Whether a chain name has only letters, digits and hyphens."""
    return chain.isascii() and chain.replace("-", "").isalnum()
