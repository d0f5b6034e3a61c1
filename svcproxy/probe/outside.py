"""A temporary machine behind the node: a network namespace and a veth pair to the node.

The namespace has no name. It ends with the last descriptor that refers to it, so also when the
process is killed, and the kernel then deletes the veth pair, its route and its neighbour.

The node's end has no address, of either family, so it cannot become an address of the node at which
node ports are served, and the daemon's address watcher sees nothing. A route to the one source
address and permanent neighbours replace addresses and their resolution.
"""

import contextlib
import errno
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core import rtnetlink, veth
from svcproxy.netlink.core.addresses import packed
from svcproxy.netlink.core.messages import NetlinkRequest
from svcproxy.netlink.errors import NetlinkError, RequestRefusedError, TimedOutError, doing
from svcproxy.netlink.socket import ROUTE
from svcproxy.probe import namespaces
from svcproxy.probe.core.result import LiveRequest
from svcproxy.probe.errors import NotSentError

PREFIX = "svcprobe"
"""The beginning of the names of the node's ends."""
_INSIDE = "eth0"
_FIRST = {
    IPFamily.IPV4: int(IPv4Address("192.0.2.1")),
    IPFamily.IPV6: int(IPv6Address("2001:db8:ffff::1")),
}
"""Addresses reserved for documentation (RFC 5737, RFC 3849): no real machine has them."""
_ADDRESSES = 250
_RESERVED = tuple(
    map(
        ip_network,
        (
            "192.0.2.0/24",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "198.18.0.0/15",
            "2001:db8::/32",
            "3fff::/20",
        ),
    )
)
"""Ranges for documentation and for measurements (RFC 5737, 2544, 3849, 9637)."""
_ACTIVE_SECONDS = 5.0
_PAUSE_SECONDS = 0.002
_TOLERATED = {errno.EAFNOSUPPORT, errno.EOPNOTSUPP}
_REMEDIES = {
    errno.EPERM: "run as root with CAP_NET_ADMIN and CAP_SYS_ADMIN (in a pod: privileged: true)",
    errno.EOPNOTSUPP: "load the kernel module veth",
    errno.EACCES: "the family is disabled on the node (sysctl disable_ipv6)",
    errno.EEXIST: "a route to the source address exists; choose another address",
}


@contextlib.contextmanager
def outside(request: LiveRequest) -> Iterator[tuple[int, str]]:
    """Connect a temporary machine to the node; yield its namespace's descriptor and its address.

    Raises:
        NotSentError: the kernel refused.
    """
    source = request.source or _free_address(request.family)
    if not any(ip_address(source) in reserved for reserved in _RESERVED):
        # The node would send packets for the real machine to the temporary one meanwhile.
        raise NotSentError(
            f"{source} may be the address of a real machine: a probe from outside has an address"
            f" reserved for documentation, such as {_free_address(request.family)}"
        )
    try:
        namespace = namespaces.temporary()
    except OSError as error:
        raise NotSentError(_explained("make a network namespace", error)) from error
    name = f"{PREFIX}{secrets.token_hex(3)}"
    try:
        try:
            _connect(name, namespace, source, request)
        except OSError as error:
            raise NotSentError(_explained("connect a temporary machine", error)) from error
        yield namespace, source
    finally:
        # The kernel would do this some time after the last descriptor is closed.
        with contextlib.suppress(NetlinkError), NetlinkClient(ROUTE) as client:
            client.execute([rtnetlink.delete_link_request(name)])
        os.close(namespace)


def _connect(name: str, namespace: int, source: str, request: LiveRequest) -> None:
    family, address = request.family, packed(source)
    mac, peer = _mac(), _mac()
    with doing("add a veth pair"):
        _execute([veth.create_request(name, mac, _INSIDE, peer, namespace)])
        _without_address(name)
        _execute([veth.up_request(name)])
    link = socket.if_nametoindex(name)
    with doing(f"add a route to {source}"):
        _execute(
            [
                veth.route_request(family, address, family.bits, link),
                veth.neighbour_request(family, address, peer, link),
            ]
        )

    def inside() -> None:
        link = socket.if_nametoindex(_INSIDE)
        _without_address(_INSIDE)
        _execute(
            [
                veth.up_request(_INSIDE),
                rtnetlink.add_address_request(link, source),
                veth.route_request(family, b"", 0, link),
                veth.neighbour_request(family, packed(request.destination), mac, link),
            ]
        )

    with doing("set up the temporary machine"):
        namespaces.within(namespace, inside)
        _await_active(name)
        namespaces.within(namespace, lambda: _await_active(_INSIDE))


def _await_active(name: str) -> None:
    """Wait until an interface sends packets; the first ones would be lost otherwise."""
    deadline = time.monotonic() + _ACTIVE_SECONDS
    with NetlinkClient(ROUTE) as client:
        while not veth.is_active(client.get(veth.state_request(name)).body):
            if time.monotonic() > deadline:
                raise TimedOutError
            time.sleep(_PAUSE_SECONDS)


def _without_address(name: str) -> None:
    _execute([veth.no_address_request(name)], tolerated=_TOLERATED)


def _execute(requests: Sequence[NetlinkRequest], tolerated: set[int] | None = None) -> None:
    with NetlinkClient(ROUTE) as client:
        refused = [r for r in client.execute(requests) if r.number not in (tolerated or ())]
    if refused:
        raise RequestRefusedError(refused[0].number)


def _mac() -> bytes:
    # Locally administered, not a multicast address.
    return b"\x02" + secrets.token_bytes(5)


def _free_address(family: IPFamily) -> str:
    number = _FIRST[family] + secrets.randbelow(_ADDRESSES)
    return str(IPv4Address(number) if family is IPFamily.IPV4 else IPv6Address(number))


def _explained(what: str, error: OSError) -> str:
    remedy = _REMEDIES.get(error.errno or 0)
    reason = str(error) if isinstance(error, NetlinkError) else f"cannot {what}: {error.strerror}"
    return f"{reason}: {remedy}" if remedy else reason
