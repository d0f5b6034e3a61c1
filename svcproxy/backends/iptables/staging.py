"""Loading very many new chains in steps that traffic does not see.

iptables-nft-restore keeps the chains that its input names in a sorted linked list and walks it
at every line (iptables 1.8.9, ``cache_chain_list_insert``), so that loading n chains costs n²:
10,000 Services took 6 s in one input and 1.9 s in inputs of 250 chains. New chains can go first
and in pieces, because nothing leads to them yet; the last input then holds all that changes
what the kernel does, in one transaction as ever.
"""

import re
from collections.abc import Iterator, Mapping

from svcproxy.backends.iptables.plan import Plan
from svcproxy.backends.xtables.ruleset import NAT, Rules
from svcproxy.backends.xtables.tableplan import TablePlan

STAGE_CHAINS = 250
_JUMP = re.compile(r" -j (\S+)$")


def staged(plan: Plan, size: int = STAGE_CHAINS) -> Iterator[str]:
    """The restore inputs for ``plan``: new chains in pieces of ``size``, then the rest.

    A plan with at most two pieces' worth of new chains stays in one piece.
    """
    nat = plan.tables[NAT]
    if len(nat.fresh) <= 2 * size:
        if text := plan.text():
            yield text
        return
    ordered = list(_callees_first({chain: nat.write[chain] for chain in nat.fresh}))
    for start in range(0, len(ordered), size):
        piece = TablePlan(write={c: nat.write[c] for c in ordered[start : start + size]})
        yield "\n".join((*piece.lines(NAT), ""))
    rest = {chain: rules for chain, rules in nat.write.items() if chain not in nat.fresh}
    last = TablePlan(rest, nat.remove, nat.add, nat.jumps, nat.delete)
    if text := Plan({**plan.tables, NAT: last}, {}).text():
        yield text


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
                stack.extend(
                    (found[1], False)
                    for rule in chains[chain]
                    if (found := _JUMP.search(f" {rule}")) and found[1] in chains
                )
