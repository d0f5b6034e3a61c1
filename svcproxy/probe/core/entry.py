"""The connection tracking entry of a probe: asking for it, reading it, recognising its event."""

from struct import Struct
from typing import NamedTuple

import msgspec

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core import addresses
from svcproxy.netlink.core.attributes import collect
from svcproxy.netlink.core.conntrack import (
    CT_GET,
    CTA_TUPLE_ORIG,
    AddressPort,
    Flow,
    conntrack_request,
    conntrack_tuple,
    decode_flow,
    delete_request,
)
from svcproxy.netlink.core.families import PROTOCOL_NUMBERS
from svcproxy.netlink.core.messages import NetlinkRequest
from svcproxy.netlink.errors import MalformedError

EVENT_GROUP = 1
"""NFNLGRP_CONNTRACK_NEW: an event for each new entry."""
_REPLY, _STATUS = 2, 3
_IP, _PROTO = 1, 2
_SOURCE_TRANSLATED = 0x10  # IPS_SRC_NAT
_DESTINATIONS = {4: 2, 16: 4}
_DESTINATION_PORT = 3
_U16, _U32 = Struct("!H"), Struct("!I")
_NFGEN_BYTES = 4
# Where an event has the source port: headers of the message and of netfilter, of the tuple, of its
# addresses; two addresses; headers of the protocol, its number, the header of the port.
_SOURCE_PORT_AT = 16 + 4 + 4 + 4 + 2 * 4 + 4 + 8 + 4
_INSTRUCTION = Struct("=HBBI")
_LOAD_HALF, _JUMP_IF_EQUAL, _RETURN, _EVERYTHING = 0x28, 0x15, 0x06, 0xFFFFFFFF


class Tuple(msgspec.Struct, frozen=True):
    """The two ends of the probe as it was sent."""

    family: IPFamily
    protocol: Protocol
    source: str
    source_port: int
    destination: str
    port: int

    @property
    def ends(self) -> tuple[AddressPort, AddressPort]:
        """Source and destination, packed."""
        return (
            AddressPort(addresses.packed(self.source), self.source_port),
            AddressPort(addresses.packed(self.destination), self.port),
        )


class Entry(NamedTuple):
    """What an entry says about its connection.

    Attributes:
        endpoint: the source of the replies.
        seen_source: the destination of the replies: the source that the endpoint sees.
        masqueraded: whether the source is translated.
        flow: the entry, for deleting it.
    """

    endpoint: AddressPort
    seen_source: AddressPort
    masqueraded: bool
    flow: Flow


def get_request(sent: Tuple) -> NetlinkRequest:
    """Ask for the entry; ENOENT means that there is none."""
    body = conntrack_tuple(CTA_TUPLE_ORIG, PROTOCOL_NUMBERS[sent.protocol], *sent.ends)
    return conntrack_request(sent.family, CT_GET, 0, body)


def reversed_request(sent: Tuple, entry: Entry) -> NetlinkRequest:
    """Ask for the entry that a late packet of the endpoint would make or belong to."""
    number = PROTOCOL_NUMBERS[sent.protocol]
    body = conntrack_tuple(CTA_TUPLE_ORIG, number, entry.endpoint, entry.seen_source)
    return conntrack_request(sent.family, CT_GET, 0, body)


def remove_request(sent: Tuple, entry: Entry) -> NetlinkRequest:
    """Delete exactly this entry; ENOENT means that it no longer exists."""
    return delete_request(sent.family, entry.flow)


def decode(body: bytes) -> Entry:
    """Decode the answer to ``get_request``, or the body of an event.

    Raises:
        MalformedError: it is no entry with ports.
    """
    flow = decode_flow(body)
    if flow is None:
        raise MalformedError("an entry without ports")
    found = collect(body, _NFGEN_BYTES)
    reply = collect(found.get(_REPLY, b""))
    ip, proto = collect(reply.get(_IP, b"")), collect(reply.get(_PROTO, b""))
    address = ip.get(_DESTINATIONS.get(len(flow.source.address), 0), b"")
    port = proto.get(_DESTINATION_PORT, b"")
    if len(address) != len(flow.source.address) or len(port) != _U16.size:
        raise MalformedError("an entry without the destination of replies")
    status = found.get(_STATUS, b"")
    bits = _U32.unpack(status)[0] if len(status) == _U32.size else 0
    seen = AddressPort(address, _U16.unpack(port)[0])
    return Entry(flow.source, seen, bool(bits & _SOURCE_TRANSLATED), flow)


def event_filter(sent: Tuple) -> bytes:
    """Return a socket filter (classic BPF) that keeps only events with the ports of the probe."""
    at = _SOURCE_PORT_AT + 2 * len(sent.ends[0].address)
    lines = (
        (_LOAD_HALF, 0, 0, at),
        (_JUMP_IF_EQUAL, 0, 3, sent.source_port),
        (_LOAD_HALF, 0, 0, at + 8),
        (_JUMP_IF_EQUAL, 0, 1, sent.port),
        (_RETURN, 0, 0, _EVERYTHING),
        (_RETURN, 0, 0, 0),
    )
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)


def is_about(body: bytes, sent: Tuple) -> bool:
    """Return whether an event is about the probe: the original tuple is that of the probe."""
    wanted = conntrack_tuple(CTA_TUPLE_ORIG, PROTOCOL_NUMBERS[sent.protocol], *sent.ends)
    return body[_NFGEN_BYTES : _NFGEN_BYTES + len(wanted)] == wanted


def shown(end: AddressPort) -> str:
    """Return ``address:port``, or ``[address]:port`` for IPv6."""
    return target(addresses.text(end.address), end.port)


def target(address: str, port: int) -> str:
    """Return ``address:port``, or ``[address]:port`` for IPv6."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
