"""Dumps of connection tracking: each message is a flow, has no ports, or is malformed."""

from contextlib import suppress
from struct import pack

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core import conntrack
from svcproxy.netlink.core.attributes import attribute
from svcproxy.netlink.core.conntrack import AddressPort, Flow
from svcproxy.netlink.core.messages import messages
from svcproxy.netlink.core.routes import is_local_route
from svcproxy.netlink.errors import MalformedError


def _entry(family: int, length: int, more: bytes = b"") -> bytes:
    ends = [AddressPort(bytes([n]) * length, 1000 + n) for n in range(3)]
    body = pack("=BBH", family, 0, 0)
    body += conntrack.conntrack_tuple(1, 17, ends[0], ends[1])
    body += conntrack.conntrack_tuple(2, 17, ends[2], ends[0]) + more
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
        return conntrack.decode_flow(body)
    except MalformedError:
        return None


def check(data: bytes) -> None:
    """Decode the input after a good entry; it must not affect the good entry."""
    (alone,) = messages(GOOD)
    expected = conntrack.decode_flow(alone.body)
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
                    conntrack.delete_request(family, flow)
            is_local_route(message)
    assert not first
