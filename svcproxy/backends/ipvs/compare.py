"""The desired state of the kernel, and the steps that lead to it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from svcproxy.backends.ipvs import naming
from svcproxy.backends.ipvs.chains import JUMPS, LISTS, static_chains
from svcproxy.backends.ipvs.layout import PortState, ServerTarget
from svcproxy.backends.ipvs.plan import Entry
from svcproxy.backends.ipvs.settings import IpvsSettings
from svcproxy.backends.xtables.core.rule_text import NAT, TABLES, Rules
from svcproxy.backends.xtables.core.tableplan import Jump, TablePlan
from svcproxy.netlink.core.kernel_objects import RealServers, VirtualServer, VirtualServerKey
from svcproxy.netlink.core.operations import (
    AddRealServer,
    AddVirtualServer,
    ServerOperation,
    SetRealServer,
    SetVirtualServer,
)

T = TypeVar("T")


class Target(NamedTuple):
    """The desired state of the kernel."""

    servers: dict[VirtualServerKey, ServerTarget]
    addresses: Counter[str]
    entries: Counter[Entry]
    tables: dict[str, dict[str, Rules]]

    @classmethod
    def of(cls, states: Iterator[PortState], settings: IpvsSettings) -> "Target":
        """Combine what the Service ports need with what depends on the settings alone."""
        tables = static_chains(settings)
        lists: dict[str, dict[str, list[str]]] = {
            table: {chain: [] for chain in LISTS[table]} for table in TABLES
        }
        target = cls({}, Counter(), Counter(), tables)
        for state in states:
            target.servers.update(state.servers)
            target.addresses.update(state.addresses)
            target.entries.update(state.entries)
            tables[NAT].update(state.chains)
            for table, chain, text in state.rules:
                lists[table][chain].append(text)
        for table, chains in lists.items():
            tables[table].update((chain, tuple(rules)) for chain, rules in chains.items())
        return target


def servers(states: Iterable[PortState]) -> dict[VirtualServerKey, ServerTarget]:
    """The virtual servers of all ports."""
    return {key: target for state in states for key, target in state.servers.items()}


def serve(
    steps: list[ServerOperation],
    key: VirtualServerKey,
    target: ServerTarget,
    found: VirtualServer | None,
    real: RealServers,
) -> None:
    """Add the steps that update a virtual server, without removing real servers."""
    server, wanted = target
    if found is None:
        steps.append(AddVirtualServer(key, server))
    elif found != server:
        steps.append(SetVirtualServer(key, server))
    for each in sorted(wanted):
        weight = real.get(each) if found is not None else None
        if weight is None:
            steps.append(AddRealServer(key, each, 1))
        elif weight != 1:
            steps.append(SetRealServer(key, each, 1))


def changed(counts: Counter[T], difference: Counter[T]) -> tuple[set[T], set[T]]:
    """Add up; give what is needed now and was not, and what was needed and is not any more."""
    gained, lost = set(), set()
    for item, number in difference.items():
        if not number:
            continue
        before = counts[item]
        counts[item] = before + number
        if before <= 0 < counts[item]:
            gained.add(item)
        elif counts[item] <= 0 < before:
            lost.add(item)
        if counts[item] <= 0:
            del counts[item]
    return gained, lost


def compare_table(table: str, chains: Mapping[str, Rules], found: Mapping[str, Rules]) -> TablePlan:
    """Compare a table with what the kernel holds; other programs' rules are left alone."""
    return TablePlan(
        write={c: rules for c, rules in chains.items() if not _same(c, rules, found, table)},
        jumps=_missing_jumps(table, found),
        delete=sorted(c for c in found if naming.is_own_chain(c) and c not in chains),
        fresh=chains.keys() - found.keys(),
    )


def handed_over(
    plan: TablePlan, chains: Mapping[str, Rules], found: Mapping[str, Rules]
) -> dict[str, TablePlan]:
    """Take from nat's plan what ends the serving by iptables mode's rules, to be done later.

    Both modes have KUBE-SERVICES. Between the end of iptables mode's rules in it and the addresses
    on ``kube-ipvs0``, a packet for a cluster IP would be nobody's, and be routed away. While those
    rules are there, it does not matter that the addresses are, too: DNAT comes first.

    Args:
        plan: the plan for nat.
        chains: nat as it should be.
        found: nat as it is.
    """
    if naming.SERVICES not in plan.write:
        return {}
    targets = {text.rpartition(" -j ")[2] for text in found.get(naming.SERVICES, ())}
    if not (targets & found.keys()) - chains.keys():
        return {}
    return {NAT: TablePlan(write={naming.SERVICES: plan.write.pop(naming.SERVICES)})}


def _same(chain: str, rules: Rules, found: Mapping[str, Rules], table: str) -> bool:
    """Whether the kernel holds the chain as it should be; lists may stand in any order."""
    present = found.get(chain)
    if present is None:
        return False
    if chain in LISTS[table]:
        return sorted(present) == sorted(rules)
    return present == rules


def _missing_jumps(table: str, found: Mapping[str, Rules]) -> list[Jump]:
    return [j for j in JUMPS if j.table == table and j.text not in found.get(j.source, ())]
