"""Whose transactions touched our tables."""

from struct import iter_unpack, pack

import pytest

from svcproxy.backends.nftables import protocol as nft
from svcproxy.backends.nftables.events import Change, Changes, without
from svcproxy.netlink.attributes import text, u32


def event(kind: int, body: bytes, family: int = 2, port: int = 9) -> bytes:
    size = nft.HEADERS + len(body)
    header = nft.MESSAGE_HEADER.pack(size, nft.message_type(kind), 0, 1, port)
    return header + nft.FAMILY_HEADER.pack(family, 0, 0) + body + bytes(-size % 4)


def generation(number: int = 7, process: str = "nft", pid: int = 4711) -> bytes:
    return event(nft.NEW_GENERATION, u32(1, number) + u32(2, pid) + text(3, process), family=0)


def changes() -> Changes:
    return Changes(["svcproxy"], [2])


@pytest.mark.parametrize(
    "kind", [nft.NEW_ELEMENT, nft.DELETE_RULE, nft.DELETE_TABLE, nft.NEW_CHAIN]
)
def test_a_change_of_our_table_is_told_with_its_cause(kind: int) -> None:
    data = event(kind, text(1, "svcproxy") + text(2, "x")) + generation()
    assert list(changes().take(data)) == [Change("nft", 4711, 7)]


def test_other_tables_and_families_are_not() -> None:
    data = (
        event(nft.NEW_RULE, text(1, "svcproxy2"))
        + event(nft.NEW_RULE, text(1, "svcproxy"), family=10)
        + generation()
    )
    assert list(changes().take(data)) == []


def test_a_transaction_may_come_in_pieces() -> None:
    followed = changes()
    assert list(followed.take(event(nft.NEW_RULE, text(1, "svcproxy")))) == []
    assert list(followed.take(event(nft.NEW_RULE, text(1, "another")))) == []
    assert list(followed.take(generation(8))) == [Change("nft", 4711, 8)]
    assert list(followed.take(generation(9))) == []


def test_lost_events_leave_nothing_behind() -> None:
    followed = changes()
    list(followed.take(event(nft.NEW_RULE, text(1, "svcproxy"))))
    followed.forget()
    assert list(followed.take(generation())) == []


def test_odd_events_do_no_harm() -> None:
    followed = changes()
    assert list(followed.take(b"")) == []
    assert list(followed.take(event(nft.NEW_RULE, b"\x01"))) == []
    assert list(followed.take(event(nft.NEW_RULE, text(1, "svcproxy")))) == []
    assert list(followed.take(event(nft.NEW_GENERATION, b""))) == [Change("", 0)]


def accepts(program: bytes, data: bytes) -> bool:
    """Run a classic BPF program of loads, comparisons and returns."""
    lines = list(iter_unpack("=HBBI", program))
    position = value = 0
    while True:
        code, yes, no, number = lines[position]
        if code == 0x20:
            value = int.from_bytes(data[number : number + 4], "big")
        elif code == 0x15:
            position += yes if value == number else no
        else:
            return bool(number)
        position += 1


def test_our_own_events_are_filtered() -> None:
    own = (3, 0xFFFFF123, 77)
    program = without(own)
    for port in own:
        assert not accepts(program, event(nft.NEW_RULE, b"", port=port))
    for port in (0, 4, 0x123):
        assert accepts(program, event(nft.NEW_RULE, b"", port=port))
    assert len(program) == len(pack("=HBBI", 0, 0, 0, 0)) * 6
