"""Objects that netlink interfaces create and list: virtual servers, set entries, addresses.

Addresses are text in canonical form.
"""

from collections.abc import Mapping
from enum import IntFlag
from typing import NamedTuple

import msgspec

from svcproxy.model.names import Protocol


class ServerFlag(IntFlag):
    """Flags of a virtual server (``linux/ip_vs.h``: ``IP_VS_SVC_F_…``)."""

    PERSISTENT = 0x1
    HASHED = 0x2
    """Set by the kernel; never compared."""
    ONE_PACKET = 0x4
    SCHEDULER_1 = 0x8
    """``sh-fallback`` and ``mh-fallback``."""
    SCHEDULER_2 = 0x10
    """``sh-port`` and ``mh-port``."""
    SCHEDULER_3 = 0x20


SCHEDULER_FLAGS = ServerFlag.SCHEDULER_1 | ServerFlag.SCHEDULER_2 | ServerFlag.SCHEDULER_3


class VirtualServerKey(NamedTuple):
    """The identity of a virtual server among those of one IP family."""

    protocol: Protocol
    address: str
    port: int


class VirtualServer(msgspec.Struct, frozen=True, gc=False):
    """The properties of a virtual server besides its key.

    The forwarding method is always masquerading (NAT), as with kube-proxy.

    Attributes:
        scheduler: the kernel's name of the scheduler.
        flags: a combination of ``ServerFlag``.
        timeout: the persistence timeout in seconds; 0 unless ``flags`` has ``PERSISTENT``.
    """

    scheduler: str
    flags: int = 0
    timeout: int = 0


class RealServerKey(NamedTuple):
    """The identity of a real server of a virtual server."""

    address: str
    port: int


class Connections(NamedTuple):
    """How many connections a real server has, as the kernel counts them."""

    active: int
    inactive: int
    persistent: int


RealServers = Mapping[RealServerKey, int]
"""The weights of a virtual server's real servers; one with weight 0 gets no new connections."""


class SetKind(NamedTuple):
    """The properties that an ipset is created with; they cannot be changed later.

    Attributes:
        type: the kernel's type name, for example ``hash:ip,port``.
        maximum: how many entries a hash holds (``maxelem``); 0 for a bitmap. kube-proxy creates
            its sets with 65,536 and cannot take over a set that was created otherwise.
    """

    type: str
    maximum: int = 65536


class SetEntry(NamedTuple):
    """One entry of an ipset; fields that the set's type does not have keep their defaults.

    Attributes:
        address: the address, for hash types.
        protocol: the protocol, for hash types with a port.
        port: the port, for hash types with a port and for ``bitmap:port``.
        other: the second address of ``hash:ip,port,ip``, or the network (``address/bits``) of
            ``hash:ip,port,net``.
    """

    address: str = ""
    protocol: Protocol | None = None
    port: int = 0
    other: str = ""


def without_zero_prefix(entry: SetEntry) -> tuple[SetEntry, ...]:
    """Replace an entry of ``hash:ip,port,net`` with a network ``/0`` by its two halves.

    The kernel refuses such a network in a hash (``IPSET_ERR_INVALID_CIDR``).
    """
    network, _, bits = entry.other.partition("/")
    if bits != "0":
        return (entry,)
    half = "8000::/1" if ":" in network else "128.0.0.0/1"
    return (entry._replace(other=f"{network}/1"), entry._replace(other=half))


class Addresses(NamedTuple):
    """The addresses of this node, of one family.

    Attributes:
        bound: the addresses of the dummy interface.
        node: the addresses of other interfaces in ascending order, without loopback addresses
            and link-local IPv6 addresses.
        networks: the subnets of ``node`` as CIDRs, which are directly connected.
    """

    bound: frozenset[str]
    node: tuple[str, ...]
    networks: tuple[str, ...]
