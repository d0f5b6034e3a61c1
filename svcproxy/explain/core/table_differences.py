"""Describes the plan for an iptables table, of iptables mode and of IPVS mode. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from svcproxy.backends.xtables.core.rule_text import Rules
from svcproxy.backends.xtables.core.tableplan import TablePlan
from svcproxy.explain.core.differences import (
    Difference,
    DifferenceKind,
    differing_lines,
    grouped,
    limited,
)
from svcproxy.model.names import ServicePortName

Owners = Iterable[ServicePortName]


class Attribution(msgspec.Struct, frozen=True):
    """Finds the Service ports of chains and rules; empty for those that all share.

    Attributes:
        of_chain: the Service ports of a chain of their own.
        of_rule: the Service ports of a rule: table, chain and text.
    """

    of_chain: Callable[[str], Owners]
    of_rule: Callable[[str, str, str], Owners]


def table_differences(
    table: str, plan: TablePlan, found: Mapping[str, Rules], attribution: Attribution
) -> list[Difference]:
    """Describe what a resync would write to a table.

    Args:
        table: the name of the table.
        plan: the changes that a resync would make.
        found: the table in the kernel: rules by chain.
        attribution: finds the Service ports.
    """
    return _Describer(table, plan, found, attribution).describe()


class _Describer:
    def __init__(
        self, table: str, plan: TablePlan, found: Mapping[str, Rules], attribution: Attribution
    ) -> None:
        self._table = table
        self._plan = plan
        self._found = found
        self._attribution = attribution

    def describe(self) -> list[Difference]:
        plan, chains = self._plan, f"chains of table {self._table}"
        missing = sorted(chain for chain in plan.write if chain not in self._found)
        different = sorted(chain for chain in plan.write if chain in self._found)
        return [
            *(self._jump(jump.source, jump.text) for jump in plan.jumps),
            *grouped(missing, chains, self._missing, self._owners_of_missing),
            *grouped(different, chains, self._different, self._owners_of_different),
            *grouped(sorted(plan.delete), chains, self._unexpected, self._attribution.of_chain),
        ]

    def _jump(self, source: str, text: str) -> Difference:
        target = text.rpartition(" -j ")[2]
        name = f"jump from {source} to {target} in table {self._table}"
        return Difference(DifferenceKind.MISSING, name, (), f"-A {source} {text}")

    def _name(self, chain: str) -> str:
        return f"chain {chain} of table {self._table}"

    def _missing(self, chain: str) -> Difference:
        owners = _sorted(self._owners_of_missing(chain))
        text = _block(chain, self._plan.write[chain])
        return Difference(DifferenceKind.MISSING, self._name(chain), owners, text)

    def _unexpected(self, chain: str) -> Difference:
        owners = _sorted(self._attribution.of_chain(chain))
        text = _block(chain, self._found[chain])
        return Difference(DifferenceKind.UNEXPECTED, self._name(chain), owners, "", text)

    def _different(self, chain: str) -> Difference:
        desired, actual = self._lines(chain)
        if not desired and not actual:
            wanted, present = self._plan.write[chain], self._found[chain]
            texts = differing_lines(_appended(chain, wanted), _appended(chain, present))
        else:
            texts = limited(_appended(chain, desired)), limited(_appended(chain, actual))
        owners = _sorted(self._owners_of_different(chain))
        return Difference(DifferenceKind.DIFFERENT, self._name(chain), owners, *texts)

    def _lines(self, chain: str) -> tuple[Sequence[str], Sequence[str]]:
        """Return the rules of a chain that are missing, and those that are unexpected.

        Both are empty if only the order differs.
        """
        wanted, present = Counter(self._plan.write[chain]), Counter(self._found[chain])
        return list((wanted - present).elements()), list((present - wanted).elements())

    def _owners_of_missing(self, chain: str) -> Iterator[ServicePortName]:
        yield from self._attribution.of_chain(chain)
        yield from self._owners_of_rules(chain, self._plan.write[chain])

    def _owners_of_different(self, chain: str) -> Iterator[ServicePortName]:
        yield from self._attribution.of_chain(chain)
        desired, actual = self._lines(chain)
        if not desired and not actual:
            desired = [
                one
                for one, other in zip(self._plan.write[chain], self._found[chain], strict=True)
                if one != other
            ]
        yield from self._owners_of_rules(chain, (*desired, *actual))

    def _owners_of_rules(self, chain: str, rules: Iterable[str]) -> Iterator[ServicePortName]:
        for text in rules:
            yield from self._attribution.of_rule(self._table, chain, text)


def _sorted(owners: Owners) -> tuple[ServicePortName, ...]:
    return tuple(sorted(set(owners)))


def _appended(chain: str, rules: Iterable[str]) -> list[str]:
    return [f"-A {chain} {text}" for text in rules]


def _block(chain: str, rules: Iterable[str]) -> str:
    return limited([f":{chain} - [0:0]", *_appended(chain, rules)])
