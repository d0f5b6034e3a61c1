"""Spreading connections evenly over any number of endpoints in O(log n) rules.

kube-proxy writes one rule per endpoint into one chain, so that a connection passes n/2 rules on
average and one changed endpoint rewrites them all. Here, more than ``FLAT`` endpoints are
grouped by a hash of their address into chains of chains. The probability of each branch is
its share of the endpoints that remain, so unequal groups do not disturb the balance, and a
changed endpoint rewrites the chains on its path only.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from zlib import crc32

from svcproxy.backends.xtables.core.hashing import hash16
from svcproxy.backends.xtables.core.rule_text import Rules, rule

Branch = tuple[str, str]

FLAT = 8
_FANOUT_BITS = 3


def balance(
    chain: str, prefix: str, targets: Sequence[str], jump: Callable[[str], Branch]
) -> dict[str, Rules]:
    """The chains that send each new connection to one of ``targets`` with equal probability.

    Args:
        chain: the name of the chain to enter.
        prefix: the prefix of further chain names; they derive from ``chain`` and the path.
        targets: at least one target, without duplicates, sorted.
        jump: gives the head (``-p tcp``) and tail (``-j DNAT --to-destination …``) of the rule
            for a target; the head must hold for all that enters the chain.

    Returns:
        Chain names with their rules; ``chain`` is the first.
    """
    chains: dict[str, Rules] = {}
    _fill(chains, _Path(chain, prefix, ""), targets, jump)
    return chains


class _Path:
    __slots__ = ("name", "prefix", "root", "steps")

    def __init__(self, root: str, prefix: str, steps: str) -> None:
        self.root, self.prefix, self.steps = root, prefix, steps
        self.name = root if not steps else prefix + hash16(f"{root}/{steps}")

    def below(self, step: int) -> "_Path":
        return _Path(self.root, self.prefix, f"{self.steps}{step}")


def _fill(
    chains: dict[str, Rules], path: _Path, targets: Sequence[str], jump: Callable[[str], Branch]
) -> None:
    chains[path.name] = ()  # keeps the parent before its children
    depth = len(path.steps)
    branches: list[tuple[int, Branch]] = []
    if len(targets) <= FLAT or (depth + 1) * _FANOUT_BITS > 32:
        branches = [(1, jump(target)) for target in targets]
    else:
        groups: list[list[str]] = [[] for _ in range(1 << _FANOUT_BITS)]
        for target in targets:
            groups[_step(target, depth)].append(target)
        for step, group in enumerate(groups):
            if len(group) == 1:
                branches.append((1, jump(group[0])))
            elif group:
                below = path.below(step)
                _fill(chains, below, group, jump)
                branches.append((len(group), ("", f"-j {below.name}")))
    chains[path.name] = _branch_rules(branches, len(targets))


def _step(target: str, depth: int) -> int:
    return crc32(target.encode()) >> (depth * _FANOUT_BITS) & ((1 << _FANOUT_BITS) - 1)


def _branch_rules(branches: list[tuple[int, Branch]], remaining: int) -> Rules:
    rules = []
    for weight, (head, tail) in branches:
        rules.append(rule(head, probability(weight, remaining), tail))
        remaining -= weight
    return tuple(rules)


@lru_cache(maxsize=1024)
def probability(weight: int, remaining: int) -> str:
    """The match that holds with probability ``weight / remaining``; empty when that is one.

    The kernel keeps probabilities as a multiple of 2**-31; this prints the one it will keep.
    """
    if weight == remaining:
        return ""
    kept = round(weight / remaining * (1 << 31)) / (1 << 31)
    return f"-m statistic --mode random --probability {kept:.11f}"
