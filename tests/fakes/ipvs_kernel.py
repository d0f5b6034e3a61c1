"""A strict fake kernel for IPVS mode: rules, ipsets, virtual servers, addresses.

It is used only for tests with thousands of random inputs. The tests in User Mode Linux show that
the real kernel behaves alike.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from errno import EINVAL, ESRCH

from svcproxy.backends.ipvs.core.difference import Observed
from svcproxy.netlink.core.kernel_objects import (
    Connections,
    RealServerKey,
    SetEntry,
    SetKind,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import (
    AddEntries,
    AddRealServer,
    AddressOperation,
    AddVirtualServer,
    BindAddresses,
    CreateSet,
    DeleteRealServer,
    DeleteVirtualServer,
    DestroySet,
    Failure,
    RemoveEntries,
    ServerOperation,
    SetOperation,
    SetRealServer,
    SetVirtualServer,
    SwapSets,
)
from tests.fakes.restored_tables import RestoredTables


class IpvsKernel:
    """Executes operations; ``busy`` are the real servers that have a connection."""

    def __init__(self) -> None:
        self.tables = RestoredTables()
        self.servers: dict[VirtualServerKey, VirtualServer] = {}
        self.real: dict[VirtualServerKey, dict[RealServerKey, int]] = {}
        self.sets: dict[str, tuple[SetKind, set[SetEntry]]] = {}
        self.bound: set[str] = set()
        self.busy: set[RealServerKey] = set()

    def observed(self) -> Observed:
        """What ``IpvsBackend.read`` returns."""
        return Observed(
            self.tables.saved(),
            dict(self.servers),
            {key: dict(real) for key, real in self.real.items()},
            {name: (kind, frozenset(entries)) for name, (kind, entries) in self.sets.items()},
            frozenset(self.bound),
        )

    def change_sets(self, operations: Sequence[SetOperation]) -> list[Failure]:
        for operation in operations:
            match operation:
                case CreateSet(name, kind):
                    assert name not in self.sets
                    self.sets[name] = kind, set()
                    self.tables.create_sets([name])
                case AddEntries(name, _, entries):
                    assert not self.sets[name][1] & set(entries), "already there"
                    kind, present = self.sets[name]
                    present.update(entries)
                    assert not kind.maximum or len(present) <= kind.maximum, "full"
                case SwapSets(name, other):
                    self.sets[name], self.sets[other] = self.sets[other], self.sets[name]
                case DestroySet(name):
                    self.sets.pop(name, None)
                case RemoveEntries(name, _, entries):
                    assert self.sets[name][1] >= set(entries), "not there"
                    self.sets[name][1].difference_update(entries)
                case _:
                    raise AssertionError(operation)
        return []

    def change_servers(self, operations: Sequence[ServerOperation]) -> list[Failure]:
        for operation in operations:
            match operation:
                case AddVirtualServer(key, server):
                    self.servers[key] = server
                    self.real.setdefault(key, {})
                case SetVirtualServer(key, server):
                    assert self.servers[key] != server, "nothing new"
                    self.servers[key] = server
                case DeleteVirtualServer(key):
                    del self.servers[key], self.real[key]
                case AddRealServer(virtual, key, weight):
                    assert self.real[virtual].get(key) != weight, "nothing new"
                    self.real[virtual][key] = weight
                case SetRealServer(virtual, key, weight):
                    assert self.real[virtual][key] != weight, "nothing new"
                    self.real[virtual][key] = weight
                case DeleteRealServer(virtual, key):
                    del self.real[virtual][key]
        return []

    def change_addresses(self, operations: Sequence[AddressOperation]) -> list[Failure]:
        for operation in operations:
            if isinstance(operation, BindAddresses):
                assert not self.bound & set(operation.addresses)
                self.bound.update(operation.addresses)
            else:
                assert self.bound >= set(operation.addresses)
                self.bound.difference_update(operation.addresses)
                left = {key for key in self.servers if key.address in operation.addresses}
                assert not left, "virtual servers without their address"
        return []

    def restore(self, text: str) -> None:
        self.tables.restore(text)

    def connections(self, key: VirtualServerKey) -> Mapping[RealServerKey, Connections]:
        return {real: Connections(int(real in self.busy), 0, 0) for real in self.real[key]}


class PickyKernel(IpvsKernel):
    """A kernel that refuses new objects with certain addresses.

    As in the real kernel, adding a real server to a missing virtual server fails.
    """

    def __init__(self, refusing: AbstractSet[str] = frozenset()) -> None:
        super().__init__()
        self.refusing = refusing

    def change_sets(self, operations: Sequence[SetOperation]) -> list[Failure]:
        failures = []
        for operation in operations:
            if not isinstance(operation, AddEntries):
                super().change_sets([operation])
                continue
            refused = tuple(e for e in operation.entries if e.address in self.refusing)
            taken = tuple(e for e in operation.entries if e not in refused)
            failures += [
                Failure(operation._replace(entries=(entry,)), 4353, "refused") for entry in refused
            ]
            super().change_sets([operation._replace(entries=taken)])
        return failures

    def change_servers(self, operations: Sequence[ServerOperation]) -> list[Failure]:
        failures = []
        for operation in operations:
            number = self._refusal(operation)
            if number:
                failures.append(Failure(operation, number, "refused"))
            elif not isinstance(operation, DeleteVirtualServer) or operation.key in self.servers:
                super().change_servers([operation])
        return failures

    def _refusal(self, operation: ServerOperation) -> int:
        match operation:
            case AddVirtualServer(key):
                return EINVAL if key.address in self.refusing else 0
            case AddRealServer(virtual, key):
                if virtual not in self.real:
                    return ESRCH
                new = key not in self.real[virtual]
                return EINVAL if new and key.address in self.refusing else 0
            case _:
                return 0

    def change_addresses(self, operations: Sequence[AddressOperation]) -> list[Failure]:
        failures = []
        for operation in operations:
            if isinstance(operation, BindAddresses):
                refused = [a for a in operation.addresses if a in self.refusing]
                failures += [Failure(BindAddresses((a,)), EINVAL, "refused") for a in refused]
                taken = tuple(a for a in operation.addresses if a not in refused)
                super().change_addresses([BindAddresses(taken)])
            else:
                super().change_addresses([operation])
        return failures
