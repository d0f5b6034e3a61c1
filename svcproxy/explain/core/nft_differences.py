"""Describes how an nftables table differs from the desired one. Pure.

The daemon's planner compares; its plan is described here. So there is a difference exactly if a
resync would write something.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from svcproxy.backends.base import Desired
from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.compare import foreign_objects, repair
from svcproxy.backends.nftables.core.plan import Planner
from svcproxy.backends.nftables.core.port_index import PortIndex
from svcproxy.backends.nftables.core.render import PortElements, hairpin_key, render
from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.backends.nftables.core.table_objects import all_sets
from svcproxy.explain.core.differences import (
    Difference,
    DifferenceKind,
    differing_lines,
    grouped,
    limited,
    one_line,
)
from svcproxy.explain.core.nft_print import element_text, rule_text, set_lines
from svcproxy.explain.core.nft_table import NftTable, describe_set
from svcproxy.explain.core.nft_types import show
from svcproxy.explain.core.packet import UnknownRuleError
from svcproxy.explain.core.rendered_nftables import FAMILIES, observed_table
from svcproxy.model.names import ServicePortName
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.ruleset import TABLE, ChainSpec, SetSpec
from svcproxy.netlink.core.nf_tables.transaction import Plan
from svcproxy.netlink.errors import MalformedError

Names = tuple[ServicePortName, ...]

_UNREADABLE = (UnknownRuleError, MalformedError, LookupError, ValueError)
"""What printing an object that another program made may raise."""
_MISSING, _UNEXPECTED = DifferenceKind.MISSING, DifferenceKind.UNEXPECTED
_DIFFERENT = DifferenceKind.DIFFERENT


def differences(desired: Desired, settings: NftablesSettings, table: TableDump) -> list[Difference]:
    """Compare a table with the desired one; empty if a resync would write nothing.

    Args:
        desired: the desired state.
        settings: the settings that a resync would use now.
        table: the table in the kernel.
    """
    plan = Planner(settings).plan(desired, settings, table)
    if not plan:
        return []
    everything = tuple(sorted(desired.ports))
    if not table.handle:
        return [Difference(_MISSING, f"table {TABLE}", everything)]
    found: list[Difference] = []
    foreign: list[tuple[str, bool]] = []
    if plan.make_table:
        if table.flags:
            actual = f"flags {table.flags:#x} (dormant is 0x1)"
            found.append(Difference(_DIFFERENT, f"table {TABLE}", everything, "", actual))
        sets = {spec.name: spec for spec in plan.sets}
        chains = {chain.name: chain for chain in plan.chains}
        foreign = list(foreign_objects(sets, chains, table))
        plan = repair(sets, chains, plan.add, table)
        describer = _Describer(desired, settings, table, plan)
        found += (describer.foreign(name, sets, chains, chain=chain) for name, chain in foreign)
    describer = _Describer(desired, settings, table, plan)
    return [*found, *describer.sets_and_chains(plan, foreign), *describer.elements(plan)]


class _Element(NamedTuple):
    """An element of a set that differs; its tail is ``None`` where it does not exist."""

    name: str
    key: bytes
    desired: bytes | None
    actual: bytes | None


class _Describer:
    """Describes the operations of a plan that repairs a table."""

    def __init__(
        self, desired: Desired, settings: NftablesSettings, table: TableDump, plan: Plan
    ) -> None:
        self._ports = desired.ports
        self._settings = settings
        family = FAMILIES[settings.family]
        self._actual = observed_table(table, family)
        present = (table.sets.keys() - set(plan.delete_sets)) | {s.name for s in plan.sets}
        specs = all_sets(settings, filter(table_sets.is_on_demand, present))
        self._wanted = NftTable(
            family, TABLE, sets={name: spec.attributes() for name, spec in specs.items()}
        )

    @cached_property
    def _index(self) -> PortIndex:
        return PortIndex(self._ports.values(), self._settings)

    # --- Sets and chains -------------------------------------------------------------------------

    def foreign(
        self,
        name: str,
        sets: Mapping[str, SetSpec],
        chains: Mapping[str, ChainSpec],
        *,
        chain: bool,
    ) -> Difference:
        """Describe a set or chain that svcproxy does not make, or makes differently."""
        wanted = name in (chains if chain else sets)
        kind = _DIFFERENT if wanted else _UNEXPECTED
        if chain:
            return Difference(kind, f"chain {name}", (), "", self._actual_block(name))
        desired = _declaration(self._wanted, name) if wanted else ""
        actual = _declaration(self._actual, name)
        return Difference(kind, self._set_name(name), (), desired, actual)

    def sets_and_chains(self, plan: Plan, foreign: Sequence[tuple[str, bool]]) -> list[Difference]:
        """Describe missing, unexpected and different sets and chains."""
        known = set(foreign)
        found = [
            Difference(
                _MISSING,
                self._set_name(spec.name),
                self._owners_of_set(spec.name, plan),
                _declaration(self._wanted, spec.name),
            )
            for spec in plan.sets
        ]
        found += (
            Difference(_UNEXPECTED, self._set_name(n), (), "", _declaration(self._actual, n))
            for n in plan.delete_sets
            if (n, False) not in known
        )
        for chain in plan.chains:
            owners = self._owners_of_set(chain.name, plan)
            text = _block(chain.name, self._rule_lines(chain))
            found.append(Difference(_MISSING, f"chain {chain.name}", owners, text))
        found += (self._rewritten(chain, plan) for chain in plan.rewrite)
        found += (
            Difference(_UNEXPECTED, f"chain {name}", (), "", self._actual_block(name))
            for name in plan.delete_chains
            if (name, True) not in known
        )
        return found

    def _rewritten(self, chain: ChainSpec, plan: Plan) -> Difference:
        desired, actual = self._rule_lines(chain), self._actual_lines(chain.name)
        texts = differing_lines(desired, actual)
        if not any(texts):  # an expression differs that the text does not show
            texts = limited(desired), limited(actual)
        owners = self._owners_of_set(chain.name, plan)
        return Difference(_DIFFERENT, f"chain {chain.name}", owners, *texts)

    def _owners_of_set(self, name: str, plan: Plan) -> Names:
        """Return the Service ports that use a set on demand, or the chain of the same name."""
        if not table_sets.is_on_demand(name):
            return ()
        keys = {*plan.add.get(name, ()), *self._actual.elements.get(name, ())}
        return tuple(sorted({owner for key in keys for owner in self._owners(name, key)}))

    def _set_name(self, name: str) -> str:
        table = self._wanted if name in self._wanted.sets else self._actual
        try:
            is_map = bool(describe_set(table.sets[name]).data_length)
        except _UNREADABLE:
            is_map = False
        return f"{'map' if is_map else 'set'} {name}"

    def _rule_lines(self, chain: ChainSpec) -> list[str]:
        return [rule_text(self._wanted, rule.attributes()) for rule in chain.rules]

    def _actual_lines(self, name: str) -> list[str]:
        return [_rule(self._actual, body) for body in self._actual.rules.get(name, ())]

    def _actual_block(self, name: str) -> str:
        return _block(name, self._actual_lines(name))

    # --- Elements --------------------------------------------------------------------------------

    def elements(self, plan: Plan) -> list[Difference]:
        """Describe the elements that differ, except those of sets that are missing as a whole."""
        missing_sets = {spec.name for spec in plan.sets}
        found: list[Difference] = []
        for name in sorted((plan.add.keys() | plan.remove.keys()) - missing_sets):
            add, remove = plan.add.get(name, {}), set(plan.remove.get(name, ()))
            present = self._actual.elements.get(name, {})
            for keys in (add.keys() & remove, add.keys() - remove, remove - add.keys()):
                items = [_Element(name, k, add.get(k), present.get(k)) for k in sorted(keys)]
                plural = f"elements of {self._set_name(name)}"
                found += grouped(items, plural, self._element, self._owners_of) if items else []
        return found

    def _element(self, element: _Element) -> Difference:
        name, key, desired, actual = element
        texts = (
            "" if desired is None else _text(self._wanted, name, key, desired),
            "" if actual is None else _text(self._actual, name, key, actual),
        )
        kind = _DIFFERENT if all(texts) else _MISSING if texts[0] else _UNEXPECTED
        info = describe_set(self._wanted.sets[name])
        where = f"element {show(info.key_type, key)} of {self._set_name(name)}"
        return Difference(kind, where, tuple(sorted(self._owners_of(element))), *texts)

    def _owners_of(self, element: _Element) -> Iterable[ServicePortName]:
        """Return the Service ports of an element; those that share it all need it."""
        owners = self._owners(element.name, element.key)
        match element.name:
            case table_sets.HAIRPINS:
                return (n for n in owners if element.key in self._hairpins(n))
            case table_sets.CLUSTER_ADDRESSES:
                return (n for n in owners if element.key in self._rendered(n).cluster_addresses)
        return owners

    def _owners(self, name: str, key: bytes) -> Iterable[ServicePortName]:
        return self._index.ports_of_element(name, key)

    def _rendered(self, name: ServicePortName) -> PortElements:
        return render(self._ports[name], self._settings)

    def _hairpins(self, name: ServicePortName) -> set[bytes]:
        return set(map(hairpin_key, self._rendered(name).hairpins))


def _block(name: str, lines: Iterable[str]) -> str:
    inside = limited(lines)
    return "\n".join(filter(None, [f"chain {name} {{", inside, "}"]))


def _declaration(table: NftTable, name: str) -> str:
    """Return a set without its elements, in one line."""
    bare = NftTable(table.family, table.name, {name: table.sets[name]})
    try:
        return " ".join(" ".join(set_lines(bare, name)).split())
    except _UNREADABLE:
        return f"[set {name} cannot be decoded]"


def _rule(table: NftTable, body: bytes) -> str:
    try:
        return rule_text(table, body)
    except _UNREADABLE:
        return f"[rule {body.hex():.80}]"


def _text(table: NftTable, name: str, key: bytes, tail: bytes) -> str:
    try:
        return one_line(element_text(describe_set(table.sets[name]), key, tail))
    except _UNREADABLE:
        return f"[element {key.hex()} {tail.hex():.80}]"
