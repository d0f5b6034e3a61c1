"""Answers about routes, also those that the test machine's kernel does not return."""

from struct import pack

import pytest

from svcproxy.netlink.core.attributes import attribute
from svcproxy.netlink.core.messages import NetlinkMessage
from svcproxy.netlink.core.routes import Route, decode_route
from svcproxy.netlink.errors import MalformedError

_NEW_ROUTE = 24
_UNICAST, _LOCAL, _BLACKHOLE = 1, 2, 6
_OIF, _GATEWAY, _SOURCE, _VIA = 4, 5, 7, 18


def answer(kind: int, *attributes: bytes, message: int = _NEW_ROUTE) -> NetlinkMessage:
    body = pack("=8BI", 2, 32, 0, 0, 254, 3, 0, kind, 0) + b"".join(attributes)
    return NetlinkMessage(message, 0, 1, body)


def test_a_route_through_a_gateway() -> None:
    found = decode_route(
        answer(
            _UNICAST,
            attribute(_OIF, pack("=I", 3)),
            attribute(_GATEWAY, bytes((192, 168, 50, 2))),
            attribute(_SOURCE, bytes((192, 168, 50, 1))),
        )
    )
    assert found == Route(
        local=False, usable=True, link=3, gateway="192.168.50.2", source="192.168.50.1"
    )


def test_a_gateway_of_the_other_family() -> None:
    via = pack("=H", 10) + bytes(15) + b"\1"
    assert decode_route(answer(_UNICAST, attribute(_VIA, via))).gateway == "::1"


def test_local_and_unusable_routes() -> None:
    assert decode_route(answer(_LOCAL)).local
    assert not decode_route(answer(_BLACKHOLE)).usable


@pytest.mark.parametrize(
    "message",
    [
        answer(_UNICAST, message=2),
        NetlinkMessage(_NEW_ROUTE, 0, 1, b"\2\0"),
        answer(_UNICAST, attribute(_OIF, b"\3")),
        answer(_UNICAST, attribute(_GATEWAY, b"\1\2\3")),
        answer(_UNICAST, b"\xff\xff\4\0"),
    ],
)
def test_malformed_answers(message: NetlinkMessage) -> None:
    with pytest.raises(MalformedError):
        decode_route(message)
