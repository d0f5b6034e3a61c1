"""Messages and their limits, and the objects that errors are about."""

from struct import unpack_from

import pytest

from svcproxy.backends.nftables.core.plan import Planner
from svcproxy.backends.nftables.core.table_objects import all_sets
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import (
    attribute,
    collect,
    holds,
    holds_each,
    nest,
    text,
    u32,
    walk,
)
from svcproxy.netlink.core.messages import FLAG_REQUEST
from svcproxy.netlink.core.messages import HEADER as MESSAGE_HEADER
from svcproxy.netlink.core.nf_tables import protocol as nft
from svcproxy.netlink.core.nf_tables.datatypes import address_key, decode_comment, encode_comment
from svcproxy.netlink.core.nf_tables.dump import same_content
from svcproxy.netlink.core.nf_tables.protocol import HEADERS
from svcproxy.netlink.core.nf_tables.ruleset import element_comment, element_data
from svcproxy.netlink.core.nf_tables.transaction import Message, Plan, batch, explain, messages
from svcproxy.netlink.errors import MalformedError
from tests.unit.nftables.services import Bench, options, service_port

V4 = IPFamily.IPV4
SETS = all_sets(options(V4), ())


def everything() -> list[Message]:
    plan = Planner(options(V4)).plan_changes({p.name: p for p in (service_port(V4),)})
    return list(messages(plan, "svcproxy"))


def test_a_transaction_is_numbered_from_one_and_ends() -> None:
    data = batch(everything(), V4, generation=77)
    kinds, sequences, start = [], [], 0
    while start < len(data):
        size, kind, flags, sequence, _ = MESSAGE_HEADER.unpack_from(data, start)
        assert flags & FLAG_REQUEST
        kinds.append(kind)
        sequences.append(sequence)
        if kind == nft.BATCH_BEGIN:
            assert collect(data[start + HEADERS : start + size]) == {1: (77).to_bytes(4, "big")}
        start += (size + 3) & ~3
    assert kinds[0] == nft.BATCH_BEGIN
    assert kinds[-1] == nft.BATCH_END
    assert sequences == list(range(len(sequences)))


def test_a_check_has_no_end() -> None:
    data = batch(everything(), V4, end=False)
    assert len(batch(everything(), V4)) == len(data) + HEADERS


def test_long_element_lists_are_split() -> None:
    elements = {n.to_bytes(12, "big"): element_comment("x" * 140) for n in range(2000)}
    parts = list(messages(Plan(add={"rejected": elements}), "svcproxy"))
    lengths = [
        unpack_from("=H", m.body, len(text(1, "svcproxy") + text(2, "rejected")))[0] for m in parts
    ]
    assert all(length < 65000 for length in lengths)
    found = [collect(member) for m in parts for _, member, _ in walk(collect(m.body)[3])]
    assert len(found) == len(elements)


def test_rules_come_before_elements() -> None:
    """For a rule that refers to a map, the kernel visits all elements of the map."""
    kinds = [message.kind for message in everything()]
    assert max(i for i, k in enumerate(kinds) if k == nft.NEW_RULE) < min(
        i for i, k in enumerate(kinds) if k == nft.NEW_ELEMENT
    )


def test_an_error_names_the_element() -> None:
    bench = Bench(options(V4), service_port(V4))
    plan = bench.planner.plan_changes(
        {p.name: p for p in (service_port(V4, name="b", vip="10.96.0.99"),)}
    )
    (message,) = [m for m in messages(plan, "svcproxy") if "cluster-ips" in m.description]
    offset = HEADERS + message.body.index(address_key("10.96.0.99")) - 12
    said = explain(message, offset, SETS)
    assert said == "cannot add an element of cluster-ips: 10.96.0.99 . tcp . 80 (default/b:http)"
    assert explain(message, 0, SETS) == "cannot add an element of cluster-ips"


def test_an_error_names_the_expression() -> None:
    rule = next(m for m in everything() if m.description == "rule 1 of chain all3")
    offset = HEADERS + rule.body.index(b"numgen\0") - 8
    assert explain(rule, offset, SETS) == "cannot add rule 1 of chain all3, expression numgen"
    broken = rule._replace(body=rule.body[:-3])
    assert explain(broken, offset, SETS) == "cannot add rule 1 of chain all3"


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "::", "::1", "fd00::", "fd00:1::2:3", "1:2:3:4:5:6:7:8", "::ffff:192.0.2.1"],
)
def test_addresses(address: str) -> None:
    from ipaddress import ip_address  # noqa: PLC0415

    assert address_key(address) == ip_address(address).packed


def test_sent_attributes_match_dumped_ones() -> None:
    sent = text(1, "x") + nest(2, u32(1, 5))
    assert holds(u32(9, 1) + text(1, "x") + attribute(2, u32(3, 0) + u32(1, 5)), sent)
    assert not holds(text(1, "x"), sent)
    assert not holds(text(1, "y") + nest(2, u32(1, 5)), sent)
    assert not holds(text(1, "x") + nest(2, u32(1, 6)), sent)
    assert not holds(b"\x01", sent)
    one = nest(1, u32(1, 5))
    assert holds_each(one, one)
    assert not holds_each(one + one, one)
    assert not holds_each(b"\x01", one)


def test_malformed_attributes_are_reported() -> None:
    for data in (b"\x01", b"\x03\0\x01\0", b"\x09\0\x01\0xxxx"):
        with pytest.raises(MalformedError):
            list(walk(data))


def test_elements_may_be_encoded_differently() -> None:
    sent = element_data(b"abcd") + element_comment("x")
    flagged = nest(2, attribute(1, b"abcd")) + element_comment("x")
    assert same_content(flagged, sent)
    assert not same_content(nest(2, attribute(1, b"abce")) + element_comment("x"), sent)
    assert not same_content(element_data(b"abcd"), sent)
    assert not same_content(b"\x01", sent)


def test_comments_are_cut_at_the_kernels_limit() -> None:
    note = encode_comment("x" * 300)
    assert len(note) < 256
    assert decode_comment(note) == "x" * 250
    assert decode_comment(b"") == ""
