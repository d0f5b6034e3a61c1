"""The settings of the iptables backend."""

from svcproxy.backends.settings import Settings


class IptablesSettings(Settings, frozen=True, gc=False):
    """Adds what concerns iptables alone.

    Attributes:
        drop_invalid: drop forwarded packets that conntrack calls INVALID (kubernetes#74839).
        hairpin_match: the kernel has ``xt_bpf``, with which one rule recognises an endpoint's
            packets to itself; without it every endpoint needs a chain of its own.
        affinity_sets: the kernel has ipset's ``hash:ip`` and ``xt_set``, with which an endpoint
            remembers 65,536 clients; without them ``xt_recent`` does it for kube-proxy's 100.
        accounting: the kernel has ``xt_nfacct``, and the accounting objects of
            ``svcproxy.model.counters`` are there.
    """

    drop_invalid: bool = True
    hairpin_match: bool = True
    affinity_sets: bool = True
    accounting: bool = False
