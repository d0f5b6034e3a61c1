"""Loading and deleting very many chains in steps that traffic does not see.

iptables-nft-restore keeps the chains that its input names in a sorted linked list and walks it
at every line (iptables 1.8.9, ``cache_chain_list_insert``), so that loading n chains costs n²:
10,000 Services took 6 s in one input and 1.9 s in inputs of 250 chains. New chains can go first
and in pieces, because nothing leads to them yet, and old ones can go afterwards; the input in between
holds all that changes what the kernel does, in one transaction as ever.
"""

from collections.abc import Iterator, Mapping, Sequence

from svcproxy.backends.iptables.core.plan import Plan
from svcproxy.backends.xtables.core.restoretext import joined
from svcproxy.backends.xtables.core.rule_text import NAT, Rules
from svcproxy.backends.xtables.core.tableplan import TablePlan

CHUNK_CHAINS = 250


def restore_inputs(plan: Plan, size: int = CHUNK_CHAINS) -> Iterator[str]:
    """The restore inputs for ``plan``: new chains in pieces of ``size``, the rest, old chains.

    At most two pieces' worth of new or of old chains stay with the rest.
    """
    nat = plan.tables[NAT]
    write, delete = nat.write, nat.delete
    if len(nat.fresh) > 2 * size:
        ordered = list(_callees_first({chain: nat.write[chain] for chain in nat.fresh}))
        for chains in _cut(ordered, size):
            yield _input(TablePlan(write={c: nat.write[c] for c in chains}), NAT)
        write = {chain: rules for chain, rules in nat.write.items() if chain not in nat.fresh}
    if len(delete) > 2 * size:
        delete = []
    between = TablePlan(write, nat.remove, nat.add, nat.jumps, delete)
    if text := Plan({**plan.tables, NAT: between}, {}).text():
        yield text
    if nat.delete and not delete:
        yield from deletion_inputs(nat.delete, NAT, size)


def deletion_inputs(chains: Sequence[str], table: str, size: int = CHUNK_CHAINS) -> Iterator[str]:
    """The restore inputs that delete chains to which only each other's rules lead, in pieces."""
    for piece in _cut(chains, size):
        yield _input(TablePlan(write=dict.fromkeys(piece, ())), table)
    for piece in _cut(chains, size):
        yield _input(TablePlan(delete=list(piece)), table)


def _cut(chains: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (chains[start : start + size] for start in range(0, len(chains), size))


def _input(plan: TablePlan, table: str) -> str:
    return joined(plan.lines(table))


def _callees_first(chains: Mapping[str, Rules]) -> Iterator[str]:
    """The chains in an order in which each comes after all it jumps to; there are no loops."""
    done: set[str] = set()
    for root in chains:
        stack = [(root, False)]
        while stack:
            chain, below_done = stack.pop()
            if below_done:
                yield chain
            elif chain not in done:
                done.add(chain)
                stack.append((chain, True))
                for rule in chains[chain]:
                    match, _, target = rule.rpartition(" ")
                    if target in chains and f" {match}".endswith(" -j"):
                        stack.append((target, False))
