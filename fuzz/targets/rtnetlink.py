"""Dumps and events of links and addresses are decoded, or rejected as malformed."""

from contextlib import suppress
from struct import pack

from fuzz.structure import Source
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import attribute
from svcproxy.netlink.core.messages import messages
from svcproxy.netlink.core.rtnetlink import (
    AddressEventFilter,
    classify_addresses,
    decode_addresses,
    decode_links,
)
from svcproxy.netlink.errors import MalformedError

_DUMMY = "kube-ipvs0"
_LINK = pack("=BxHiII", 0, 1, 7, 0, 0) + attribute(3, _DUMMY.encode() + b"\0")
_ADDRESS = (
    pack("=BBBBI", 2, 24, 0, 0, 1) + attribute(1, b"\x0a\0\0\1") + attribute(2, b"\x0a\0\0\1")
)
_ADDRESS6 = pack("=BBBBI", 10, 64, 0, 0, 1) + attribute(1, bytes(15) + b"\1")


def _event(kind: int, body: bytes) -> bytes:
    return pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


SEEDS = (
    _LINK,
    _ADDRESS,
    _ADDRESS6,
    _ADDRESS[:8],
    b"\x02\xc8" + _ADDRESS[2:],
    _event(16, _LINK) + _event(20, _ADDRESS),
    _event(21, b""),
)


def check(data: bytes) -> None:
    """Decode the input as a link, as an address, and as events before a relevant event."""
    source = Source(data)
    bodies = source.pieces(source.rest(), 3)
    links = list(decode_links([_LINK]))
    with suppress(MalformedError):
        links += decode_links(bodies)
    for family, good in ((IPFamily.IPV4, _ADDRESS), (IPFamily.IPV6, _ADDRESS6)):
        bound = list(decode_addresses([good], family))
        for body in bodies:
            with suppress(MalformedError):
                bound += decode_addresses([body], family)
        classify_addresses(links, bound, _DUMMY)
    events = AddressEventFilter(_DUMMY)
    with suppress(MalformedError):
        events.is_relevant(messages(data))
    events.set_interfaces(decode_links([_LINK]))
    assert events.is_relevant(messages(_event(20, _ADDRESS)))
