"""All sets and chains of the table, including those that exist only on demand.

A set is on demand if it exists only while it has elements: the map of a tier, and the source ranges
of one prefix length. Some chains have a rule for each of these sets.
"""

from collections.abc import Collection, Iterable

from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.chains import SOURCES, shared_chains, source_chain
from svcproxy.backends.nftables.core.table_sets import Balance
from svcproxy.backends.nftables.core.tier_chains import tier_chain, tiers_chain
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables.ruleset import ChainSpec, SetSpec


def all_sets(settings: Settings, present: Iterable[str]) -> dict[str, SetSpec]:
    """Return the sets that every table has, and the on-demand sets named in ``present``."""
    specs = table_sets.shared_sets(settings.family)
    for name in present:
        if name not in specs:
            specs[name] = table_sets.set_on_demand(settings.family, name)
    return specs


def all_chains(settings: Settings, present: Collection[str]) -> dict[str, ChainSpec]:
    """Return every chain of a table whose on-demand sets are those named in ``present``."""
    chains = shared_chains(settings)
    on_demand = OnDemandChains(settings.family, present)
    for chain in (on_demand.sources(), *map(on_demand.tiers, table_sets.BALANCES)):
        chains[chain.name] = chain
    for tier in sorted(on_demand.present):
        chains[str(tier)] = tier_chain(settings.family, tier)
    return chains


class OnDemandChains:
    """The chains that have a rule for each on-demand set.

    Args:
        family: the IP family.
        present: the names of existing sets; those that are not on demand are ignored.
    """

    def __init__(self, family: IPFamily, present: Iterable[str]) -> None:
        names = list(present)
        self.family = family
        self.present = {tier for name in names if (tier := table_sets.parse_tier(name))}
        self.lengths = {bits for name in names if (bits := table_sets.parse_source_set(name))}

    def sources(self) -> ChainSpec:
        """Return the chain with a rule for each set of source ranges."""
        return source_chain(self.family, self.lengths)

    def tiers(self, balance: Balance) -> ChainSpec:
        """Return the chain with a rule for each tier of one balance."""
        return tiers_chain(balance, (tier for tier in self.present if tier.balance == balance))


def head_rule(family: IPFamily, name: str) -> ChainSpec:
    """Return the existing chain that must refer to an on-demand set, with only that rule."""
    on_demand, tier = OnDemandChains(family, (name,)), table_sets.parse_tier(name)
    if tier is not None:
        return on_demand.tiers(tier.balance)
    return ChainSpec(SOURCES, on_demand.sources().rules[:1])
