"""Balance trees: distribute connections evenly over any number of endpoints in O(log n) rules.

kube-proxy writes one rule per endpoint into a single chain. A connection traverses n/2 rules on
average, and one changed endpoint rewrites the whole chain. Here, more than ``FLAT`` endpoints form
a tree of chains, grouped by a hash of their address. Each branch is taken with the probability
(endpoints below it) / (endpoints below it and the branches after it), so groups of different sizes
do not distort the balance. A changed endpoint rewrites only the chains on its path.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from zlib import crc32

from svcproxy.backends.xtables.core.hashing import hash16
from svcproxy.backends.xtables.core.rule_text import Rules, rule

Branch = tuple[str, str]
"""A rule without its probability: its head (``-p tcp``) and its tail (``-j DNAT …``)."""

FLAT = 8
"""Up to this many endpoints are in a single chain."""
_FANOUT_BITS = 3


def balance(
    chain: str, prefix: str, targets: Sequence[str], jump: Callable[[str], Branch]
) -> dict[str, Rules]:
    """Return the chains that send each new connection to a target with equal probability.

    Args:
        chain: the name of the root chain.
        prefix: the prefix of the other chains' names, which derive from ``chain`` and the path.
        targets: at least one target, without duplicates, sorted.
        jump: returns the head and tail of the rule for a target. The head must match every packet
            that enters the root chain.

    Returns:
        Rules by chain; ``chain`` is the first.
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
    chains[path.name] = ()  # puts the parent before its children
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
    """Return the match that is true with probability ``weight / remaining``; empty if that is 1.

    The kernel rounds probabilities to a multiple of 2**-31. The text holds the rounded value, as
    iptables-save will print it.
    """
    if weight == remaining:
        return ""
    stored = round(weight / remaining * (1 << 31)) / (1 << 31)
    return f"-m statistic --mode random --probability {stored:.11f}"
