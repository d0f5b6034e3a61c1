"""Chain names, as kube-proxy 1.36 computes them (``pkg/proxy/iptables/proxier.go``).

kube-proxy deletes every nat chain with one of the five per-service prefixes that it did not
write itself, and so do we; chains of our own (dispatch and balancing) therefore carry one of
those prefixes too. Chain names have at most 28 characters.
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
"""The dispatch tree of cluster IPs."""
FROM_OUTSIDE = "KUBE-SVC-FROM-OUTSIDE"
"""The same tree, entered with the masquerade mark set."""

SERVICE_PREFIXES = (
    CLUSTER_PREFIX,
    LOCAL_PREFIX,
    FIREWALL_PREFIX,
    EXTERNAL_PREFIX,
    ENDPOINT_PREFIX,
)


def endpoint_chain(name: ServicePortName, target: str) -> str:
    """The KUBE-SEP chain of an endpoint; ``target`` is ``address:port`` as DNAT spells it."""
    return ENDPOINT_PREFIX + hash16(f"{name}{name.protocol.keyword}{target}")


def is_service_chain(chain: str) -> bool:
    """Whether a nat chain belongs to a Service, ours or kube-proxy's.

    Neither makes names with other characters than these; no restore input could name some of them.
    """
    return chain.startswith(SERVICE_PREFIXES) and is_plain(chain)


def is_plain(chain: str) -> bool:
    """Whether a name has only letters, digits and hyphens."""
    return chain.isascii() and chain.replace("-", "").isalnum()
