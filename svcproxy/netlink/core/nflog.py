"""Messages of nflog: subscribing to a group, and the packets that rules send to it.

Layouts and numbers are those of ``linux/netfilter/nfnetlink_log.h``.
"""

from struct import Struct
from typing import NamedTuple

from svcproxy.netlink.core.attributes import attribute, collect, string
from svcproxy.netlink.core.messages import FLAG_ACK, NetlinkRequest
from svcproxy.netlink.errors import MalformedError

_SUBSYSTEM = 4 << 8  # NFNL_SUBSYS_ULOG
PACKET, _CONFIG = _SUBSYSTEM, _SUBSYSTEM | 1
_COMMAND, _MODE, _QUEUE = 1, 2, 5
_BIND, _COPY_PACKET = 1, 2
_PAYLOAD, _PREFIX = 9, 10
_NFGEN = Struct("!BBH")
_COPY = Struct("!IBx")
_U32 = Struct("!I")
_PORTS = Struct("!HH")
_WITH_PORTS = frozenset({6, 17, 132})


class LoggedPacket(NamedTuple):
    """The addresses of a packet.

    Attributes:
        prefix: the text of the rule that sent it.
        protocol: the protocol number.
        source: the packed source address.
        destination: the packed destination address.
        port: the destination port.
    """

    prefix: str
    protocol: int
    source: bytes
    destination: bytes
    port: int


def bind_request(group: int, copied: int) -> NetlinkRequest:
    """Build the request that sends the packets of a group to the socket; EBUSY if another has it.

    Args:
        group: the group.
        copied: how many bytes of each packet are sent.
    """
    body = (
        _NFGEN.pack(0, 0, group)
        + attribute(_COMMAND, bytes([_BIND]))
        + attribute(_MODE, _COPY.pack(copied, _COPY_PACKET))
        + attribute(_QUEUE, _U32.pack(1))
    )
    return NetlinkRequest(_CONFIG, FLAG_ACK, body)


def decode_packet(body: bytes) -> LoggedPacket | None:
    """Decode the packet in a message's body; ``None`` if it has no ports.

    Raises:
        MalformedError: a length does not fit.
    """
    found = collect(body, _NFGEN.size)
    payload = found.get(_PAYLOAD, b"")
    version = payload[0] >> 4 if payload else 0
    if version == 4 and len(payload) >= 20:
        header, protocol = (payload[0] & 0x0F) * 4, payload[9]
        source, destination = payload[12:16], payload[16:20]
    elif version == 6 and len(payload) >= 40:
        header, protocol = 40, payload[6]
        source, destination = payload[8:24], payload[24:40]
    else:
        return None
    if protocol not in _WITH_PORTS:
        return None
    if len(payload) < header + _PORTS.size:
        raise MalformedError(f"packet of {len(payload)} bytes")
    port = _PORTS.unpack_from(payload, header)[1]
    return LoggedPacket(string(found.get(_PREFIX, b"")), protocol, source, destination, port)
