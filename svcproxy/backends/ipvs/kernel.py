"""The kernel interfaces of IPVS mode: reading them, executing plans, and noticing changes."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from hashlib import blake2b
from typing import NamedTuple, Protocol

from svcproxy.backends.base import BackendError
from svcproxy.backends.ipvs.core.chains_and_sets import DUMMY_INTERFACE, KINDS, SETS
from svcproxy.backends.ipvs.core.difference import Observed, Plan, restore_input
from svcproxy.backends.ipvs.core.port_state import Entry
from svcproxy.backends.ipvs.core.refusals import Results, rescheduling
from svcproxy.backends.ipvs.core.settings import Scheduling
from svcproxy.backends.xtables.change_tracker import GenerationTracker, TableSizeTracker
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.core.restoretext import ENCODING
from svcproxy.backends.xtables.core.rule_text import TABLES
from svcproxy.backends.xtables.core.savefile import parse
from svcproxy.backends.xtables.core.tableplan import TablePlan
from svcproxy.backends.xtables.table_sizes import table_sizes
from svcproxy.netlink.core import ipvs_listing
from svcproxy.netlink.core.kernel_objects import (
    Addresses,
    Connections,
    RealServerKey,
    SetEntry,
    SetKind,
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
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.generation import generation
from svcproxy.netlink.ipset import IpsetSocket
from svcproxy.netlink.ipvs import IpvsSocket, read_listing
from svcproxy.netlink.rtnetlink import RouteSocket

_CLOCK_MONOTONIC_COARSE = 6


@contextmanager
def kernel_errors() -> Iterator[None]:
    """Raise errors of netlink sockets as ``BackendError``."""
    try:
        yield
    except NetlinkError as error:
        raise BackendError(str(error)) from error


# --- Executing plans ------------------------------------------------------------------------------


class Kernel(Protocol):
    """What plans are executed on. Refused operations are returned; all others are executed."""

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


def execute(plan: Plan, kernel: Kernel) -> Results:
    """Execute the steps of a plan in their order.

    Raises:
        BackendError: iptables refused the rules.
        NetlinkError: the kernel did not answer.
    """
    execution = _Execution(kernel, plan.fallback)
    execution.change_sets([*plan.create_sets, *_entry_operations(AddEntries, plan.add_entries)])
    execution.change_servers(plan.serve)
    execution.restore(plan.tables)
    execution.change_servers(plan.node_ports)
    if plan.bind:
        execution.change_addresses(BindAddresses(tuple(plan.bind)))
    execution.restore(plan.hand_over)
    execution.change_servers(plan.quiesce)
    execution.change_servers(plan.delete)
    if plan.unbind:
        execution.change_addresses(UnbindAddresses(tuple(plan.unbind)))
    execution.change_sets(_entry_operations(RemoveEntries, plan.remove_entries))
    return execution.results


class _Execution:
    """Sends operations to the kernel and collects the results."""

    def __init__(self, kernel: Kernel, fallback: Scheduling) -> None:
        self._kernel = kernel
        self._fallback = fallback
        self.results = Results()

    def change_sets(self, operations: Sequence[SetOperation]) -> None:
        if operations:
            self._count(operations)
            self._add_failures(self._kernel.change_sets(operations))

    def change_servers(self, operations: Sequence[ServerOperation]) -> None:
        if not operations:
            return
        self._count(operations)
        failures = self._kernel.change_servers(operations)
        if failures:
            again = rescheduling(operations, failures, self._fallback)
            self.results.rescheduled += again.replaced
            failures = again.failures
            if again.operations:
                failures += self._kernel.change_servers(again.operations)
        self._add_failures(failures)

    def change_addresses(self, operation: AddressOperation) -> None:
        self._count([operation])
        self._add_failures(self._kernel.change_addresses([operation]))

    def restore(self, tables: Mapping[str, TablePlan]) -> None:
        text = restore_input(tables)
        if not text:
            return
        self._kernel.restore(text)
        plans = tables.values()
        self.results.operations.update(
            restore=1,
            chain_written=sum(len(t.write) for t in plans),
            chain_deleted=sum(len(t.delete) for t in plans),
            rule_written=sum(t.rules for t in plans),
            rule_deleted=sum(len(t.remove) for t in plans),
        )

    def _add_failures(self, failures: Sequence[Failure]) -> None:
        """Add failures; a refused operation has changed nothing and is not counted."""
        self.results.failures.extend(failures)
        self._count((failure.operation for failure in failures), -1)

    def _count(self, operations: Iterable[Operation], sign: int = 1) -> None:
        for operation in operations:
            kind = _KINDS.get(type(operation), "set_changed")
            match operation:
                case AddEntries() | RemoveEntries():
                    self.results.operations[kind] += sign * len(operation.entries)
                case BindAddresses() | UnbindAddresses():
                    self.results.operations[kind] += sign * len(operation.addresses)
                case _:
                    self.results.operations[kind] += sign


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


def _entry_operations(
    make: type[AddEntries] | type[RemoveEntries], entries: Iterable[Entry]
) -> list[SetOperation]:
    by_name: dict[str, list[SetEntry]] = {}
    for name, entry in entries:
        by_name.setdefault(name, []).append(entry)
    return [make(name, KINDS[name], tuple(found)) for name, found in by_name.items()]


# --- Reading --------------------------------------------------------------------------------------


class Fingerprint(NamedTuple):
    """A summary of the kernel's state that changes with anything but virtual servers.

    Attributes:
        rules: a digest of all iptables rules.
        set_sizes: the sets of IPVS mode with their numbers of entries.
        addresses: the number of addresses of the node.
    """

    rules: bytes
    set_sizes: tuple[tuple[str, int], ...]
    addresses: int

    @property
    def counts(self) -> Counter[str]:
        """The numbers that ``Planner.counts`` predicts."""
        return Counter({"addresses": self.addresses, **dict(self.set_sizes)})


class IpvsKernel:
    """One family's virtual servers, ipsets, rules, and addresses on ``kube-ipvs0``.

    Only the thread that creates it may use it.

    Raises:
        NetlinkError: the kernel has no IPVS.
    """

    def __init__(self, programs: Iptables) -> None:
        self._programs = programs
        self._family = programs.family
        self.ipvs = IpvsSocket(programs.family)
        self.sets = IpsetSocket(programs.family)
        self.links = RouteSocket(programs.family, DUMMY_INTERFACE)
        self._rules: tuple[bytes | None, bytes] = None, b""
        legacy = programs.variant is Variant.LEGACY
        self._rule_changes = TableSizeTracker(programs.family) if legacy else GenerationTracker()

    @property
    def only_own_rule_changes(self) -> bool:
        """Whether no other program has changed rules since ``read``, as far as the kernel shows."""
        return self._rule_changes.is_unchanged()

    @property
    def sent(self) -> int:
        """How many netlink messages have been sent."""
        return self.ipvs.sent + self.sets.sent + self.links.sent

    def read(self) -> tuple[Observed, Addresses, Fingerprint]:
        """Read everything, with the node's addresses and a fingerprint of what was read.

        Raises:
            BackendError: iptables-save failed.
            NetlinkError: the kernel could not be read.
        """
        addresses = self.links.read()
        self._rule_changes.before_read()
        version = self._rules_version()
        rules = self._programs.save(*TABLES)
        self._rules = version, _digest(rules)
        servers = self.ipvs.virtual_servers()
        # The listing has the servers of both families, so a family without servers skips it.
        real = ipvs_listing.parse_listing(read_listing(), self._family) if servers else {}
        # The two lists are not of the same moment. A server in only one of them does not exist.
        servers = {key: server for key, server in servers.items() if key in real}
        sets = self._read_sets()
        observed = Observed(parse(rules), servers, real, sets, addresses.bound)
        sizes = {name: len(entries) for name, (_, entries) in sets.items()}
        return observed, addresses, self._fingerprint(sizes)

    def fingerprint(self) -> Fingerprint:
        """Return the present fingerprint, which takes less time than ``read``.

        Raises:
            BackendError: iptables-save failed.
            NetlinkError: the kernel could not be read.
        """
        headers = self.sets.headers()
        sizes = {name: h.elements for name, h in headers.items() if name in SETS[self._family]}
        version = self._rules_version()
        if version is None or version != self._rules[0]:
            # Rules of other programs may have changed, or the kernel has no version of its rules.
            self._rules = version, _digest(self._programs.save(*TABLES))
        return self._fingerprint(sizes)

    def _rules_version(self) -> bytes | None:
        """Return a value that changes with the rules; ``None`` if the kernel has none."""
        if self._programs.variant is Variant.LEGACY:
            return table_sizes(self._family)
        number = generation()
        return None if number is None else str(number).encode()

    def _fingerprint(self, sizes: Mapping[str, int]) -> Fingerprint:
        return Fingerprint(self._rules[1], tuple(sorted(sizes.items())), self.links.count())

    def _read_sets(self) -> dict[str, tuple[SetKind, AbstractSet[SetEntry]]]:
        found: dict[str, tuple[SetKind, AbstractSet[SetEntry]]] = {}
        kinds = SETS[self._family].kinds
        for name, header in self.sets.headers().items():
            if name in kinds:
                kind = header.kind or kinds[name]._replace(type="")
                entries = self.sets.entries(name, kind) if header.kind else frozenset[SetEntry]()
                found[name] = kind, entries
        return found

    def change_sets(self, operations: Sequence[SetOperation]) -> list[Failure]:
        """Change ipsets; return the refused operations."""
        return self.sets.execute(operations)

    def change_servers(self, operations: Sequence[ServerOperation]) -> list[Failure]:
        """Change virtual and real servers; return the refused operations."""
        return self.ipvs.execute(operations)

    def change_addresses(self, operations: Sequence[AddressOperation]) -> list[Failure]:
        """Change the addresses of ``kube-ipvs0``; return the refused operations."""
        return self.links.execute(operations)

    def restore(self, text: str) -> None:
        """Apply an input of iptables-restore."""
        self._rule_changes.before_write()
        self._programs.restore(text)
        self._rule_changes.after_write(text.count("\nCOMMIT"))

    def connections(self, key: VirtualServerKey) -> Mapping[RealServerKey, Connections]:
        """List the connections of each real server of a virtual server."""
        return {real: found for real, (_, found) in self.ipvs.real_servers(key).items()}


def ticks_per_second() -> int:
    """Return the kernel's ticks per second (CONFIG_HZ), in which it lists timeouts.

    The resolution of the kernel's coarse clocks is one tick; no other interface shows it.
    """
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def _digest(rules: str) -> bytes:
    """Return a digest of all rules, without comments and without the counters of chains."""
    text = "\n".join(line for line in rules.split("\n") if not line.startswith(("#", ":")))
    return blake2b(text.encode(*ENCODING), digest_size=16).digest()
