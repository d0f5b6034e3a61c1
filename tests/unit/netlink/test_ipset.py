"""What is sent to ipset, and what its answers say."""

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
def test_what_is_sent_says_what_is_meant(name: str, family: IPFamily, data: st.DataObject) -> None:
    kind = SetKind(name)
    entries = tuple(data.draw(st.lists(entries_of(kind, family), max_size=20)))
    for make in (AddEntries, RemoveEntries):
        pieces = list(messages.operation_requests(make("S", kind, entries), family))
        bodies = [piece.request.body for piece in pieces]
        assert tuple(messages.decode_entries(bodies, kind)) == entries


def test_many_entries_take_many_messages() -> None:
    """The list in a message has a length of 16 bits."""
    entries = tuple(
        SetEntry("fd00::1", Protocol.TCP, n, f"fd00::{n:x}/128") for n in range(1, 5000)
    )
    pieces = list(messages.operation_requests(AddEntries("S", NETWORKS, entries), V6))
    assert all(len(piece.request.body) < 1 << 16 for piece in pieces)
    parts = [piece.operation for piece in pieces]
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
    ours, other = (messages.decode_headers([dumps.SET_HEADER], f) for f in (V6, IPFamily.IPV4))
    assert ours == {"A": ListedSet(NETWORKS, 2, 0)}
    assert other == {"A": ListedSet(None, 2, 0)}


def test_the_kernel_tells_which_entry_it_refuses() -> None:
    assert messages.refused_entry(dumps.REFUSED) == 1
    assert messages.refused_entry(dumps.REFUSED[:16]) is None  # an ordinary answer


def test_private_errors_depend_on_the_type() -> None:
    hashed, bitmap = (CreateSet("S", SetKind(name)) for name in ("hash:ip", "bitmap:port"))
    assert "full" in messages.explanation(hashed, 4352)
    assert "range" in messages.explanation(bitmap, 4352)
    assert messages.explanation(SwapSets("S", "T"), 4102)
    assert messages.explanation(SwapSets("S", "T"), 2) == ""
    assert "4999" in messages.explanation(hashed, 4999)


def test_networks_of_everything_are_halved() -> None:
    entry = SetEntry("10.0.0.1", Protocol.TCP, 80, "10.0.0.0/8")
    assert without_zero_prefix(entry) == (entry,)
    halves = without_zero_prefix(entry._replace(other="0.0.0.0/0"))
    assert [half.other for half in halves] == ["0.0.0.0/1", "128.0.0.0/1"]
    halves = without_zero_prefix(entry._replace(address="fd00::1", other="::/0"))
    assert [half.other for half in halves] == ["::/1", "8000::/1"]
