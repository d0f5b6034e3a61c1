"""Links and addresses over route netlink: requests as bytes, and what its answers say.

Pure. The numbers are those of ``linux/rtnetlink.h``, ``linux/if_link.h`` and ``linux/if_addr.h``,
in host byte order.
"""

import contextlib
from collections.abc import Iterable, Iterator
from ipaddress import ip_interface
from struct import Struct
from typing import NamedTuple

from svcproxy.backends.ipvs.messages import UNREADABLE
from svcproxy.backends.ipvs.values import Addresses
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.addresses import packed, text
from svcproxy.netlink.core.attributes import attribute, collect, nest, string
from svcproxy.netlink.core.messages import (
    FLAG_CREATE,
    FLAG_EXCLUSIVE,
    NetlinkMessage,
    NetlinkRequest,
)
from svcproxy.netlink.errors import MalformedError

LINK_GROUP, IPV4_GROUP, IPV6_GROUP = 1, 5, 9
"""RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR: who is told of changes."""

_NEW_LINK, _DELETE_LINK, _GET_LINK = 16, 17, 18
_NEW_ADDRESS, _DELETE_ADDRESS, _GET_ADDRESS = 20, 21, 22
_LINK = Struct("=BxHiII")
_ADDRESS = Struct("=BBBBI")
_NAME, _LINK_INFO, _INFO_KIND = 3, 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NO_DUPLICATE_DETECTION = 0x2
_UNIVERSE, _LINK_SCOPE = 0, 253
_IPV6 = 10
_FAMILIES = {IPFamily.IPV4: 2, IPFamily.IPV6: 10}


class Link(NamedTuple):
    """A network interface; ``number`` is the kernel's index of it."""

    number: int
    name: str


class BoundAddress(NamedTuple):
    """An address of an interface.

    ``subnet`` is what is reachable there, as ``address/bits``; ``link_local`` is never true of IPv4,
    where such addresses are like any others.
    """

    link: int
    address: str
    subnet: str
    link_local: bool


def create_dummy(name: str) -> NetlinkRequest:
    """Make a dummy interface; EEXIST if there is an interface of the name."""
    info = nest(_LINK_INFO, attribute(_INFO_KIND, b"dummy"))
    body = _LINK.pack(0, 0, 0, 0, 0) + attribute(_NAME, name.encode() + b"\0") + info
    return NetlinkRequest(_NEW_LINK, FLAG_CREATE | FLAG_EXCLUSIVE, body)


def delete_link(name: str) -> NetlinkRequest:
    """Remove an interface with its addresses; ENODEV if there is none."""
    body = _LINK.pack(0, 0, 0, 0, 0) + attribute(_NAME, name.encode() + b"\0")
    return NetlinkRequest(_DELETE_LINK, 0, body)


def links_request() -> NetlinkRequest:
    """List the interfaces."""
    return NetlinkRequest(_GET_LINK, 0, _LINK.pack(0, 0, 0, 0, 0))


def addresses_request(family: IPFamily) -> NetlinkRequest:
    """List the addresses of a family on all interfaces."""
    return NetlinkRequest(_GET_ADDRESS, 0, _ADDRESS.pack(_FAMILIES[family], 0, 0, 0, 0))


def bind(link: int, address: str) -> NetlinkRequest:
    """Give an interface an address; EEXIST if it has it.

    IPv6 does not wait for others to claim the address, as it would on an interface with
    neighbours: it is many nodes' own.
    """
    return NetlinkRequest(_NEW_ADDRESS, FLAG_CREATE | FLAG_EXCLUSIVE, _address(link, address))


def unbind(link: int, address: str) -> NetlinkRequest:
    """Take an address from an interface; EADDRNOTAVAIL if it does not have it."""
    return NetlinkRequest(_DELETE_ADDRESS, 0, _address(link, address))


def decode_links(bodies: Iterable[bytes]) -> Iterator[Link]:
    """Decode the answers to ``links_request``; what is malformed is left out."""
    for body in bodies:
        with contextlib.suppress(*UNREADABLE):
            yield _decoded_link(body)


def decode_addresses(bodies: Iterable[bytes], family: IPFamily) -> Iterator[BoundAddress]:
    """Decode the answers to ``addresses_request``; what is malformed is left out."""
    for body in bodies:
        try:
            decoded = _decoded_address(body, family)
        except UNREADABLE:
            continue
        yield decoded


def _decoded_address(body: bytes, family: IPFamily) -> BoundAddress:
    _, bits, _, scope, link = _fields(_ADDRESS, body)
    found = collect(body, _ADDRESS.size)
    # Of a point-to-point link, the one is the own address and the other the peer's.
    subnet = found.get(_IFA_ADDRESS) or found.get(_IFA_LOCAL, b"")
    local = found.get(_IFA_LOCAL) or subnet
    if {len(subnet), len(local)} != {family.bits // 8} or bits > family.bits:
        raise MalformedError(f"address of {len(subnet)} bytes, /{bits}")
    link_local = scope == _LINK_SCOPE and family is IPFamily.IPV6
    return BoundAddress(link, text(local), f"{text(subnet)}/{bits}", link_local)


def arrange(links: Iterable[Link], bound: Iterable[BoundAddress], name: str) -> Addresses:
    """Tell the node's own addresses from those on the interface ``name``.

    As in kube-proxy, the loopback interface may have addresses that count; 127.0.0.0/8, ``::1`` and
    link-local IPv6 addresses never do.
    """
    ignored = {link.number for link in links if link.name == name}
    ours, own, subnets = set(), set(), set()
    for entry in bound:
        if entry.link in ignored:
            ours.add(entry.address)
        elif not (entry.link_local or _is_loopback(entry.address)):
            own.add(entry.address)
            subnets.add(ip_interface(entry.subnet).network)
    return Addresses(
        bound=frozenset(ours),
        node=tuple(sorted(own, key=packed)),
        networks=tuple(sorted(map(str, subnets))),
    )


class Follower:
    """Tells from events whether addresses of the node itself have changed.

    Args:
        name: the interface whose addresses do not count.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._ignored: set[int] = set()

    def know(self, links: Iterable[Link]) -> None:
        """Take in which interfaces there are."""
        self._ignored = {link.number for link in links if link.name == self._name}

    def concerns(self, messages: Iterable[NetlinkMessage]) -> bool:
        """Take in events in their order; whether one of them is about an address that counts."""
        found = False
        for message in messages:
            try:
                found = self._concerned(message) or found
            except UNREADABLE:
                found = True  # whatever it was, a comparison finds out
        return found

    def _concerned(self, message: NetlinkMessage) -> bool:
        if message.kind == _NEW_LINK:
            # A deleted one stays ignored until its index is another's: events about its
            # addresses may come after its own.
            link = _decoded_link(message.body)
            self._ignored.discard(link.number)
            if link.name == self._name:
                self._ignored.add(link.number)
        elif message.kind in {_NEW_ADDRESS, _DELETE_ADDRESS}:
            family, _, _, scope, index = _fields(_ADDRESS, message.body)
            # Every pod's interface gets a link-local address of IPv6, which serves nothing.
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
