"""What decides about virtual servers besides Services: flags, the Node object, the node itself."""

from ipaddress import ip_address, ip_network

import msgspec

from svcproxy.backends.settings import Settings
from svcproxy.netlink.core.kernel_objects import ServerFlag


class Scheduling(msgspec.Struct, frozen=True, gc=False):
    """A scheduler of the kernel (``rr``, ``lc``, …) and its flags (``ServerFlag.SCHEDULER_…``)."""

    name: str = "rr"
    flags: int = 0


SCHEDULERS = frozenset(
    ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh", "fo", "ovf")
)
"""Those of ``net/netfilter/ipvs`` in Linux 6.12; each is a module ``ip_vs_<name>``."""

_NUMBERED = {  # as kube-router and ipvsadm have them for any scheduler
    "flag-1": ServerFlag.SCHEDULER_1,
    "flag-2": ServerFlag.SCHEDULER_2,
    "flag-3": ServerFlag.SCHEDULER_3,
}
_FLAGS = {
    name: {
        f"{name}-fallback": ServerFlag.SCHEDULER_1,
        f"{name}-port": ServerFlag.SCHEDULER_2,
        **_NUMBERED,
    }
    for name in ("sh", "mh")
}
_DEFAULT_FLAGS = {
    # With a plain hash a client whose endpoint leaves gets "no destination" until it is gone
    # (kubernetes#138688), and all clients behind one NAT get the same endpoint.
    "mh": int(ServerFlag.SCHEDULER_1 | ServerFlag.SCHEDULER_2),
}


def scheduling(name: str, flags: tuple[str, ...] | None = None) -> Scheduling:
    """A scheduler with the given flags, or without any given with those that it should have.

    Flags that another scheduler has do not count.
    """
    if flags is None:
        return Scheduling(name, _DEFAULT_FLAGS.get(name, 0))
    known = _FLAGS.get(name, {})
    return Scheduling(name, sum({int(known[flag]) for flag in flags if flag in known}))


def unknown_flags(name: str, flags: tuple[str, ...]) -> tuple[str, ...]:
    """Which flags a scheduler does not have."""
    return tuple(flag for flag in flags if flag not in _FLAGS.get(name, {}))


class IpvsSettings(Settings, frozen=True, gc=False):
    """Adds what concerns IPVS alone.

    Attributes:
        scheduling: the scheduler of Services that do not ask for another.
        addresses: the node's own addresses on all interfaces but loopback and ``kube-ipvs0``,
            without link-local ones of IPv6.
        subnets: what is directly connected to those interfaces, as CIDRs.
        excluded: CIDRs whose virtual servers and addresses are never removed unless they are a
            Service's (``--ipvs-exclude-cidrs``).
        drop_invalid: drop forwarded packets that conntrack calls INVALID.
        unavailable: schedulers whose modules the kernel lacks; ``scheduling`` replaces them.
    """

    scheduling: Scheduling = Scheduling()
    addresses: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    drop_invalid: bool = True
    unavailable: frozenset[str] = frozenset()

    def node_port_addresses(self) -> tuple[str, ...]:
        """The node's addresses that serve node ports."""
        ranges = [ip_network(cidr) for cidr in self.node_port_ranges]
        if not ranges:
            return self.addresses
        return tuple(a for a in self.addresses if any(ip_address(a) in r for r in ranges))

    def is_near(self, address: str) -> bool:
        """Whether an address is the node's own or of a subnet that it is connected to.

        Put on ``kube-ipvs0``, such an address would cut the node off from whoever really has it.
        """
        number = ip_address(address)
        return any(number in ip_network(cidr) for cidr in self.subnets)

    def is_excluded(self, address: str) -> bool:
        """Whether an address falls under ``--ipvs-exclude-cidrs``."""
        return bool(self.excluded) and any(
            ip_address(address) in ip_network(cidr) for cidr in self.excluded
        )
