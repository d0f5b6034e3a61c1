"""Messages of rtnetlink about links and addresses: encoding requests, decoding answers.

The numbers are those of ``linux/rtnetlink.h``, ``linux/if_link.h`` and ``linux/if_addr.h``, in host
byte order.
"""

import contextlib
from collections.abc import Iterable, Iterator
from ipaddress import ip_interface
from struct import Struct
from typing import NamedTuple

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.addresses import packed, text
from svcproxy.netlink.core.attributes import attribute, collect, nest, string
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.ipvs import UNREADABLE
from svcproxy.netlink.core.kernel_objects import Addresses
from svcproxy.netlink.core.messages import (
    FLAG_CREATE,
    FLAG_EXCLUSIVE,
    NetlinkMessage,
    NetlinkRequest,
)
from svcproxy.netlink.errors import MalformedError

LINK_GROUP, IPV4_GROUP, IPV6_GROUP = 1, 5, 9
"""Multicast groups of events: RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR."""

_NEW_LINK, _DELETE_LINK, _GET_LINK = 16, 17, 18
_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22
_LINK = Struct("=BxHiII")
_ADDRESS = Struct("=BBBBI")
_NAME, _LINK_INFO, _INFO_KIND = 3, 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NO_DUPLICATE_DETECTION = 0x2
_UNIVERSE, _LINK_SCOPE = 0, 253
_IPV6 = 10


class Link(NamedTuple):
    """A network interface."""

    ifindex: int
    name: str


class InterfaceAddress(NamedTuple):
    """An address of an interface.

    Attributes:
        link: the index of the interface.
        address: the address.
        subnet: the directly connected subnet, as ``address/bits``.
        link_local: whether it is a link-local IPv6 address. Link-local IPv4 addresses are treated
            like any others.
    """

    link: int
    address: str
    subnet: str
    link_local: bool


def create_dummy_request(name: str) -> NetlinkRequest:
    """Create a dummy interface; EEXIST means that an interface has the name."""
    info = nest(_LINK_INFO, attribute(_INFO_KIND, b"dummy"))
    body = _LINK.pack(0, 0, 0, 0, 0) + attribute(_NAME, name.encode() + b"\0") + info
    return NetlinkRequest(_NEW_LINK, FLAG_CREATE | FLAG_EXCLUSIVE, body)


def delete_link_request(name: str) -> NetlinkRequest:
    """Delete an interface with its addresses; ENODEV means that it does not exist."""
    body = _LINK.pack(0, 0, 0, 0, 0) + attribute(_NAME, name.encode() + b"\0")
    return NetlinkRequest(_DELETE_LINK, 0, body)


def links_request() -> NetlinkRequest:
    """List the interfaces."""
    return NetlinkRequest(_GET_LINK, 0, _LINK.pack(0, 0, 0, 0, 0))


def addresses_request(family: IPFamily) -> NetlinkRequest:
    """List the addresses of a family on all interfaces."""
    return NetlinkRequest(_GET_ADDRESS, 0, _ADDRESS.pack(FAMILY_NUMBERS[family], 0, 0, 0, 0))


def add_address_request(link: int, address: str) -> NetlinkRequest:
    """Add an address to an interface; EEXIST means that the interface has it.

    Duplicate address detection is off for IPv6: many nodes have the address.
    """
    return NetlinkRequest(_NEW_ADDRESS, FLAG_CREATE | FLAG_EXCLUSIVE, _address(link, address))


def delete_address_request(link: int, address: str) -> NetlinkRequest:
    """Remove an address from an interface; EADDRNOTAVAIL means that it does not have it."""
    return NetlinkRequest(_DELETE_ADDRESS, 0, _address(link, address))


def decode_links(bodies: Iterable[bytes]) -> Iterator[Link]:
    """Decode the answers to ``links_request``; malformed ones are skipped."""
    for body in bodies:
        with contextlib.suppress(*UNREADABLE):
            yield _decoded_link(body)


def decode_addresses(bodies: Iterable[bytes], family: IPFamily) -> Iterator[InterfaceAddress]:
    """Decode the answers to ``addresses_request``; malformed ones are skipped."""
    for body in bodies:
        try:
            decoded = _decoded_address(body, family)
        except UNREADABLE:
            continue
        yield decoded


def _decoded_address(body: bytes, family: IPFamily) -> InterfaceAddress:
    _, bits, _, scope, link = _fields(_ADDRESS, body)
    found = collect(body, _ADDRESS.size)
    # On a point-to-point link, IFA_LOCAL is the node's address and IFA_ADDRESS the peer's.
    subnet = found.get(_IFA_ADDRESS) or found.get(_IFA_LOCAL, b"")
    local = found.get(_IFA_LOCAL) or subnet
    if {len(subnet), len(local)} != {family.bits // 8} or bits > family.bits:
        raise MalformedError(f"address of {len(subnet)} bytes, /{bits}")
    link_local = scope == _LINK_SCOPE and family is IPFamily.IPV6
    return InterfaceAddress(link, text(local), f"{text(subnet)}/{bits}", link_local)


def classify_addresses(
    links: Iterable[Link], addresses: Iterable[InterfaceAddress], name: str
) -> Addresses:
    """Separate the addresses of the interface ``name`` from the node's own.

    As in kube-proxy, other addresses of the loopback interface are the node's own; 127.0.0.0/8,
    ``::1`` and link-local IPv6 addresses are ignored.
    """
    dummies = {link.ifindex for link in links if link.name == name}
    bound, node, subnets = set(), set(), set()
    for entry in addresses:
        if entry.link in dummies:
            bound.add(entry.address)
        elif not (entry.link_local or _is_loopback(entry.address)):
            node.add(entry.address)
            subnets.add(ip_interface(entry.subnet).network)
    return Addresses(
        bound=frozenset(bound),
        node=tuple(sorted(node, key=packed)),
        networks=tuple(sorted(map(str, subnets))),
    )


class AddressEventFilter:
    """Decides which rtnetlink events are about the node's own addresses.

    Args:
        name: the interface whose addresses are ignored.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._ignored: set[int] = set()

    def set_interfaces(self, links: Iterable[Link]) -> None:
        """Set the interfaces that exist now."""
        self._ignored = {link.ifindex for link in links if link.name == self._name}

    def is_relevant(self, messages: Iterable[NetlinkMessage]) -> bool:
        """Process events in order; return whether one is about the node's own addresses."""
        relevant = False
        for message in messages:
            try:
                relevant = self._is_relevant(message) or relevant
            except UNREADABLE:
                relevant = True  # the caller resyncs and reads all addresses
        return relevant

    def _is_relevant(self, message: NetlinkMessage) -> bool:
        if message.kind == _NEW_LINK:
            # The index of a deleted interface stays ignored until another interface gets it:
            # events about its addresses may follow the event of its deletion.
            link = _decoded_link(message.body)
            self._ignored.discard(link.ifindex)
            if link.name == self._name:
                self._ignored.add(link.ifindex)
        elif message.kind in {_NEW_ADDRESS, _DELETE_ADDRESS}:
            family, _, _, scope, index = _fields(_ADDRESS, message.body)
            # Every pod's interface gets a link-local IPv6 address; node ports do not use it.
            link_local = family == _IPV6 and scope == _LINK_SCOPE
            return not (link_local or index in self._ignored)
        return False


def _address(link: int, address: str) -> bytes:
    value = packed(address)
    family, flags = (2, 0) if len(value) == 4 else (10, _NO_DUPLICATE_DETECTION)
    header = _ADDRESS.pack(family, len(value) * 8, flags, _UNIVERSE, link)
    return header + attribute(_IFA_LOCAL, value) + attribute(_IFA_ADDRESS, value)


def _decoded_link(body: bytes) -> Link:
    index: int = _fields(_LINK, body)[2]
    return Link(index, string(collect(body, _LINK.size).get(_NAME, b"")))


def _fields(layout: Struct, body: bytes) -> tuple[int, ...]:
    if len(body) < layout.size:
        raise MalformedError(f"message of {len(body)} bytes")
    return layout.unpack_from(body)


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")
