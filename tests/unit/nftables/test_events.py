"""Whose transactions touched our tables."""

from struct import iter_unpack, pack

import pytest

from svcproxy.netlink.core.attributes import text, u32
from svcproxy.netlink.core.messages import HEADER
from svcproxy.netlink.core.nf_tables import protocol as nft
from svcproxy.netlink.core.nf_tables.events import (
    EventParser,
    TransactionEvent,
    all_in_tables,
    originator_filter,
)


def event(kind: int, body: bytes, family: int = 2, port: int = 9) -> bytes:
    size = nft.HEADERS + len(body)
    header = HEADER.pack(size, nft.message_type(kind), 0, 1, port)
    return header + nft.FAMILY_HEADER.pack(family, 0, 0) + body + bytes(-size % 4)


def generation(number: int = 7, process: str = "nft", pid: int = 4711) -> bytes:
    return event(nft.NEW_GENERATION, u32(1, number) + u32(2, pid) + text(3, process), family=0)


def changes() -> EventParser:
    return EventParser(all_in_tables(["svcproxy"]), [2])


@pytest.mark.parametrize(
    "kind", [nft.NEW_ELEMENT, nft.DELETE_RULE, nft.DELETE_TABLE, nft.NEW_CHAIN]
)
def test_a_change_of_our_table_is_told_with_its_cause(kind: int) -> None:
    data = event(kind, text(1, "svcproxy") + text(2, "x")) + generation()
    assert list(changes().take(data)) == [
        TransactionEvent("nft", 4711, 7, families=frozenset((2,)))
    ]


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
    assert list(followed.take(generation(8))) == [
        TransactionEvent("nft", 4711, 8, families=frozenset((2,)))
    ]
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
    assert list(followed.take(event(nft.NEW_GENERATION, b""))) == [
        TransactionEvent("", 0, families=frozenset((2,)))
    ]


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
    program = originator_filter(own)
    for port in own:
        assert not accepts(program, event(nft.NEW_RULE, b"", port=port))
    for port in (0, 4, 0x123):
        assert accepts(program, event(nft.NEW_RULE, b"", port=port))
    assert len(program) == len(pack("=HBBI", 0, 0, 0, 0)) * 6


def test_a_judge_hears_of_tables_chains_and_rules() -> None:
    heard: list[tuple[str, str, bool]] = []

    def relevance(table: str, chain: str, *, deletion: bool) -> bool | None:
        heard.append((table, chain, deletion))
        return None

    data = (
        event(nft.DELETE_TABLE, text(1, "nat"))
        + event(nft.NEW_CHAIN, text(1, "nat") + text(3, "A"))
        + event(nft.DELETE_CHAIN, text(1, "nat") + text(3, "B"))
        + event(nft.NEW_RULE, text(1, "nat") + text(2, "C"))
        + event(nft.DELETE_RULE, text(1, "nat") + text(2, "D"))
        + event(nft.NEW_SET, text(1, "nat") + text(2, "set"))
        + generation()
    )
    assert list(EventParser(relevance, [2]).take(data)) == []
    assert heard == [
        ("nat", "", True),
        ("nat", "A", False),
        ("nat", "B", True),
        ("nat", "C", False),
        ("nat", "D", True),
        ("nat", "", False),
    ]


def test_the_gravest_judgement_of_a_transaction_counts() -> None:
    def relevance(table: str, chain: str, *, deletion: bool) -> bool | None:
        return {"sure": True, "perhaps": False}.get(chain)

    def told(*chains: str) -> list[bool]:
        data = b"".join(event(nft.NEW_RULE, text(1, "nat") + text(2, c)) for c in chains)
        return [
            change.certain for change in EventParser(relevance, [2, 10]).take(data + generation())
        ]

    assert told("perhaps", "sure", "perhaps") == [True]
    assert told("perhaps", "no") == [False]
    assert told("no") == []


def test_both_families_of_one_transaction_are_named() -> None:
    data = event(nft.NEW_RULE, text(1, "svcproxy"))
    data += event(nft.NEW_RULE, text(1, "svcproxy"), family=10) + generation()
    (change,) = EventParser(all_in_tables(["svcproxy"]), [2, 10]).take(data)
    assert change.families == {2, 10}


def test_what_came_from_our_own_addresses_is_passed_over() -> None:
    followed = changes()
    mine = event(nft.NEW_RULE, text(1, "svcproxy"), port=5) + generation()
    assert list(followed.take(mine, {5})) == []
    assert list(followed.take(generation())) == [], "and leaves nothing behind"
    assert len(list(followed.take(mine, {6}))) == 1
