"""Messages of rtnetlink that look up routes (``linux/rtnetlink.h``)."""

from struct import Struct
from typing import NamedTuple

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.addresses import text
from svcproxy.netlink.core.attributes import attribute, collect
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.messages import NetlinkMessage, NetlinkRequest
from svcproxy.netlink.errors import MalformedError

_NEW_ROUTE, _GET_ROUTE = 24, 26  # RTM_NEWROUTE, RTM_GETROUTE
_DESTINATION, _OUTPUT, _GATEWAY, _PREFERRED_SOURCE = 1, 4, 5, 7  # RTA_DST, RTA_OIF and so on
_VIA = 18  # RTA_VIA: a gateway of the other family
_UNICAST, _LOCAL = 1, 2  # RTN_UNICAST, RTN_LOCAL
_INDEX = Struct("=I")
_ROUTE_MESSAGE = Struct("=8BI")  # struct rtmsg
_TYPE_FIELD = 7


class Route(NamedTuple):
    """The route that packets to an address take.

    Attributes:
        local: whether the node has the address itself.
        usable: whether packets are sent; otherwise the route refuses or drops them.
        link: the index of the interface; 0 if there is none.
        gateway: the next hop; empty if the destination is directly connected.
        source: the source address of the node's own packets; empty if unknown.
    """

    local: bool
    usable: bool
    link: int = 0
    gateway: str = ""
    source: str = ""


def route_request(family: IPFamily, address: bytes) -> NetlinkRequest:
    """Build the request for the route that packets to a packed address take."""
    lengths = (FAMILY_NUMBERS[family], len(address) * 8)
    body = _ROUTE_MESSAGE.pack(*lengths, 0, 0, 0, 0, 0, 0, 0) + attribute(_DESTINATION, address)
    return NetlinkRequest(_GET_ROUTE, 0, body)


def is_local_route(message: NetlinkMessage) -> bool:
    """Return whether the answer to ``route_request`` is a local route: the node has the address."""
    if message.kind != _NEW_ROUTE or len(message.body) < _ROUTE_MESSAGE.size:
        return False
    return bool(_ROUTE_MESSAGE.unpack_from(message.body)[_TYPE_FIELD] == _LOCAL)


def decode_route(message: NetlinkMessage) -> Route:
    """Decode the answer to ``route_request``.

    Raises:
        MalformedError: it is no route, or a value has an unexpected length.
    """
    body = message.body
    if message.kind != _NEW_ROUTE or len(body) < _ROUTE_MESSAGE.size:
        raise MalformedError(f"no route: message {message.kind} of {len(body)} bytes")
    kind = _ROUTE_MESSAGE.unpack_from(body)[_TYPE_FIELD]
    found = collect(body, _ROUTE_MESSAGE.size)
    return Route(
        local=kind == _LOCAL,
        usable=kind in {_UNICAST, _LOCAL},
        link=_index(found.get(_OUTPUT, bytes(4))),
        # RTA_VIA begins with the family, in two bytes.
        gateway=_address(found.get(_GATEWAY) or found.get(_VIA, b"")[2:]),
        source=_address(found.get(_PREFERRED_SOURCE, b"")),
    )


def _index(value: bytes) -> int:
    if len(value) != _INDEX.size:
        raise MalformedError(f"interface index of {len(value)} bytes")
    return int(_INDEX.unpack(value)[0])


def _address(value: bytes) -> str:
    if not value:
        return ""
    if len(value) not in {4, 16}:
        raise MalformedError(f"address of {len(value)} bytes")
    return text(value)
