"""The table that nftables mode programs for some Service ports.

The only module of this package that depends on nftables mode's planner.
"""

from collections.abc import Mapping

from svcproxy.backends.base import Desired
from svcproxy.backends.nftables.core.plan import Planner
from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.backends.nftables.core.table_objects import all_sets
from svcproxy.explain.core.nft_table import NftTable
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.ruleset import TABLE

FAMILIES = {IPFamily.IPV4: "ip", IPFamily.IPV6: "ip6"}
"""The names of nf_tables' families, by IP family."""


def rendered(ports: Mapping[ServicePortName, ServicePort], settings: NftablesSettings) -> NftTable:
    """Return the table that nftables mode writes into an empty kernel."""
    plan = Planner(settings).plan(Desired(ports, settings), settings, TableDump())
    specs = all_sets(settings, [spec.name for spec in plan.sets])
    return NftTable(
        family=FAMILIES[settings.family],
        name=TABLE,
        sets={spec.name: specs[spec.name].attributes() for spec in plan.sets},
        chains={chain.name: chain.attributes() for chain in plan.chains},
        rules={chain.name: [rule.attributes() for rule in chain.rules] for chain in plan.chains},
        elements=plan.add,
    )


def observed_table(observed: TableDump, family: str) -> NftTable:
    """Convert a table that was read from the kernel; ``family`` is ``ip`` or ``ip6``."""
    return NftTable(
        family=family,
        name=TABLE,
        sets=observed.sets,
        chains=observed.chains,
        rules=observed.rules,
        elements=observed.elements,
    )
