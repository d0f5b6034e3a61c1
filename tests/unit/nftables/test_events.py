"""Events are parsed into transactions with relevant changes."""

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


def parser_of_table() -> EventParser:
    return EventParser(all_in_tables(["svcproxy"]), [2])


@pytest.mark.parametrize(
    "kind", [nft.NEW_ELEMENT, nft.DELETE_RULE, nft.DELETE_TABLE, nft.NEW_CHAIN]
)
def test_a_change_of_the_table_is_reported_with_its_process(kind: int) -> None:
    data = event(kind, text(1, "svcproxy") + text(2, "x")) + generation()
    assert list(parser_of_table().take(data)) == [
        TransactionEvent("nft", 4711, 7, families=frozenset((2,)))
    ]


def test_other_tables_and_families_are_ignored() -> None:
    data = (
        event(nft.NEW_RULE, text(1, "svcproxy2"))
        + event(nft.NEW_RULE, text(1, "svcproxy"), family=10)
        + generation()
    )
    assert list(parser_of_table().take(data)) == []


def test_elements_of_ignored_sets_are_ignored_but_not_the_sets() -> None:
    """Packets add elements to them, and another program may remove these."""
    parser = EventParser(all_in_tables(["svcproxy"]), [2], ["affinity"])

    def changes(kind: int, name: str) -> int:
        body = text(1, "svcproxy") + text(2, name)
        return len(list(parser.take(event(kind, body) + generation())))

    for kind in (nft.NEW_ELEMENT, nft.DELETE_ELEMENT):
        assert changes(kind, "affinity") == 0
        assert changes(kind, "affinity-endpoints") == 1
    for kind in (nft.NEW_SET, nft.DELETE_SET, nft.DELETE_RULE, nft.DELETE_TABLE):
        assert changes(kind, "affinity") == 1


def test_a_transaction_may_span_datagrams() -> None:
    parser = parser_of_table()
    assert list(parser.take(event(nft.NEW_RULE, text(1, "svcproxy")))) == []
    assert list(parser.take(event(nft.NEW_RULE, text(1, "another")))) == []
    assert list(parser.take(generation(8))) == [
        TransactionEvent("nft", 4711, 8, families=frozenset((2,)))
    ]
    assert list(parser.take(generation(9))) == []


def test_lost_events_discard_the_unfinished_transaction() -> None:
    parser = parser_of_table()
    list(parser.take(event(nft.NEW_RULE, text(1, "svcproxy"))))
    parser.forget()
    assert list(parser.take(generation())) == []


def test_malformed_events_are_ignored() -> None:
    parser = parser_of_table()
    assert list(parser.take(b"")) == []
    assert list(parser.take(event(nft.NEW_RULE, b"\x01"))) == []
    assert list(parser.take(event(nft.NEW_RULE, text(1, "svcproxy")))) == []
    assert list(parser.take(event(nft.NEW_GENERATION, b""))) == [
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


def test_events_of_own_port_ids_are_filtered() -> None:
    own = (3, 0xFFFFF123, 77)
    program = originator_filter(own)
    for port in own:
        assert not accepts(program, event(nft.NEW_RULE, b"", port=port))
    for port in (0, 4, 0x123):
        assert accepts(program, event(nft.NEW_RULE, b"", port=port))
    assert len(program) == len(pack("=HBBI", 0, 0, 0, 0)) * 6


def test_relevance_is_asked_about_tables_chains_and_rules() -> None:
    asked: list[tuple[str, str, bool]] = []

    def relevance(table: str, chain: str, *, deletion: bool) -> bool | None:
        asked.append((table, chain, deletion))
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
    assert asked == [
        ("nat", "", True),
        ("nat", "A", False),
        ("nat", "B", True),
        ("nat", "C", False),
        ("nat", "D", True),
        ("nat", "", False),
    ]


def test_a_transaction_is_certain_if_one_change_is() -> None:
    def relevance(table: str, chain: str, *, deletion: bool) -> bool | None:
        return {"certain": True, "perhaps": False}.get(chain)

    def certainties(*chains: str) -> list[bool]:
        data = b"".join(event(nft.NEW_RULE, text(1, "nat") + text(2, c)) for c in chains)
        return [
            change.certain for change in EventParser(relevance, [2, 10]).take(data + generation())
        ]

    assert certainties("perhaps", "certain", "perhaps") == [True]
    assert certainties("perhaps", "no") == [False]
    assert certainties("no") == []


def test_both_families_of_one_transaction_are_reported() -> None:
    data = event(nft.NEW_RULE, text(1, "svcproxy"))
    data += event(nft.NEW_RULE, text(1, "svcproxy"), family=10) + generation()
    (change,) = EventParser(all_in_tables(["svcproxy"]), [2, 10]).take(data)
    assert change.families == {2, 10}


def test_transactions_of_own_port_ids_are_ignored() -> None:
    parser = parser_of_table()
    mine = event(nft.NEW_RULE, text(1, "svcproxy"), port=5) + generation()
    assert list(parser.take(mine, {5})) == []
    assert list(parser.take(generation())) == [], "the ignored events left no trace"
    assert len(list(parser.take(mine, {6}))) == 1
