"""Comparing a table as it should be with what the kernel holds."""

from collections.abc import Mapping

from svcproxy.backends.nftables.core import table_sets
from svcproxy.netlink.core.attributes import MalformedError, collect, holds, holds_each
from svcproxy.netlink.core.nf_tables.datatypes import decode_comment
from svcproxy.netlink.core.nf_tables.dump import TableDump, same_content
from svcproxy.netlink.core.nf_tables.ruleset import (
    ChainSpec,
    ElementsBySet,
    EncodedElements,
    Rule,
    SetSpec,
)
from svcproxy.netlink.core.nf_tables.transaction import Plan

_EXPRESSIONS, _NOTES = 4, 7


def compare(
    sets: Mapping[str, SetSpec],
    chains: Mapping[str, ChainSpec],
    elements: ElementsBySet,
    observed: TableDump,
) -> Plan:
    """The plan that makes the kernel's table agree.

    Rules and elements are put right one by one. A set or chain of another make, or one that is
    none of ours, is the work of another version or of somebody else, and so are flags (dormant):
    then the whole table is made anew, in the same transaction that deletes the old one.
    """
    if not observed.handle or _is_strange(sets, chains, observed):
        return Plan(
            delete_table=bool(observed.handle),
            make_table=True,
            sets=list(sets.values()),
            chains=list(chains.values()),
            add={name: tails for name, tails in elements.items() if tails},
            # A table that somebody makes meanwhile is in the way of ours, and is noticed.
            generation=observed.generation if observed.handle else 0,
            compared=True,
        )
    plan = Plan(generation=observed.generation, compared=True)
    plan.sets = [spec for name, spec in sets.items() if name not in observed.sets]
    plan.delete_sets = sorted(observed.sets.keys() - sets.keys())
    plan.delete_chains = sorted(observed.chains.keys() - chains.keys())
    for name, chain in chains.items():
        if name not in observed.chains:
            plan.chains.append(chain)
        elif not _same_rules(chain.rules, observed.rules.get(name, [])):
            plan.rewrite.append(chain)
    for name in sets.keys() - {table_sets.AFFINITY}:
        _compare_elements(plan, name, elements.get(name, {}), observed.elements.get(name, {}))
    return plan


def _is_strange(
    sets: Mapping[str, SetSpec], chains: Mapping[str, ChainSpec], observed: TableDump
) -> bool:
    if observed.flags:
        return True
    for name, body in observed.sets.items():
        if name in sets:
            if not holds(body, sets[name].attributes()):
                return True
        elif not table_sets.is_on_demand(name):
            return True
    for name, body in observed.chains.items():
        if name in chains:
            if not holds(body, chains[name].attributes()):
                return True
        elif not table_sets.parse_tier(name):
            return True
    return False


def _same_rules(rules: tuple[Rule, ...], found: list[bytes]) -> bool:
    return len(rules) == len(found) and all(map(_same_rule, rules, found))


def _same_rule(rule: Rule, body: bytes) -> bool:
    try:
        parts = collect(body)
    except MalformedError:
        return False
    return decode_comment(parts.get(_NOTES, b"")) == rule.comment and holds_each(
        parts.get(_EXPRESSIONS, b""), b"".join(rule.expressions)
    )


def _compare_elements(
    plan: Plan, name: str, wanted: EncodedElements, found: EncodedElements
) -> None:
    if wanted == found:
        return
    remove = [
        key
        for key, tail in found.items()
        if key not in wanted or not same_content(tail, wanted[key])
    ]
    gone = set(remove)
    add = {key: tail for key, tail in wanted.items() if key not in found or key in gone}
    if remove:
        plan.remove[name] = remove
    if add:
        plan.add[name] = add
