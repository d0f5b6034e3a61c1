"""The chains that balance: frontends with the same number of endpoints share a map and a chain.

The number of endpoints is a constant in the kernel's ``numgen`` expression, and so is the affinity
time-out in ``dynset``. So each combination needs its own rules: a tier. Services of one tier share
them, because the rules look up endpoints by address, protocol and port of the packet.
"""

from collections.abc import Iterable

from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.packet_fields import Expressions, PacketFields
from svcproxy.backends.nftables.core.table_sets import Balance, Tier
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.nf_tables import expressions
from svcproxy.netlink.core.nf_tables.expressions import Code, Update
from svcproxy.netlink.core.nf_tables.ruleset import ChainSpec, Rule

_WORDS = 16
_VALUE, _TARGET = 0, 1
"""The registers for values of affinity maps, and for the endpoint in them."""


def balance_chain(balance: Balance) -> ChainSpec:
    """Return the chain of a balance: it tries all tiers, twice.

    A frontend may move to a tier that a packet has already passed, because elements change while
    packets traverse the rules. The second pass finds it. A frontend that moves to a new tier is
    always found, because the tier exists before its elements (``transaction.stages``).
    """
    rule = Rule((expressions.verdict(Code.JUMP, tiers_name(balance)),))
    return ChainSpec(str(balance), (rule, rule))


def tiers_name(balance: Balance) -> str:
    """Return the name of the chain that tries the tiers of a balance."""
    return f"{balance}-tiers"


def tiers_chain(balance: Balance, tiers: Iterable[Tier]) -> ChainSpec:
    """Return the chain that tries tiers: short lists first, because most lists are short."""
    ordered = sorted(tiers, key=lambda tier: (tier.length, tier.seconds))
    rules = (Rule((expressions.verdict(Code.JUMP, str(tier)),)) for tier in ordered)
    return ChainSpec(tiers_name(balance), tuple(rules))


def tier_chain(family: IPFamily, tier: Tier) -> ChainSpec:
    """Return the chain of a tier; packets to frontends of other tiers return from it."""
    fields = PacketFields(family)
    if tier.seconds:
        return ChainSpec(str(tier), _AffinityRules(fields, tier).rules())
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


class _AffinityRules:
    """The rules of a tier with ClientIP affinity.

    A client's packets are sent to the endpoint that is remembered for it, or else to a new one that
    is remembered. A remembered endpoint only counts while it is in the set of valid endpoints, so
    removing an endpoint need not search the clients. The kernel does not replace the data of an
    existing element, so an outdated endpoint is deleted first. When the map of clients is full,
    packets are still balanced, without affinity.

    nft (1.0.6, ``netlink_parse_concat_expr``) aborts with a failed assertion when it lists a rule
    that looks up the result of another look-up. It derives the meaning of a register from what was
    last loaded at exactly that register. Therefore the values of these maps begin with an empty
    word: the look-up writes to the register before the one that is read next. For the latter nft
    then assumes what was loaded there before, the packet's destination, and prints that. The
    comment of each rule says what it really does.

    Registers: an empty word; the endpoint; address, port and protocol of the affinity key
    (``render.affinity_key``); the client's address. With IPv6 these take all sixteen words. The
    key of the first look-up is at their end, which is unused until then.
    """

    def __init__(self, fields: PacketFields, tier: Tier) -> None:
        self.fields = fields
        self.tier = tier
        self.key = _TARGET + fields.address_words + 1
        self.valid = table_sets.AFFINITY_ENDPOINTS + (
            table_sets.LOCAL if tier.balance.local else ""
        )

    def rules(self) -> tuple[Rule, ...]:
        """Return the rules of the chain."""
        tier = self.tier
        remember = expressions.update(
            Update.REFRESH, table_sets.AFFINITY, self.key, _VALUE, tier.seconds
        )
        forget = expressions.update(Update.DELETE, table_sets.AFFINITY, self.key, _VALUE)
        valid = expressions.in_set(self.valid, _TARGET)
        recall = (
            *self._choose(1),
            expressions.map_lookup(table_sets.AFFINITY, self.key, _VALUE),
            expressions.clear(_VALUE),
        )
        choose = (*self._choose(tier.length), expressions.clear(_VALUE))
        dnat = _translate(self.fields, _TARGET)
        return (
            Rule((*recall, valid, remember, dnat), "to the endpoint that affinity has"),
            Rule((*recall, forget), "which is gone"),
            Rule((*choose, remember, dnat), f"to one of {tier.length} in {tier}, kept"),
            Rule((*choose, dnat), "the same without affinity, which is full"),
        )

    def _choose(self, count: int) -> Expressions:
        """Load one of the first ``count`` endpoints, the affinity key and the client's address."""
        fields, prefix = self.fields, self.tier.balance.prefix
        width = 2 if prefix else fields.frontend_words
        lookup_key = _WORDS - width - 1
        protocol = self.key + fields.address_words + 1
        shown = (
            *fields.load_destination(_TARGET),
            *fields.load_port(_TARGET + fields.address_words),
            *fields.load_destination(self.key),
            *fields.load_port(self.key + fields.address_words),
        )
        return (
            *shown,
            *(fields.load_node_port(lookup_key) if prefix else fields.load_frontend(lookup_key)),
            expressions.random_number(count, lookup_key + width),
            expressions.map_lookup(str(self.tier), lookup_key, _VALUE),
            *fields.load_protocol(protocol),
            *fields.load_source(protocol + 1),
        )
