"""The chains that balance: endpoint lists of one length share a map and a chain.

The kernel's ``numgen`` takes a constant, so lists of different length need different rules; they
do not need different rules for each Service, because the endpoints are found by a key that
comes from the packet. Affinity's time-out is a constant as well.
"""

from collections.abc import Iterable

from svcproxy.backends.nftables.core import sets
from svcproxy.backends.nftables.core.layout import Expressions, Layout
from svcproxy.backends.nftables.core.sets import Balance, Tier
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables import expressions as ex
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
    rule = Rule((ex.verdict(Code.JUMP, tiers_name(balance)),))
    return ChainSpec(str(balance), (rule, rule))


def tiers_name(balance: Balance) -> str:
    """The name of the chain that tries the tiers."""
    return f"{balance}-tiers"


def tiers_chain(balance: Balance, tiers: Iterable[Tier]) -> ChainSpec:
    """The chain that tries the tiers: short lists first, because most are."""
    ordered = sorted(tiers, key=lambda tier: (tier.length, tier.seconds))
    rules = (Rule((ex.verdict(Code.JUMP, str(tier)),)) for tier in ordered)
    return ChainSpec(tiers_name(balance), tuple(rules))


def tier_chain(family: IPFamily, tier: Tier) -> ChainSpec:
    """The chain of a tier; packets that are for none of its frontends leave it again."""
    layout = Layout(family)
    if tier.seconds:
        return ChainSpec(str(tier), _StickyRules(layout, tier).rules())
    prefix = tier.balance.prefix
    key = layout.load_node_port(0) if prefix else layout.load_frontend(0)
    index = 2 if prefix else layout.frontend
    rule = (
        *key,
        ex.random_number(tier.length, index),
        ex.look_up(str(tier), 0, 0),
        _translate(layout, 0),
    )
    return ChainSpec(str(tier), (Rule(rule),))


def _translate(layout: Layout, word: int) -> ex.Expression:
    return ex.translate(FAMILY_NUMBERS[layout.family], word, word + layout.address)


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

    def __init__(self, layout: Layout, tier: Tier) -> None:
        self.layout = layout
        self.tier = tier
        self.owner = _TARGET + layout.address + 1
        self.valid = sets.AFFINITY_ENDPOINTS + (sets.LOCAL if tier.balance.local else "")

    def rules(self) -> tuple[Rule, ...]:
        """The chain's rules."""
        tier = self.tier
        keep = ex.update(Update.REFRESH, sets.AFFINITY, self.owner, _VALUE, tier.seconds)
        forget = ex.update(Update.DELETE, sets.AFFINITY, self.owner, _VALUE)
        valid = ex.contained(self.valid, _TARGET)
        recall = (
            *self._choose(1),
            ex.look_up(sets.AFFINITY, self.owner, _VALUE),
            ex.clear(_VALUE),
        )
        choose = (*self._choose(tier.length), ex.clear(_VALUE))
        go = _translate(self.layout, _TARGET)
        return (
            Rule((*recall, valid, keep, go), "to the endpoint that affinity has"),
            Rule((*recall, forget), "which is gone"),
            Rule((*choose, keep, go), f"to one of {tier.length} in {tier}, kept"),
            Rule((*choose, go), "the same without affinity, which is full"),
        )

    def _choose(self, count: int) -> Expressions:
        """Load one of the first ``count`` endpoints, its owner and the client's address."""
        layout, prefix = self.layout, self.tier.balance.prefix
        width = 2 if prefix else layout.frontend
        key = _WORDS - width - 1
        protocol = self.owner + layout.address + 1
        shown = (
            *layout.load_destination(_TARGET),
            *layout.load_port(_TARGET + layout.address),
            *layout.load_destination(self.owner),
            *layout.load_port(self.owner + layout.address),
        )
        return (
            *shown,
            *(layout.load_node_port(key) if prefix else layout.load_frontend(key)),
            ex.random_number(count, key + width),
            ex.look_up(str(self.tier), key, _VALUE),
            *layout.load_protocol(protocol),
            *layout.load_source(protocol + 1),
        )
