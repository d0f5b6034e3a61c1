"""A kernel parameter and the value that svcproxy wants it to have."""

from typing import NamedTuple

TCP_BE_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
"""Whether conntrack accepts TCP packets outside the window."""


class Sysctl(NamedTuple):
    """A kernel parameter with an integer value.

    Attributes:
        path: its path below ``/proc/sys``, for example ``net/ipv4/ip_forward``.
        value: the value to set.
        effect: what does not work while the parameter has another value.
        remedy: what the operator can do if svcproxy cannot set it; empty for advice that follows
            from the error.
    """

    path: str
    value: int
    effect: str
    remedy: str = ""

    @property
    def name(self) -> str:
        """The parameter as ``sysctl(8)`` spells it, for example ``net.ipv4.ip_forward``."""
        return self.path.replace("/", ".")
