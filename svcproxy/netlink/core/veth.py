"""Messages of rtnetlink for a pair of connected interfaces (veth), their routes and neighbours.

The numbers are those of ``linux/rtnetlink.h``, ``linux/if_link.h``, ``linux/veth.h`` and
``linux/neighbour.h``, in host byte order.
"""

from struct import Struct

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import attribute, collect, nest, string
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.messages import FLAG_CREATE, FLAG_EXCLUSIVE, NetlinkRequest

_NEW_LINK, _GET_LINK, _NEW_ROUTE, _NEW_NEIGHBOUR = 16, 18, 24, 28
_LINK, _ROUTE, _NEIGHBOUR = Struct("=BxHiII"), Struct("=8BI"), Struct("=BxxxiHBB")
_MAC, _NAME, _LINK_INFO, _AF_SPEC, _NAMESPACE_FD = 1, 3, 18, 26, 28
_QDISC, _STATE, _STATE_UP = 6, 16, b"\6"
_GET_NAMESPACE_ID, _ID, _ID_OF_FD, _NO_ID = 90, 1, 3, b"\xff" * 4
_INFO_KIND, _INFO_DATA, _PEER = 1, 2, 1
_INET6, _ADDRESS_MODE, _NO_ADDRESS = 10, 8, b"\1"
_UP = 1
_DESTINATION, _LINK_ADDRESS, _OUTPUT = 1, 2, 4
_MAIN_TABLE, _STATIC, _UNICAST = 254, 4, 1
_SCOPES = {IPFamily.IPV4: 253, IPFamily.IPV6: 0}
_PERMANENT = 0x80
_U32 = Struct("=I")


def create_request(
    name: str, mac: bytes, peer: str, peer_mac: bytes, namespace: int
) -> NetlinkRequest:
    """Create a pair; EEXIST means that an interface has the name.

    Args:
        name: the name of the interface in this network namespace.
        mac: its hardware address.
        peer: the name of the other interface.
        peer_mac: its hardware address.
        namespace: a file descriptor of the network namespace of the other interface.
    """
    there = _LINK.pack(0, 0, 0, 0, 0) + _named(peer) + attribute(_MAC, peer_mac)
    there += attribute(_NAMESPACE_FD, _U32.pack(namespace))
    data = nest(_INFO_DATA, attribute(_PEER, there))
    info = nest(_LINK_INFO, attribute(_INFO_KIND, b"veth"), data)
    body = _LINK.pack(0, 0, 0, 0, 0) + _named(name) + attribute(_MAC, mac) + info
    return NetlinkRequest(_NEW_LINK, FLAG_CREATE | FLAG_EXCLUSIVE, body)


def no_address_request(name: str) -> NetlinkRequest:
    """Let the kernel give an interface no link-local IPv6 address.

    EAFNOSUPPORT means that the kernel has no IPv6.
    """
    mode = nest(_INET6, attribute(_ADDRESS_MODE, _NO_ADDRESS))
    body = _LINK.pack(0, 0, 0, 0, 0) + _named(name) + nest(_AF_SPEC, mode)
    return NetlinkRequest(_NEW_LINK, 0, body)


def up_request(name: str) -> NetlinkRequest:
    """Set an interface up."""
    return NetlinkRequest(_NEW_LINK, 0, _LINK.pack(0, 0, 0, _UP, _UP) + _named(name))


def state_request(name: str) -> NetlinkRequest:
    """Ask for the state of an interface."""
    return NetlinkRequest(_GET_LINK, 0, _LINK.pack(0, 0, 0, 0, 0) + _named(name))


def is_active(body: bytes) -> bool:
    """Return whether an interface sends packets: it has a carrier, and the kernel has noticed.

    The kernel notices in a work queue. Until then the interface has the queueing discipline
    ``noop``, which drops all packets.

    Args:
        body: the answer to ``state_request``.

    Raises:
        MalformedError: it is malformed.
    """
    found = collect(body, _LINK.size)
    return found.get(_STATE) == _STATE_UP and string(found.get(_QDISC, b"noop")) != "noop"


def namespace_id_request(namespace: int) -> NetlinkRequest:
    """Ask for the number by which this network namespace knows another one, by its descriptor."""
    return NetlinkRequest(
        _GET_NAMESPACE_ID, 0, bytes(4) + attribute(_ID_OF_FD, _U32.pack(namespace))
    )


def is_related(body: bytes) -> bool:
    """Return whether an interface here leads to the other network namespace.

    The kernel gives a namespace a number here when it reports such an interface.

    Args:
        body: the answer to ``namespace_id_request``.

    Raises:
        MalformedError: it is malformed.
    """
    value = collect(body, 4).get(_ID, b"")
    return len(value) == _U32.size and value != _NO_ID


def route_request(family: IPFamily, destination: bytes, bits: int, link: int) -> NetlinkRequest:
    """Add a route over an interface, without a gateway; EEXIST means that there is one.

    Args:
        family: the family.
        destination: the packed address; ignored for the default route.
        bits: the length of the prefix, 0 for the default route.
        link: the index of the interface.
    """
    head = (FAMILY_NUMBERS[family], bits, 0, 0, _MAIN_TABLE, _STATIC, _SCOPES[family], _UNICAST, 0)
    body = _ROUTE.pack(*head) + attribute(_OUTPUT, _U32.pack(link))
    if bits:
        body += attribute(_DESTINATION, destination)
    return NetlinkRequest(_NEW_ROUTE, FLAG_CREATE | FLAG_EXCLUSIVE, body)


def neighbour_request(family: IPFamily, address: bytes, mac: bytes, link: int) -> NetlinkRequest:
    """Add a permanent neighbour, so that the kernel need not ask for its hardware address."""
    head = _NEIGHBOUR.pack(FAMILY_NUMBERS[family], link, _PERMANENT, 0, 0)
    body = head + attribute(_DESTINATION, address) + attribute(_LINK_ADDRESS, mac)
    return NetlinkRequest(_NEW_NEIGHBOUR, FLAG_CREATE | FLAG_EXCLUSIVE, body)


def _named(name: str) -> bytes:
    return attribute(_NAME, name.encode() + b"\0")
