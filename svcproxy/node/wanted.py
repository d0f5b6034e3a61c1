"""Which kernel parameters the flags ask for. Pure.

kube-proxy's rules (``pkg/proxy/conntrack/sysctls.go``, Kubernetes 1.36): a value that differs is
replaced, be it lower or higher; the table of connections is only ever made larger.
"""

from collections.abc import Iterator
from typing import NamedTuple

from svcproxy.config import Config

MOST_CONNECTIONS = 1 << 20
"""The limit that is computed from the number of CPUs ends here; each entry takes some 300 bytes."""
PER_BUCKET = 4
"""Entries in each bucket of the hash table, when it is full."""

CONNTRACK_MAX = "net/netfilter/nf_conntrack_max"
TCP_BE_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"


class Parameter(NamedTuple):
    """A kernel parameter: its path below ``/proc/sys``, its value, what its lack means."""

    path: str
    value: int
    effect: str

    @property
    def name(self) -> str:
        """Its name as sysctl spells it."""
        return self.path.replace("/", ".")


def connections(config: Config, cpus: int) -> int:
    """How many connections the node should be able to track; 0 to leave that alone."""
    if config.conntrack_max_per_core <= 0:
        return 0
    scaled = config.conntrack_max_per_core * cpus
    if scaled > MOST_CONNECTIONS:
        return MOST_CONNECTIONS
    return max(scaled, config.conntrack_min)


def parameters(config: Config, cpus: int) -> Iterator[Parameter]:
    """What the flags ask for; parameters that they leave alone are not among them.

    Args:
        config: the flags.
        cpus: how many CPUs the node has.
    """
    if limit := connections(config, cpus):
        yield Parameter(CONNTRACK_MAX, limit, "new connections are dropped when more are tracked")
    for name, seconds in (
        ("tcp_timeout_established", config.conntrack_tcp_timeout_established),
        ("tcp_timeout_close_wait", config.conntrack_tcp_timeout_close_wait),
        ("udp_timeout", config.conntrack_udp_timeout),
        ("udp_timeout_stream", config.conntrack_udp_timeout_stream),
    ):
        if seconds > 0:
            path = f"net/netfilter/nf_conntrack_{name}"
            yield Parameter(path, max(1, int(seconds)), "connections are forgotten after another")
    if config.conntrack_tcp_be_liberal:
        yield Parameter(TCP_BE_LIBERAL, 1, "packets outside the TCP window are INVALID")
