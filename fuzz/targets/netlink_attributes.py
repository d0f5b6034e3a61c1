"""Netlink messages and attributes are parsed or rejected; comparing them never raises."""

from svcproxy.netlink.core.attributes import (
    attribute,
    collect,
    holds,
    holds_each,
    nest,
    string,
    walk,
)
from svcproxy.netlink.core.messages import messages
from svcproxy.netlink.errors import MalformedError

_GOOD = nest(1, attribute(2, b"abcd"))


def _deep(levels: int) -> bytes:
    made = b""
    for _ in range(levels):
        made = nest(1, made)
    return made


SEEDS = (
    nest(1, attribute(2, b"abc"), nest(3, attribute(4, b""))),
    attribute(1, b"\xff\xfe\0") + attribute(1, b"twice"),
    b"\x04\0\x01\0",
    b"\x03\0\x01\0",
    b"\xff\xff\x01\0",
    b"\x14\0\0\0\x02\0\0\0\x01\0\0\0\0\0\0\0\xfe\xff\xff\xff",
    b"\x08\x00\x01\x80" * 400,
    _deep(200),
)


def check(data: bytes) -> None:
    """Read the bytes as messages, as attributes, and as both sides of a comparison."""
    try:
        for message in messages(data):
            assert message.error == message.error
    except MalformedError:
        pass
    try:
        for _, value, _ in walk(data):
            string(value)
        collect(data)
    except MalformedError:
        assert not holds(data, _GOOD)
    for dumped, sent in ((data, data), (data, _GOOD), (_GOOD, data), (data + _GOOD, _GOOD)):
        assert holds(dumped, sent) in {True, False}
        assert holds_each(dumped, sent) in {True, False}
    assert holds(_GOOD, _GOOD)
