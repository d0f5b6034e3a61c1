"""Messages of rtnetlink that look up routes (``linux/rtnetlink.h``)."""

from struct import Struct

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import attribute
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.messages import NetlinkMessage, NetlinkRequest

_NEW_ROUTE, _GET_ROUTE = 24, 26  # RTM_NEWROUTE, RTM_GETROUTE
_DESTINATION = 1  # RTA_DST
_LOCAL = 2  # RTN_LOCAL
_ROUTE_MESSAGE = Struct("=8BI")  # struct rtmsg
_TYPE_FIELD = 7


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
