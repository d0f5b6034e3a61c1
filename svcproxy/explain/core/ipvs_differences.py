"""Describes how virtual servers, ipsets, addresses and rules of IPVS mode differ. Pure.

The daemon's planner compares; its plan is described here. So there is a difference exactly if a
resync would write something. Real servers that drain have weight 0 and are none.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial

from svcproxy.backends.base import Desired
from svcproxy.backends.ipvs.core.chains_and_sets import DUMMY_INTERFACE, SETS
from svcproxy.backends.ipvs.core.difference import Observed, Plan
from svcproxy.backends.ipvs.core.planner import Planner
from svcproxy.backends.ipvs.core.port_state import Entry
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.backends.xtables.core.rule_text import TABLES
from svcproxy.backends.xtables.core.tableplan import TablePlan
from svcproxy.explain.core.differences import Difference, DifferenceKind, grouped, limited
from svcproxy.explain.core.ipvs_print import address_command, server_block
from svcproxy.explain.core.rendered_ipvs import entry_text, printed_server, server_target
from svcproxy.explain.core.table_differences import Attribution, table_differences
from svcproxy.model.names import ServicePortName
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import (
    AddRealServer,
    AddVirtualServer,
    CreateSet,
    DeleteRealServer,
    ServerOperation,
    SetRealServer,
    SetVirtualServer,
    SwapSets,
)

_MISSING, _UNEXPECTED = DifferenceKind.MISSING, DifferenceKind.UNEXPECTED
_DIFFERENT = DifferenceKind.DIFFERENT

Owners = Iterable[ServicePortName]


def differences(desired: Desired, settings: IpvsSettings, observed: Observed) -> list[Difference]:
    """Compare the kernel with the desired state; empty if a resync would write nothing.

    Args:
        desired: the desired state.
        settings: the settings that a resync would use now.
        observed: what the kernel holds.
    """
    planner = Planner(settings)
    plan = planner.plan(desired, settings, observed)
    if not plan:
        return []
    owners = _Owners(planner)
    describer = _Describer(plan, observed, owners, planner)
    attribution = Attribution(owners.of_chain, owners.of_rule)
    found = [*describer.servers(), *describer.sets(), *describer.addresses()]
    for table in TABLES:
        both = plan.tables.get(table, TablePlan())
        later = plan.hand_over.get(table, TablePlan())
        both = TablePlan({**both.write, **later.write}, jumps=both.jumps, delete=both.delete)
        found += table_differences(table, both, observed.tables.get(table, {}), attribution)
    return found


class _Owners:
    """Finds the Service ports that need an object."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

    @cached_property
    def _index(self) -> Mapping[object, set[ServicePortName]]:
        """The Service ports by everything that they need: servers, addresses, entries, rules."""
        found: dict[object, set[ServicePortName]] = {}
        for name in self._planner.ports:
            state = self._planner.state(name)
            rules = ((table, chain, text) for table, chain, text in state.rules)
            needed = (*state.servers, *state.addresses, *state.entries, *rules)
            for key in (*needed, *(f"chain {chain}" for chain in state.chains)):
                found.setdefault(key, set()).add(name)
        return found

    def of(self, key: object) -> tuple[ServicePortName, ...]:
        """Return the Service ports of a virtual server, address or entry."""
        return tuple(sorted(self._index.get(key, ())))

    def of_entry(self, entry: Entry) -> tuple[ServicePortName, ...]:
        """Return the Service ports of an entry, or of the virtual server that it names."""
        _, member = entry
        owners = self.of(entry)
        if not owners and member.protocol is not None and not member.other:
            owners = self.of(VirtualServerKey(member.protocol, member.address, member.port))
        return owners

    def of_set(self, name: str) -> tuple[ServicePortName, ...]:
        """Return the Service ports that need entries in a set."""
        return tuple(sorted(self._by_set.get(name, ())))

    @cached_property
    def _by_set(self) -> Mapping[str, set[ServicePortName]]:
        found: dict[str, set[ServicePortName]] = {}
        for owner in self._planner.ports:
            for name, _ in self._planner.state(owner).entries:
                found.setdefault(name, set()).add(owner)
        return found

    def of_chain(self, chain: str) -> Owners:
        """Return the Service ports of a chain of their own."""
        return self.of(f"chain {chain}")

    def of_rule(self, table: str, chain: str, text: str) -> Owners:
        """Return the Service ports of a rule."""
        return self.of((table, chain, text)) or self.of_chain(text.rpartition("-j ")[2])


class _Describer:
    """Describes the operations of a resync on virtual servers, ipsets and addresses."""

    def __init__(self, plan: Plan, observed: Observed, owners: _Owners, planner: Planner) -> None:
        self._plan = plan
        self._observed = observed
        self._owners = owners
        self._planner = planner

    # --- Virtual servers -------------------------------------------------------------------------

    def servers(self) -> Iterator[Difference]:
        """Describe the virtual and real servers that differ."""
        plan, of = self._plan, self._owners.of
        wanted, left = [*plan.serve, *plan.node_ports], [*plan.quiesce, *plan.delete]
        new = {each.key: each.server for each in wanted if isinstance(each, AddVirtualServer)}
        gone = {key for each in left if not self._is_needed(key := _virtual(each))}
        servers = "virtual servers"
        missing = partial(self._missing_server, new, wanted)
        yield from grouped(sorted(new), servers, missing, of)
        yield from grouped(sorted(gone), servers, self._unexpected_server, of)
        for operations, kind in (
            (wanted, SetVirtualServer),
            (wanted, AddRealServer),
            (wanted, SetRealServer),
            (left, SetRealServer),
            (left, DeleteRealServer),
        ):
            same = [
                each
                for each in operations
                if isinstance(each, kind) and (key := _virtual(each)) not in new and key not in gone
            ]
            plural = servers if kind is SetVirtualServer else "real servers"
            yield from grouped(same, plural, self._operation, lambda each: of(_virtual(each)))

    def _is_needed(self, key: VirtualServerKey) -> bool:
        return bool(self._owners.of(key))

    def _missing_server(
        self,
        new: Mapping[VirtualServerKey, VirtualServer],
        operations: Iterable[ServerOperation],
        key: VirtualServerKey,
    ) -> Difference:
        real = {
            each.key: each.weight
            for each in operations
            if isinstance(each, AddRealServer) and each.virtual == key
        }
        return Difference(_MISSING, _name(key), self._owners.of(key), _block(key, new[key], real))

    def _unexpected_server(self, key: VirtualServerKey) -> Difference:
        real = self._observed.real.get(key, {})
        actual = _block(key, self._observed.servers[key], real)
        return Difference(_UNEXPECTED, _name(key), (), "", actual)

    def _operation(self, operation: ServerOperation) -> Difference:
        key = _virtual(operation)
        owners = self._owners.of(key)
        if isinstance(operation, SetVirtualServer):
            desired = _block(key, operation.server, {})
            actual = _block(key, self._observed.servers[key], {})
            return Difference(_DIFFERENT, _name(key), owners, desired, actual)
        assert isinstance(operation, AddRealServer | SetRealServer | DeleteRealServer)
        name = f"real server {server_target(*operation.key)} of {_name(key)}"
        weight = self._observed.real.get(key, {}).get(operation.key)
        actual = "" if weight is None else _real(operation.key, weight)
        if isinstance(operation, AddRealServer):
            return Difference(_MISSING, name, owners, _real(operation.key, operation.weight))
        if isinstance(operation, SetRealServer) and operation.weight:
            desired = _real(operation.key, operation.weight)
            return Difference(_DIFFERENT, name, owners, desired, actual)
        return Difference(_UNEXPECTED, name, owners, "", actual)

    # --- Sets and addresses ----------------------------------------------------------------------

    def sets(self) -> Iterator[Difference]:
        """Describe the ipsets and entries that differ."""
        plan, kinds = self._plan, SETS[self._planner.settings.family].kinds
        replaced = {each.other for each in plan.create_sets if isinstance(each, SwapSets)}
        created = {each.name for each in plan.create_sets if isinstance(each, CreateSet)}
        missing = [name for name in kinds if name in created]
        owners = self._owners.of_set
        yield from (self._replaced_set(name) for name in sorted(replaced))
        yield from grouped(missing, "ipsets", partial(self._set, _MISSING), owners)
        for kind, entries in ((_MISSING, plan.add_entries), (_UNEXPECTED, plan.remove_entries)):
            by_name: dict[str, list[Entry]] = {}
            for entry in entries:
                if entry[0] not in missing:
                    by_name.setdefault(entry[0], []).append(entry)
            for name, same in sorted(by_name.items()):
                plural, describe = f"entries of ipset {name}", partial(self._entry, kind)
                yield from grouped(same, plural, describe, self._owners.of_entry)

    def _set(self, kind: DifferenceKind, name: str) -> Difference:
        return Difference(kind, f"ipset {name}", self._owners.of_set(name))

    def _replaced_set(self, name: str) -> Difference:
        """Describe a set of another type, or with too little capacity."""
        kind = self._observed.sets[name][0]
        actual = f"{kind.type or 'unknown type'} maxelem {kind.maximum}"
        owners = self._owners.of_set(name)
        return Difference(_DIFFERENT, f"ipset {name}", owners, "", actual)

    def _entry(self, kind: DifferenceKind, entry: Entry) -> Difference:
        name, member = entry
        text = entry_text(member)
        line = f"add {name} {text}"
        texts = (line, "") if kind is _MISSING else ("", line)
        where = f"entry {text} of ipset {name}"
        return Difference(kind, where, self._owners.of_entry(entry), *texts)

    def addresses(self) -> Iterator[Difference]:
        """Describe the addresses on ``kube-ipvs0`` that differ."""
        plural = f"addresses on {DUMMY_INTERFACE}"
        for kind, found in ((_MISSING, self._plan.bind), (_UNEXPECTED, self._plan.unbind)):
            yield from grouped(found, plural, partial(self._address, kind), self._owners.of)

    def _address(self, kind: DifferenceKind, address: str) -> Difference:
        line = address_command(address)
        texts = (line, "") if kind is _MISSING else ("", line)
        name = f"address {address} on {DUMMY_INTERFACE}"
        return Difference(kind, name, self._owners.of(address), *texts)


def _virtual(operation: ServerOperation) -> VirtualServerKey:
    if isinstance(operation, AddRealServer | SetRealServer | DeleteRealServer):
        return operation.virtual
    return operation.key


def _name(key: VirtualServerKey) -> str:
    return f"virtual server {key.protocol.value} {server_target(key.address, key.port)}"


def _block(key: VirtualServerKey, server: VirtualServer, real: Mapping[RealServerKey, int]) -> str:
    target = server_target(key.address, key.port)
    return limited(server_block(key.protocol.keyword, target, printed_server(server, real)))


def _real(key: RealServerKey, weight: int) -> str:
    return f"  -> {server_target(*key)} Masq {weight} 0 0"
