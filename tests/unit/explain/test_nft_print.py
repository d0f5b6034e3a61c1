"""What the printer does with rules that svcproxy does not write; the rest is compared with nft."""

import pytest

from svcproxy.explain.core.nft_print import print_table, rule_text
from svcproxy.explain.core.nft_rules import NftRuleset
from svcproxy.explain.core.nft_table import NftTable
from svcproxy.explain.core.packet import Packet, UnknownRuleError
from svcproxy.explain.core.trace import trace
from svcproxy.netlink.core.attributes import attribute, nest, text, u32
from svcproxy.netlink.core.nf_tables import expressions as ex
from svcproxy.netlink.core.nf_tables.expressions import Code, Header, Meta
from svcproxy.netlink.core.nf_tables.ruleset import ChainSpec, Hook, Rule


def unknown(name: str) -> bytes:
    return nest(1, text(1, name), nest(2, u32(3, 7), attribute(9, b"\1\2\3\4")))


def table(*rules: Rule) -> NftTable:
    chain = ChainSpec("base", rules, Hook("filter", 0, -110))
    return NftTable(
        "ip",
        "svcproxy",
        chains={"base": chain.attributes()},
        rules={"base": [rule.attributes() for rule in rules]},
    )


def test_an_unknown_expression_is_printed_with_its_attributes() -> None:
    rule = Rule((unknown("quota"), ex.verdict(Code.DROP)), "limited")
    printed = rule_text(table(), rule.attributes())
    assert printed == '[quota 3=0x00000007 9=0x01020304] drop comment "limited"'


def test_unknown_numbers_are_printed() -> None:
    rules = (
        (ex.payload(Header.NETWORK, 1, 1, 0), ex.compare(0, b"\x04")),
        (nest(1, text(1, "meta"), nest(2, u32(2, 99), u32(1, 1))), ex.compare(0, b"\1\0\0\0")),
        (nest(1, text(1, "immediate"), nest(2, u32(1, 0), nest(2, nest(2, u32(1, 9))))),),
        (ex.reject(13),),
        (ex.in_set("missing", 0),),
    )
    printed = [rule_text(table(), Rule(rule).attributes()) for rule in rules]
    assert printed == [
        "@1,8,8 0x00000004",
        "meta [99] 0x00000001",
        "[verdict 9]",
        "reject with [type 0 code 13]",
        "[register 0] @missing",
    ]


def test_base_chains_have_their_hook_and_their_rules() -> None:
    rule = Rule((ex.meta(Meta.L4PROTO, 0), ex.compare(0, b"\x06"), ex.verdict(Code.ACCEPT)))
    assert print_table(table(rule)).splitlines() == [
        "table ip svcproxy {",
        "\tchain base {",
        "\t\ttype filter hook prerouting priority dstnat - 10; policy accept;",
        "\t\tmeta l4proto tcp accept",
        "\t}",
        "}",
    ]


def expression(name: str, *attributes: bytes) -> bytes:
    return nest(1, text(1, name), nest(2, *attributes))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ((unknown("quota"),), "quota"),
        ((ex.meta(Meta.L4PROTO, 0), expression("cmp", u32(1, 1), u32(2, 3))), "comparison"),
        ((expression("meta", u32(2, 99), u32(1, 1)),), "meta key 99"),
        ((ex.meta(Meta.MARK, 0), expression("meta", u32(2, 7), u32(3, 1))), "meta key 7 is set"),
        ((ex.payload(Header.NETWORK, 0, 1, 0),), "payload"),
        ((ex.payload(Header.TRANSPORT, 0, 2, 0),), "payload"),
        ((expression("payload", u32(1, 1), u32(2, 0), u32(3, 0), u32(4, 6)),), "payload"),
        ((expression("ct", u32(1, 1), u32(2, 9)),), "ct key 9"),
        ((expression("fib", u32(1, 1), u32(2, 1), u32(3, 1)),), "fib"),
        ((expression("numgen", u32(1, 1), u32(2, 2), u32(3, 0)),), "numgen"),
        ((ex.random_number(2, 0), ex.compare(0, bytes(4))), "random number"),
        ((ex.compare(0, bytes(4)),), "before it is loaded"),
        ((ex.in_set("missing", 0),), "missing"),
        ((ex.verdict(Code.JUMP, "nowhere"),), "nowhere"),
        ((expression("nat", u32(1, 0), u32(2, 2), u32(3, 1), u32(5, 2)),), "nat"),
    ],
)
def test_the_tracer_refuses_what_it_does_not_know(rule: tuple[bytes, ...], message: str) -> None:
    rules = NftRuleset(table(Rule((*rule, ex.verdict(Code.DROP)))))
    with pytest.raises(UnknownRuleError, match=message):
        trace(Packet("10.244.1.9", "10.96.0.10", 80), rules)


def test_a_chain_may_drop_what_reaches_its_end() -> None:
    chain = ChainSpec("base", (), Hook("filter", 0, 0)).attributes()
    dropping = chain.replace(u32(5, 1), u32(5, 0))
    rules = NftRuleset(NftTable("ip", "svcproxy", chains={"base": dropping}))
    assert str(trace(Packet("10.244.1.9", "10.96.0.10", 80), rules)) == "drop"
