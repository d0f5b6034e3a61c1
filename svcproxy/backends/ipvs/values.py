"""What IPVS mode programs, as values: virtual servers, real servers, addresses, set entries.

Pure. The planner computes these and compares them with what was read; the modules that speak
netlink turn them into messages and back. Addresses are text in canonical form.
"""

from collections.abc import Mapping
from enum import IntFlag
from typing import NamedTuple

import msgspec

from svcproxy.model.names import Protocol

DUMMY_INTERFACE = "kube-ipvs0"
"""Carries the addresses of virtual servers; kube-proxy's name, for taking over from it."""


class ServerFlag(IntFlag):
    """Flags of a virtual server (``linux/ip_vs.h``: ``IP_VS_SVC_F_…``)."""

    PERSISTENT = 0x1
    HASHED = 0x2
    """Set by the kernel itself; never compared."""
    ONE_PACKET = 0x4
    SCHEDULER_1 = 0x8
    """``sh-fallback`` and ``mh-fallback``."""
    SCHEDULER_2 = 0x10
    """``sh-port`` and ``mh-port``."""
    SCHEDULER_3 = 0x20


class VirtualServerKey(NamedTuple):
    """What identifies a virtual server of one IP family in the kernel."""

    protocol: Protocol
    address: str
    port: int


class VirtualServer(msgspec.Struct, frozen=True, gc=False):
    """The properties of a virtual server besides its key.

    ``timeout`` is the persistence time-out in seconds, 0 unless ``flags`` has ``PERSISTENT``.
    Forwarding is always masquerading (NAT), as with kube-proxy.
    """

    scheduler: str
    flags: int = 0
    timeout: int = 0


class RealServerKey(NamedTuple):
    """What identifies a real server of a virtual server."""

    address: str
    port: int


class Connections(NamedTuple):
    """How many connections a real server has, as the kernel counts them."""

    active: int
    inactive: int
    persistent: int


RealServers = Mapping[RealServerKey, int]
"""The weights of a virtual server's real servers; weight 0 takes no new connections."""


class SetKind(NamedTuple):
    """How an ipset is made; a set of another kind under the same name has to be replaced.

    ``type`` is the kernel's type name, for example ``hash:ip,port``. ``maximum`` is the number
    of elements that a hash holds (``maxelem``), 0 for a bitmap. kube-proxy makes its own with
    65,536 and cannot take over a set that was made otherwise.
    """

    type: str
    maximum: int = 65536


class SetEntry(NamedTuple):
    """One entry of an ipset; what the set's type does not hold is left at its default.

    ``address`` of hash types; ``protocol`` and ``port`` of those with a port and ``port`` alone
    of ``bitmap:port``; ``other`` is the second address of ``hash:ip,port,ip`` or the network
    (``address/bits``) of ``hash:ip,port,net``.
    """

    address: str = ""
    protocol: Protocol | None = None
    port: int = 0
    other: str = ""


def without_zero_prefix(entry: SetEntry) -> tuple[SetEntry, ...]:
    """The entries to store for one of ``hash:ip,port,net``: two halves for a network ``/0``.

    The kernel's hash cannot hold such a network (``IPSET_ERR_INVALID_CIDR``).
    """
    network, _, bits = entry.other.partition("/")
    if bits != "0":
        return (entry,)
    half = "8000::/1" if ":" in network else "128.0.0.0/1"
    return (entry._replace(other=f"{network}/1"), entry._replace(other=half))


class Addresses(NamedTuple):
    """The addresses of this node, of one family.

    Attributes:
        bound: those on ``kube-ipvs0``.
        node: those on other interfaces, in ascending order; not loopback addresses, nor
            link-local ones of IPv6.
        networks: the subnets of the latter, as CIDRs: what is directly connected.
    """

    bound: frozenset[str]
    node: tuple[str, ...]
    networks: tuple[str, ...]
