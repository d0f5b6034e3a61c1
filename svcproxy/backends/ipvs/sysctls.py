"""The kernel parameters that IPVS mode needs.

Those below ``net/ipv4/vs`` exist once the module ``ip_vs`` is loaded. kube-proxy 1.36 sets the same
ones (``NewProxier`` in ``pkg/proxy/ipvs``).
"""

from collections.abc import Iterator

from svcproxy.model.sysctl import Sysctl

_REUSE = "net/ipv4/vs/conn_reuse_mode"
_REUSE_FIXED = (5, 9)
"""Since Linux 5.9 a connection from a reused port is not delayed by a second (35dfb013149f).
kube-proxy leaves the parameter alone from that version on."""


def wanted(kernel: str, *, strict_arp: bool) -> Iterator[Sysctl]:
    """Yield the parameters to set.

    Args:
        kernel: the kernel's release, such as ``5.15.0-91-generic``.
        strict_arp: do not answer ARP requests for addresses of ``kube-ipvs0``
            (``--ipvs-strict-arp``).
    """
    yield Sysctl("net/ipv4/vs/conntrack", 1, "masquerading and source checks do not work")
    if version(kernel) < _REUSE_FIXED:
        effect = (
            "connections from a port just used before wait a second, or go to a removed endpoint"
        )
        yield Sysctl(_REUSE, 0, effect)
    effect = "clients stay on removed endpoints"
    yield Sysctl("net/ipv4/vs/expire_nodest_conn", 1, effect)
    effect = "clients with session affinity stay on terminating endpoints"
    yield Sysctl("net/ipv4/vs/expire_quiescent_template", 1, effect)
    yield Sysctl("net/ipv4/ip_forward", 1, "pods on other nodes cannot be reached")
    if strict_arp:
        effect = "this node answers ARP requests for virtual addresses on all of its interfaces"
        yield Sysctl("net/ipv4/conf/all/arp_ignore", 1, effect)
        yield Sysctl("net/ipv4/conf/all/arp_announce", 2, effect)


def version(kernel: str) -> tuple[int, int]:
    """Return the first two numbers of a kernel release; (0, 0) if it has none."""
    major, _, rest = kernel.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)
