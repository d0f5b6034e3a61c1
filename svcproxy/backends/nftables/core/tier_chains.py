"""The chains that balance: endpoint lists of one length share a map and a chain.

The kernel's ``numgen`` takes a constant, so lists of different length need different rules; they
do not need different rules for each Service, because the endpoints are found by a key that
comes from the packet. Affinity's time-out is a constant as well.
"""

from collections.abc import Iterable

from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.packet_fields import Expressions, PacketFields
from svcproxy.backends.nftables.core.table_sets import Balance, Tier
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables import expressions
from svcproxy.netlink.core.nf_tables.expressions import Code, Update
from svcproxy.netlink.core.nf_tables.protocol import FAMILY_NUMBERS
from svcproxy.netlink.core.nf_tables.ruleset import ChainSpec, Rule

_WORDS = 16
_VALUE, _TARGET = 0, 1
"""Where the values of sticky maps are loaded to, and where the endpoint in them then is."""


def balance_chain(balance: Balance) -> ChainSpec:
    """The chain that leads frontends to their tiers.

    It tries them all, and then all once more: a list may become shorter while a packet is
    between the tier that it comes to and the one that it goes from. (One that goes to a new tier
    is found because the tier is there before: ``transaction.stages``.)
    """
    rule = Rule((expressions.verdict(Code.JUMP, tiers_name(balance)),))
    return ChainSpec(str(balance), (rule, rule))


def tiers_name(balance: Balance) -> str:
    """The name of the chain that tries the tiers."""
    return f"{balance}-tiers"


def tiers_chain(balance: Balance, tiers: Iterable[Tier]) -> ChainSpec:
    """The chain that tries the tiers: short lists first, because most are."""
    ordered = sorted(tiers, key=lambda tier: (tier.length, tier.seconds))
    rules = (Rule((expressions.verdict(Code.JUMP, str(tier)),)) for tier in ordered)
    return ChainSpec(tiers_name(balance), tuple(rules))


def tier_chain(family: IPFamily, tier: Tier) -> ChainSpec:
    """The chain of a tier; packets that are for none of its frontends leave it again."""
    fields = PacketFields(family)
    if tier.seconds:
        return ChainSpec(str(tier), _StickyRules(fields, tier).rules())
    prefix = tier.balance.prefix
    key = fields.load_node_port(0) if prefix else fields.load_frontend(0)
    index = 2 if prefix else fields.frontend_words
    rule = (
        *key,
        expressions.random_number(tier.length, index),
        expressions.map_lookup(str(tier), 0, 0),
        _translate(fields, 0),
    )
    return ChainSpec(str(tier), (Rule(rule),))


def _translate(fields: PacketFields, word: int) -> expressions.Expression:
    return expressions.translate(FAMILY_NUMBERS[fields.family], word, word + fields.address_words)


class _StickyRules:
    """Send a client where it was before, or else remember where it is sent.

    What is remembered counts only while it is among the valid endpoints, so nobody has to search
    the memory for those that are gone. The kernel does not replace a remembered endpoint, so one
    that counts no more is forgotten first. Should the memory be full, clients are still served.

    These rules look up what another look-up found, and nft (1.0.6, ``netlink_parse_concat_expr``)
    dies of a failed assertion when it has to list that. It takes a register for what was last
    loaded at that very register. So the values of these maps begin with an empty word: the
    look-up goes to the register before the one that is read, where nft sees what was loaded
    before the look-up, the packet's destination. It prints that instead, and the rule's comment
    says what really happens.

    Registers: an empty word; the endpoint; address, port and protocol of the frontend that owns
    the endpoints; the client's address. With IPv6 these are all sixteen words. The key of the
    first look-up stands at their end, where nothing is needed yet.
    """

    def __init__(self, fields: PacketFields, tier: Tier) -> None:
        self.fields = fields
        self.tier = tier
        self.owner = _TARGET + fields.address_words + 1
        self.valid = table_sets.AFFINITY_ENDPOINTS + (
            table_sets.LOCAL if tier.balance.local else ""
        )

    def rules(self) -> tuple[Rule, ...]:
        """The chain's rules."""
        tier = self.tier
        keep = expressions.update(
            Update.REFRESH, table_sets.AFFINITY, self.owner, _VALUE, tier.seconds
        )
        forget = expressions.update(Update.DELETE, table_sets.AFFINITY, self.owner, _VALUE)
        valid = expressions.in_set(self.valid, _TARGET)
        recall = (
            *self._choose(1),
            expressions.map_lookup(table_sets.AFFINITY, self.owner, _VALUE),
            expressions.clear(_VALUE),
        )
        choose = (*self._choose(tier.length), expressions.clear(_VALUE))
        go = _translate(self.fields, _TARGET)
        return (
            Rule((*recall, valid, keep, go), "to the endpoint that affinity has"),
            Rule((*recall, forget), "which is gone"),
            Rule((*choose, keep, go), f"to one of {tier.length} in {tier}, kept"),
            Rule((*choose, go), "the same without affinity, which is full"),
        )

    def _choose(self, count: int) -> Expressions:
        """Load one of the first ``count`` endpoints, its owner and the client's address."""
        fields, prefix = self.fields, self.tier.balance.prefix
        width = 2 if prefix else fields.frontend_words
        key = _WORDS - width - 1
        protocol = self.owner + fields.address_words + 1
        shown = (
            *fields.load_destination(_TARGET),
            *fields.load_port(_TARGET + fields.address_words),
            *fields.load_destination(self.owner),
            *fields.load_port(self.owner + fields.address_words),
        )
        return (
            *shown,
            *(fields.load_node_port(key) if prefix else fields.load_frontend(key)),
            expressions.random_number(count, key + width),
            expressions.map_lookup(str(self.tier), key, _VALUE),
            *fields.load_protocol(protocol),
            *fields.load_source(protocol + 1),
        )
