"""Encoding and decoding messages of ipset."""

from socket import AF_INET6

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core import ipset as messages
from svcproxy.netlink.core.ipset import MAX_ENTRIES, ListedSet
from svcproxy.netlink.core.kernel_objects import SetEntry, SetKind, without_zero_prefix
from svcproxy.netlink.core.operations import AddEntries, CreateSet, RemoveEntries, SwapSets
from tests.unit.netlink import kernel_dumps as dumps
from tests.unit.netlink.addresses import addresses, ports

NETWORKS = SetKind("hash:ip,port,net")
V6 = IPFamily.IPV6


@st.composite
def entries_of(draw: st.DrawFn, kind: SetKind, family: IPFamily) -> SetEntry:
    address, protocol = draw(addresses(family)), draw(st.sampled_from(Protocol))
    other = draw(addresses(family))
    match kind.type:
        case "hash:ip":
            return SetEntry(address)
        case "hash:ip,port":
            return SetEntry(address, protocol, draw(ports))
        case "hash:ip,port,ip":
            return SetEntry(address, protocol, draw(ports), other)
        case "hash:ip,port,net":
            return SetEntry(address, protocol, draw(ports), f"{other}/{draw(st.integers(1, 32))}")
        case _:
            return SetEntry(port=draw(ports))


@given(st.sampled_from(sorted(messages.REVISIONS)), st.sampled_from(IPFamily), st.data())
def test_requests_decode_to_their_entries(name: str, family: IPFamily, data: st.DataObject) -> None:
    kind = SetKind(name)
    entries = tuple(data.draw(st.lists(entries_of(kind, family), max_size=20)))
    for make in (AddEntries, RemoveEntries):
        requests = list(messages.operation_requests(make("S", kind, entries), family))
        bodies = [request.request.body for request in requests]
        assert tuple(messages.decode_entries(bodies, kind)) == entries


def test_many_entries_take_many_messages() -> None:
    """The length of the list in a message has 16 bits."""
    entries = tuple(
        SetEntry("fd00::1", Protocol.TCP, n, f"fd00::{n:x}/128") for n in range(1, 5000)
    )
    requests = list(messages.operation_requests(AddEntries("S", NETWORKS, entries), V6))
    assert all(len(part.request.body) < 1 << 16 for part in requests)
    parts = [part.operation for part in requests]
    assert all(isinstance(part, AddEntries) for part in parts)
    assert [entry for part in parts if isinstance(part, AddEntries) for entry in part.entries] == [
        *entries
    ]
    small = tuple(SetEntry(port=n) for n in range(1, 2 * MAX_ENTRIES + 2))
    assert (
        len(list(messages.operation_requests(AddEntries("S", SetKind("bitmap:port"), small), V6)))
        == 3
    )


def test_entries_are_decoded() -> None:
    assert set(messages.decode_entries([dumps.SET_ENTRIES], NETWORKS)) == {
        SetEntry("fd00::1", Protocol.TCP, 80, "2001:db8::/32"),
        SetEntry("fd00::1", Protocol.UDP, 80, "fd00::9/128"),
    }


def test_headers_are_decoded() -> None:
    ipv6, ipv4 = (messages.decode_headers([dumps.SET_HEADER], f) for f in (V6, IPFamily.IPV4))
    assert ipv6 == {"A": ListedSet(NETWORKS, 2, 0, AF_INET6)}
    assert ipv4 == {"A": ListedSet(None, 2, 0, AF_INET6)}


def test_the_refused_entry_is_decoded() -> None:
    assert messages.refused_entry(dumps.REFUSED) == 1
    assert messages.refused_entry(dumps.REFUSED[:16]) is None  # an ordinary acknowledgement


def test_ipset_errors_depend_on_the_set_type() -> None:
    hashed, bitmap = (CreateSet("S", SetKind(name)) for name in ("hash:ip", "bitmap:port"))
    assert "full" in messages.explanation(hashed, 4352)
    assert "range" in messages.explanation(bitmap, 4352)
    assert messages.explanation(SwapSets("S", "T"), 4102)
    assert messages.explanation(SwapSets("S", "T"), 2) == ""
    assert "4999" in messages.explanation(hashed, 4999)


def test_zero_prefixes_are_split() -> None:
    entry = SetEntry("10.0.0.1", Protocol.TCP, 80, "10.0.0.0/8")
    assert without_zero_prefix(entry) == (entry,)
    halves = without_zero_prefix(entry._replace(other="0.0.0.0/0"))
    assert [half.other for half in halves] == ["0.0.0.0/1", "128.0.0.0/1"]
    halves = without_zero_prefix(entry._replace(address="fd00::1", other="::/0"))
    assert [half.other for half in halves] == ["::/1", "8000::/1"]
