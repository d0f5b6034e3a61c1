"""Carrying out a plan, in the order in which no connection is lost.

What serves is there before packets are sent to it, what refuses before that which served goes.
The kernel stands behind a protocol, so that the order is the same in tests.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from errno import ENOENT
from typing import Protocol

import msgspec

from svcproxy.backends.ipvs.naming import SETS
from svcproxy.backends.ipvs.plan import Entry, Plan, restore_input
from svcproxy.backends.ipvs.planner import Planner
from svcproxy.backends.ipvs.termination import Termination
from svcproxy.backends.xtables.core.tableplan import TablePlan
from svcproxy.netlink.core.kernel_objects import (
    Connections,
    RealServerKey,
    SetEntry,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import (
    AddEntries,
    AddRealServer,
    AddressOperation,
    AddVirtualServer,
    BindAddresses,
    DeleteRealServer,
    DeleteVirtualServer,
    Failure,
    Operation,
    RemoveEntries,
    ServerOperation,
    SetOperation,
    SetRealServer,
    SetVirtualServer,
    UnbindAddresses,
)


class Kernel(Protocol):
    """What a plan is carried out on. Operations that fail are returned, the others are done."""

    def change_sets(self, operations: Sequence[SetOperation]) -> list[Failure]:
        """Change ipsets."""

    def change_servers(self, operations: Sequence[ServerOperation]) -> list[Failure]:
        """Change virtual and real servers."""

    def change_addresses(self, operations: Sequence[AddressOperation]) -> list[Failure]:
        """Change the addresses of ``kube-ipvs0``."""

    def restore(self, text: str) -> None:
        """Apply an input of iptables-restore.

        Raises:
            BackendError: iptables refused it.
        """

    def connections(self, key: VirtualServerKey) -> Mapping[RealServerKey, Connections]:
        """The connections of each real server of a virtual server."""


class Done(msgspec.Struct):
    """What carrying out a plan did: how many operations by kind, and what failed.

    ``unscheduled`` are virtual servers that got the default scheduler, for the kernel has not
    the one they should have.
    """

    operations: Counter[str] = msgspec.field(default_factory=Counter)
    failures: list[Failure] = []
    unscheduled: list[AddVirtualServer | SetVirtualServer] = []


class Executor:
    """Carries out the plans of one planner, and lets real servers leave."""

    def __init__(self, planner: Planner, termination: Termination, kernel: Kernel) -> None:
        self._planner = planner
        self._termination = termination
        self._kernel = kernel
        self._done = Done()

    def apply(self, plan: Plan, now: float) -> Done:
        """Carry out a plan; ``now`` is the time of the monotonic clock.

        Raises:
            BackendError: the kernel did not answer, or iptables refused the rules.
        """
        self._done = Done()
        if plan.compared:
            self._termination.retain(plan.leaving)
        self._change_sets([*plan.create_sets, *self._entries(AddEntries, plan.enter)])
        self._change_servers(plan.serve)
        self._restore(plan.tables)
        self._change_servers(plan.node_ports)
        if plan.bind:
            self._change_addresses(BindAddresses(tuple(plan.bind)))
        self._restore(plan.hand_over)
        self._change_servers(plan.quiesce)
        for key, real in plan.leaving.items():
            self._termination.begin(key, real, now)
        self._remove(plan)
        self._settle(plan.leaving.keys(), now)
        return self._done

    def tend(self, now: float) -> Done:
        """Remove the real servers that have drained.

        Raises:
            BackendError: the kernel did not answer.
        """
        self._done = Done()
        self._settle(list(self._termination.servers), now)
        return self._done

    def _settle(self, keys: Iterable[VirtualServerKey], now: float) -> None:
        steps: list[ServerOperation] = []
        gone = Plan()
        for key in keys:
            finished = self._termination.finished(
                key,
                self._kernel.connections(key),
                now,
                closing=not self._planner.holds_on(key),
            )
            self._termination.end(key, finished)
            if key in self._planner.lingering and not self._termination.draining(key):
                drained = self._planner.drained(key)
                gone.delete.extend(drained.delete)
                gone.unbind.extend(drained.unbind)
                gone.leave.extend(drained.leave)
            else:
                steps.extend(DeleteRealServer(key, real) for real in finished)
        self._change_servers(steps)
        self._remove(gone)

    def _remove(self, plan: Plan) -> None:
        self._change_servers(plan.delete)
        if plan.unbind:
            self._change_addresses(UnbindAddresses(tuple(plan.unbind)))
        self._change_sets(self._entries(RemoveEntries, plan.leave))

    def _restore(self, tables: Mapping[str, TablePlan]) -> None:
        text = restore_input(tables)
        if not text:
            return
        self._kernel.restore(text)
        plans = tables.values()
        self._done.operations.update(
            restore=1,
            chain_written=sum(len(t.write) for t in plans),
            chain_deleted=sum(len(t.delete) for t in plans),
            rule_written=sum(t.rules for t in plans),
            rule_deleted=sum(len(t.remove) for t in plans),
        )

    def _change_servers(self, operations: Sequence[ServerOperation]) -> None:
        if not operations:
            return
        for operation in operations:
            if isinstance(operation, AddRealServer | SetRealServer) and operation.weight:
                self._termination.end(operation.virtual, (operation.key,))
        self._count(operations)
        failures = self._kernel.change_servers(operations)
        unscheduled = {f.operation: f for f in failures if _lacks_scheduler(f)}
        if unscheduled:
            failures = self._schedule_otherwise(operations, unscheduled.keys(), failures)
        self._failed(failures)

    def _schedule_otherwise(
        self,
        operations: Sequence[ServerOperation],
        unscheduled: AbstractSet[Operation],
        failures: list[Failure],
    ) -> list[Failure]:
        """Make virtual servers whose scheduler the kernel lacks with the default one."""
        default = self._planner.settings.scheduling
        virtual = set()
        again: list[ServerOperation] = []
        for operation in operations:
            if isinstance(operation, AddVirtualServer | SetVirtualServer):
                if operation in unscheduled:
                    self._done.unscheduled.append(operation)
                    virtual.add(operation.key)
                    flags = operation.server.flags & ~_SCHEDULER_FLAGS | default.flags
                    server = msgspec.structs.replace(
                        operation.server, scheduler=default.name, flags=flags
                    )
                    again.append(type(operation)(operation.key, server))
            elif isinstance(operation, AddRealServer) and operation.virtual in virtual:
                again.append(operation)
        others = [
            f
            for f in failures
            if f.operation not in unscheduled
            and not (isinstance(f.operation, AddRealServer) and f.operation.virtual in virtual)
        ]
        return others + (self._kernel.change_servers(again) if again else [])

    def _change_sets(self, operations: Sequence[SetOperation]) -> None:
        if operations:
            self._count(operations)
            self._failed(self._kernel.change_sets(operations))

    def _change_addresses(self, operation: AddressOperation) -> None:
        self._count([operation])
        self._failed(self._kernel.change_addresses([operation]))

    def _failed(self, failures: Sequence[Failure]) -> None:
        """Note failures; what was refused has changed nothing and does not count."""
        self._done.failures.extend(failures)
        self._count((failure.operation for failure in failures), -1)

    def _entries(
        self, make: type[AddEntries] | type[RemoveEntries], entries: Iterable[Entry]
    ) -> list[SetOperation]:
        by_name: dict[str, list[SetEntry]] = {}
        for name, entry in entries:
            by_name.setdefault(name, []).append(entry)
        kinds = SETS[self._planner.settings.family].kinds
        return [make(name, kinds[name], tuple(found)) for name, found in by_name.items()]

    def _count(self, operations: Iterable[Operation], sign: int = 1) -> None:
        for operation in operations:
            kind = _KINDS.get(type(operation), "set_changed")
            match operation:
                case AddEntries() | RemoveEntries():
                    self._done.operations[kind] += sign * len(operation.entries)
                case BindAddresses() | UnbindAddresses():
                    self._done.operations[kind] += sign * len(operation.addresses)
                case _:
                    self._done.operations[kind] += sign


_SCHEDULER_FLAGS = 0x8 | 0x10 | 0x20

_KINDS: Mapping[type, str] = {
    AddVirtualServer: "virtual_server_written",
    SetVirtualServer: "virtual_server_written",
    AddRealServer: "real_server_written",
    SetRealServer: "real_server_written",
    DeleteRealServer: "real_server_deleted",
    DeleteVirtualServer: "virtual_server_deleted",
    AddEntries: "set_entry_added",
    RemoveEntries: "set_entry_deleted",
    BindAddresses: "address_bound",
    UnbindAddresses: "address_unbound",
}


def _lacks_scheduler(failure: Failure) -> bool:
    operation = failure.operation
    return failure.number == ENOENT and isinstance(operation, AddVirtualServer | SetVirtualServer)
