"""Compares the desired table with the kernel's."""

from collections.abc import Iterator, Mapping

from svcproxy.backends.nftables.core import table_sets
from svcproxy.netlink.core.attributes import collect, holds, holds_each
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
from svcproxy.netlink.errors import MalformedError

_EXPRESSIONS, _USER_DATA = 4, 7


def compare(
    sets: Mapping[str, SetSpec],
    chains: Mapping[str, ChainSpec],
    elements: ElementsBySet,
    observed: TableDump,
) -> Plan:
    """Return the plan that turns the kernel's table into the desired one.

    Rules and elements are repaired individually. The table is replaced as a whole, in one
    transaction, if it has sets or chains that svcproxy does not make, or makes differently, or
    table flags (such as ``dormant``): then another version or another program wrote it.

    Args:
        sets: the desired sets.
        chains: the desired chains with their rules.
        elements: the desired elements.
        observed: the table in the kernel.
    """
    if not observed.handle or _must_be_replaced(sets, chains, observed):
        return _replacement(sets, chains, elements, observed)
    return repair(sets, chains, elements, observed)


def repair(
    sets: Mapping[str, SetSpec],
    chains: Mapping[str, ChainSpec],
    elements: ElementsBySet,
    observed: TableDump,
) -> Plan:
    """Return the plan that repairs sets, chains and elements one by one; see ``compare``.

    Objects that differ in their properties stay as they are; ``foreign_objects`` names them.
    """
    plan = Plan(generation=observed.generation, compared=True)
    plan.sets = [spec for name, spec in sets.items() if name not in observed.sets]
    plan.delete_sets = sorted(observed.sets.keys() - sets.keys())
    plan.delete_chains = sorted(observed.chains.keys() - chains.keys())
    for name, chain in chains.items():
        if name not in observed.chains:
            plan.chains.append(chain)
        elif not _equal_rules(chain.rules, observed.rules.get(name, [])):
            plan.rewrite.append(chain)
    for name in sets.keys() - {table_sets.AFFINITY}:
        _compare_elements(plan, name, elements.get(name, {}), observed.elements.get(name, {}))
    return plan


def _replacement(
    sets: Mapping[str, SetSpec],
    chains: Mapping[str, ChainSpec],
    elements: ElementsBySet,
    observed: TableDump,
) -> Plan:
    return Plan(
        delete_table=bool(observed.handle),
        make_table=True,
        sets=list(sets.values()),
        chains=list(chains.values()),
        add={name: found for name, found in elements.items() if found},
        # If another process makes the table meanwhile, the kernel refuses with EEXIST.
        generation=observed.generation if observed.handle else 0,
        compared=True,
    )


def _must_be_replaced(
    sets: Mapping[str, SetSpec], chains: Mapping[str, ChainSpec], observed: TableDump
) -> bool:
    return bool(observed.flags) or any(True for _ in foreign_objects(sets, chains, observed))


def foreign_objects(
    sets: Mapping[str, SetSpec], chains: Mapping[str, ChainSpec], observed: TableDump
) -> Iterator[tuple[str, bool]]:
    """Yield the sets and chains that svcproxy does not make, or makes differently.

    Yields:
        The name, and whether it is a chain.
    """
    for name, body in observed.sets.items():
        if name in sets:
            if not holds(body, sets[name].attributes()):
                yield name, False
        elif not table_sets.is_on_demand(name):
            yield name, False
    for name, body in observed.chains.items():
        if name in chains:
            if not holds(body, chains[name].attributes()):
                yield name, True
        elif not table_sets.parse_tier(name):
            yield name, True


def _equal_rules(rules: tuple[Rule, ...], found: list[bytes]) -> bool:
    return len(rules) == len(found) and all(map(_equal_rule, rules, found))


def _equal_rule(rule: Rule, body: bytes) -> bool:
    try:
        parts = collect(body)
    except MalformedError:
        return False
    return decode_comment(parts.get(_USER_DATA, b"")) == rule.comment and holds_each(
        parts.get(_EXPRESSIONS, b""), b"".join(rule.expressions)
    )


def _compare_elements(
    plan: Plan, name: str, wanted: EncodedElements, found: EncodedElements
) -> None:
    if wanted == found:
        return
    remove = [
        key
        for key, encoded in found.items()
        if key not in wanted or not same_content(encoded, wanted[key])
    ]
    gone = set(remove)
    add = {key: encoded for key, encoded in wanted.items() if key not in found or key in gone}
    if remove:
        plan.remove[name] = remove
    if add:
        plan.add[name] = add
