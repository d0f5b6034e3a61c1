"""Balance trees: equal probabilities, short paths, and changes that affect few chains."""

import re
from fractions import Fraction

import pytest

from svcproxy.backends.iptables.core.balance import FLAT, balance
from svcproxy.backends.xtables.core.rule_text import Rules

RULE = re.compile(r"(?:-m statistic --mode random --probability (\S+) )?-j (\S+)")


def chains_for(count: int) -> dict[str, Rules]:
    return balance("ENTRY", "KUBE-SVC-", targets(count), lambda t: ("", f"-j {t}"))


def targets(count: int) -> list[str]:
    return sorted(f"10.244.{i // 250}.{i % 250}:8080" for i in range(count))


def shares(chains: dict[str, Rules], chain: str, weight: Fraction) -> dict[str, Fraction]:
    """Return the probability with which each target is reached."""
    reached: dict[str, Fraction] = {}
    for rule in chains[chain]:
        found = RULE.fullmatch(rule)
        assert found, rule
        taken = weight * (Fraction(found[1]) if found[1] else 1)
        weight -= taken
        if found[2] in chains:
            reached.update(shares(chains, found[2], taken))
        else:
            reached[found[2]] = taken
    assert weight == 0, "a packet could reach the end of the chain without a target"
    return reached


def expected_rules(chains: dict[str, Rules], chain: str) -> float:
    walk, left = 0.0, 1.0
    for position, rule in enumerate(chains[chain], start=1):
        found = RULE.fullmatch(rule)
        assert found
        taken = left * (float(found[1]) if found[1] else 1.0)
        below = expected_rules(chains, found[2]) if found[2] in chains else 0.0
        walk += taken * (position + below)
        left -= taken
    return walk


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 10, 17, 100, 1000, 5000])
def test_every_endpoint_is_equally_likely(count: int) -> None:
    reached = shares(chains_for(count), "ENTRY", Fraction(1))
    assert sorted(reached) == targets(count)
    for share in reached.values():
        assert float(share) == pytest.approx(1 / count, rel=1e-5)


@pytest.mark.parametrize(("count", "limit"), [(8, 4.6), (100, 10), (1000, 15), (5000, 20)])
def test_a_connection_traverses_few_rules(count: int, limit: float) -> None:
    assert expected_rules(chains_for(count), "ENTRY") <= limit


def test_small_services_have_one_chain() -> None:
    assert list(chains_for(FLAT)) == ["ENTRY"]


def test_removing_an_endpoint_changes_only_the_chains_on_its_path() -> None:
    full = targets(1000)
    before = balance("ENTRY", "KUBE-SVC-", full, lambda t: ("", f"-j {t}"))
    after = balance("ENTRY", "KUBE-SVC-", full[:500] + full[501:], lambda t: ("", f"-j {t}"))
    changed = [c for c in before.keys() | after.keys() if before.get(c) != after.get(c)]
    assert len(changed) <= 5
    assert len(before) > 100
    assert all(len(chain) <= 28 for chain in before)
