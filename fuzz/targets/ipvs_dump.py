"""Dumps of IPVS and of addresses: a malformed answer does not affect the others."""

import contextlib

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core import ipvs as messages
from svcproxy.netlink.core import rtnetlink
from svcproxy.netlink.core.kernel_objects import RealServerKey, VirtualServer, VirtualServerKey
from svcproxy.netlink.core.messages import NetlinkMessage
from svcproxy.netlink.core.messages import messages as split
from svcproxy.netlink.core.operations import AddRealServer, AddVirtualServer
from svcproxy.netlink.errors import MalformedError

_KEYS = {
    IPFamily.IPV4: VirtualServerKey(Protocol.TCP, "10.0.0.1", 80),
    IPFamily.IPV6: VirtualServerKey(Protocol.UDP, "::102:304", 53),
}
_REAL = {
    IPFamily.IPV4: RealServerKey("10.244.0.1", 8080),
    IPFamily.IPV6: RealServerKey("fd00::1", 8080),
}
_SERVER = VirtualServer("rr", 1, 60)
_VIRTUAL = {
    f: messages.operation_request(0, AddVirtualServer(k, _SERVER)).body for f, k in _KEYS.items()
}
_ADDRESSES = {f: rtnetlink.add_address_request(1, k.address).body for f, k in _KEYS.items()}
_LINK = rtnetlink.create_dummy_request("kube-ipvs0").body
_REAL_SERVERS = {
    f: messages.operation_request(0, AddRealServer(_KEYS[f], real, 1)).body
    for f, real in _REAL.items()
}

SEEDS = (
    *_VIRTUAL.values(),
    *_REAL_SERVERS.values(),
    *_ADDRESSES.values(),
    _LINK,
    b"\x01\x01\x00\x00\x54\x00\x01\x80\x06\x00\x01\x00\x02\x00\x00\x00",
    b"\x02\xff\x00\x00\x01\x00\x00\x00\x05\x00\x01\x00\x7f\x00\x00\x00",
    b"\x00\x00\x00\x00" * 4,
)


def check(data: bytes) -> None:
    """Decode the input between valid answers, and spliced into each of them."""
    for body in (data, *_spliced(data)):
        for family in IPFamily:
            _decode(body, family)
    with contextlib.suppress(MalformedError):  # the dump is repeated on a new socket
        for message in split(data):
            assert message.error is not None


def _decode(body: bytes, family: IPFamily) -> None:
    good = _VIRTUAL[family]
    found = list(messages.decode_virtual_servers([good, body, good], family))
    assert found[0] == found[-1] == (_KEYS[family], _SERVER)
    list(messages.decode_real_servers([body], family))
    address = _ADDRESSES[family]
    bound = list(rtnetlink.decode_addresses([address, body, address], family))
    assert bound[0].address == bound[-1].address == _KEYS[family].address
    links = list(rtnetlink.decode_links([_LINK, body, _LINK]))
    assert links[0].name == links[-1].name == "kube-ipvs0"
    rtnetlink.classify_addresses(links, bound, "kube-ipvs0")
    events = rtnetlink.AddressEventFilter("kube-ipvs0")
    events.is_relevant(NetlinkMessage(kind, 0, 0, body) for kind in (16, 17, 20, 21))


def _spliced(data: bytes) -> list[bytes]:
    if len(data) < 2:
        return []
    at, part = data[0], data[1:]
    return [good[: at % len(good)] + part + good[at % len(good) + len(part) :] for good in SEEDS]
