"""The kernel parameters for connection tracking that the flags ask for.

They follow kube-proxy's rules (``pkg/proxy/conntrack/sysctls.go``, Kubernetes 1.36): a parameter
with another value is set, whether that value is lower or higher. Only the hash table of conntrack
is never made smaller.
"""

from collections.abc import Iterator

from svcproxy.config import Config
from svcproxy.model.sysctl import TCP_BE_LIBERAL, Sysctl

MAX_CONNECTIONS = 1 << 20
"""The highest limit that is computed from the number of CPUs; an entry takes about 300 bytes."""
ENTRIES_PER_BUCKET = 4
"""Entries in each bucket of a full hash table."""

CONNTRACK_MAX = "net/netfilter/nf_conntrack_max"


def max_connections(config: Config, cpus: int) -> int:
    """Return how many connections the node should be able to track; 0 leaves the limit alone."""
    if config.conntrack_max_per_core <= 0:
        return 0
    scaled = config.conntrack_max_per_core * cpus
    if scaled > MAX_CONNECTIONS:
        return MAX_CONNECTIONS
    return max(scaled, config.conntrack_min)


def conntrack_parameters(config: Config, cpus: int) -> Iterator[Sysctl]:
    """Yield the parameters to set; those that the flags leave alone are not among them.

    Args:
        config: the flags.
        cpus: the number of CPUs of the node.
    """
    if limit := max_connections(config, cpus):
        yield Sysctl(CONNTRACK_MAX, limit, "new connections are dropped when more are tracked")
    for name, seconds in (
        ("tcp_timeout_established", config.conntrack_tcp_timeout_established),
        ("tcp_timeout_close_wait", config.conntrack_tcp_timeout_close_wait),
        ("udp_timeout", config.conntrack_udp_timeout),
        ("udp_timeout_stream", config.conntrack_udp_timeout_stream),
    ):
        if seconds > 0:
            path = f"net/netfilter/nf_conntrack_{name}"
            yield Sysctl(path, max(1, int(seconds)), "conntrack entries expire after another time")
    if config.conntrack_tcp_be_liberal:
        yield Sysctl(TCP_BE_LIBERAL, 1, "packets outside the TCP window are INVALID")
