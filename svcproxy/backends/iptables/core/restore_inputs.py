"""Splits a plan with a large number of chains into several restore inputs.

iptables-nft-restore keeps the chains that its input names in a sorted linked list and traverses the
list for each line (iptables 1.8.9, ``cache_chain_list_insert``). Loading n chains takes O(n²): 6 s
for 10,000 Services in one input, 1.9 s in inputs of 250 chains. Traffic does not notice the split:
new chains are loaded first, while no rule jumps to them, and stale chains are deleted last. The
input in between holds all changes that affect packets, in one transaction.
"""

from collections.abc import Iterator, Mapping, Sequence

from svcproxy.backends.iptables.core.plan import Plan
from svcproxy.backends.xtables.core.restoretext import join_lines
from svcproxy.backends.xtables.core.rule_text import NAT, Rules
from svcproxy.backends.xtables.core.tableplan import TablePlan

CHUNK_CHAINS = 250
"""How many chains an input holds when a plan is split."""


def restore_inputs(plan: Plan, size: int = CHUNK_CHAINS) -> Iterator[str]:
    """Yield the restore inputs of a plan: new chains, the other changes, stale chains.

    Args:
        plan: the plan.
        size: how many chains to put into one input. Up to twice as many new, or stale, chains are
            not split off.
    """
    nat = plan.tables[NAT]
    write, delete = nat.write, nat.delete
    if len(nat.fresh) > 2 * size:
        ordered = list(_targets_first({chain: nat.write[chain] for chain in nat.fresh}))
        for chains in _chunks(ordered, size):
            yield _input(TablePlan(write={c: nat.write[c] for c in chains}), NAT)
        write = {chain: rules for chain, rules in nat.write.items() if chain not in nat.fresh}
    if len(delete) > 2 * size:
        delete = []
    others = TablePlan(write, nat.remove, nat.add, nat.jumps, delete)
    if text := Plan({**plan.tables, NAT: others}, {}).text():
        yield text
    if nat.delete and not delete:
        yield from deletion_inputs(nat.delete, NAT, size)


def deletion_inputs(chains: Sequence[str], table: str, size: int = CHUNK_CHAINS) -> Iterator[str]:
    """Yield the restore inputs that delete chains to which only rules in these chains jump."""
    for chunk in _chunks(chains, size):
        yield _input(TablePlan(write=dict.fromkeys(chunk, ())), table)
    for chunk in _chunks(chains, size):
        yield _input(TablePlan(delete=list(chunk)), table)


def _chunks(chains: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (chains[start : start + size] for start in range(0, len(chains), size))


def _input(plan: TablePlan, table: str) -> str:
    return join_lines(plan.lines(table))


def _targets_first(chains: Mapping[str, Rules]) -> Iterator[str]:
    """Yield each chain after all chains that it jumps to; the chains have no loops."""
    done: set[str] = set()
    for root in chains:
        stack = [(root, False)]  # the chain, and whether its targets are done
        while stack:
            chain, targets_done = stack.pop()
            if targets_done:
                yield chain
            elif chain not in done:
                done.add(chain)
                stack.append((chain, True))
                for rule in chains[chain]:
                    match, _, target = rule.rpartition(" ")
                    if target in chains and f" {match}".endswith(" -j"):
                        stack.append((target, False))
