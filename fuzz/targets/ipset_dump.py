"""Dumps of ipsets: a malformed answer does not affect the entries of others."""

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core import ipset as messages
from svcproxy.netlink.core.kernel_objects import SetEntry, SetKind
from svcproxy.netlink.core.operations import AddEntries, CreateSet

_ENTRIES = {
    "hash:ip": SetEntry("10.0.0.1"),
    "hash:ip,port": SetEntry("10.0.0.1", Protocol.UDP, 53),
    "hash:ip,port,ip": SetEntry("10.0.0.1", Protocol.TCP, 53, "10.0.0.2"),
    "hash:ip,port,net": SetEntry("10.0.0.1", Protocol.SCTP, 53, "10.0.0.0/8"),
    "bitmap:port": SetEntry(port=30000),
}
_V4 = IPFamily.IPV4


def _body(operation: AddEntries | CreateSet) -> bytes:
    (part,) = messages.operation_requests(operation, _V4)
    return part.request.body


def _bodies() -> dict[str, bytes]:
    return {t: _body(AddEntries("S", SetKind(t), (e,))) for t, e in _ENTRIES.items()}


_GOOD = _bodies()
_HEADERS = [_body(CreateSet(f"S{n}", SetKind(t))) for n, t in enumerate(_ENTRIES)]

SEEDS = (*_GOOD.values(), *_HEADERS, b"\x02\x00\x00\x00\xff\xff\x07\x80", b"\x02\x00\x00\x00")


def check(data: bytes) -> None:
    """Decode the input between valid answers, and spliced into each of them."""
    bodies = [data, *_spliced(data)]
    for kind, good in _GOOD.items():
        entry = _ENTRIES[kind]
        for body in bodies:
            found = list(messages.decode_entries([good, body, good], SetKind(kind)))
            assert found[0] == found[-1] == entry
    for family in IPFamily:
        headers = messages.decode_headers([*bodies, *_HEADERS], family)
        assert all(f"S{n}" in headers for n in range(len(_HEADERS)))
    messages.refused_entry(data)


def _spliced(data: bytes) -> list[bytes]:
    if len(data) < 2:
        return []
    at, part = data[0], data[1:]
    return [good[: at % len(good)] + part + good[at % len(good) + len(part) :] for good in SEEDS]
