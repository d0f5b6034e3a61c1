"""A dump of connection tracking: each message gives a flow, no flow, or is refused as malformed."""

from contextlib import suppress
from struct import pack

from svcproxy.conntrack import netlink
from svcproxy.conntrack.core.stale import Flow, Target
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import MalformedError, attribute
from svcproxy.netlink.core.messages import messages


def _entry(family: int, length: int, more: bytes = b"") -> bytes:
    ends = [Target(bytes([n]) * length, 1000 + n) for n in range(3)]
    body = pack("=BBH", family, 0, 0)
    body += netlink.conntrack_tuple(1, 17, ends[0], ends[1])
    body += netlink.conntrack_tuple(2, 17, ends[2], ends[0]) + more
    return pack("=IHHII", 16 + len(body), 0x100, 2, 1, 0) + body


GOOD = _entry(2, 4)
SEEDS = (
    GOOD,
    _entry(10, 16, attribute(12, b"\1\2\3\4")),
    GOOD + GOOD,
    GOOD[:60],
    GOOD[:16] + b"\x0a" + GOOD[17:],
    pack("=IHHIIi", 20, 3, 0, 1, 0, -4),
)


def _flow(body: bytes) -> Flow | None:
    try:
        return netlink.decode_flow(body)
    except MalformedError:
        return None


def check(data: bytes) -> None:
    """Decode what a socket may give; a good entry before it comes out as without it."""
    (alone,) = messages(GOOD)
    expected = netlink.decode_flow(alone.body)
    assert expected is not None
    first = True
    with suppress(MalformedError):
        for message in messages(GOOD + data):
            flow = _flow(message.body)
            if first:
                assert flow == expected
                first = False
            if flow is not None:
                family = IPFamily.IPV4 if len(flow.address) == 4 else IPFamily.IPV6
                with suppress(MalformedError):
                    netlink.delete_request(family, flow, 1)
            netlink.is_local_route(message)
    assert not first
