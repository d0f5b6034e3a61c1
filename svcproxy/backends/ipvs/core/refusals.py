"""Refusals: objects of single Service ports that the kernel refused.

IPVS mode writes objects one by one, so a refusal undoes nothing else. A refused object is remembered
until it is retried or no longer needed: the planner must know that the kernel does not hold it, and
the audit must not report it as missing.
"""

import errno
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import NamedTuple, TypeVar

import msgspec

from svcproxy.backends.ipvs.core.port_state import Entry, PortState
from svcproxy.backends.ipvs.core.settings import Scheduling
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.kernel_objects import (
    SCHEDULER_FLAGS,
    RealServerKey,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import (
    AddEntries,
    AddRealServer,
    AddVirtualServer,
    BindAddresses,
    Failure,
    ServerOperation,
    SetRealServer,
    SetVirtualServer,
)

T = TypeVar("T")
Item = VirtualServerKey | Entry | str
"""An object that a Service port needs: a virtual server, a set entry, or a bound address."""

_MAX_REASONS = 3
"""How many reasons are listed for one Service port; each of its endpoints may have one."""

_SYSTEMIC = frozenset(
    {
        errno.EPERM,
        errno.EACCES,
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.ENODEV,
        errno.EAFNOSUPPORT,
        errno.EOPNOTSUPP,
    }
)
"""Errors of the node, not of the object; a resync follows."""
_NOT_FOUND = frozenset({errno.ENOENT, errno.ESRCH})

_SET_FULL = 4352
_ENTRY_ERRORS = frozenset({4104, _SET_FULL, 4353, 4356, 4357})
"""ipset's errors for an impossible prefix length, a full set, an all-zero entry, and ranges.

Any other error means that the set itself is wrong, which a resync corrects."""


class Results(msgspec.Struct):
    """The results of an executed plan.

    Attributes:
        operations: how many operations the kernel executed, by kind.
        failures: the operations that the kernel refused.
        rescheduled: operations on virtual servers that were repeated with the fallback scheduler.
    """

    operations: Counter[str] = msgspec.field(default_factory=Counter)
    failures: list[Failure] = []
    rescheduled: list[AddVirtualServer | SetVirtualServer] = []


class Refusals:
    """The refused objects: Service ports need them, and the kernel does not hold them.

    Attributes:
        servers: virtual servers that are missing or have other properties.
        real: real servers that are missing, by virtual server.
        entries: set entries that are missing.
        addresses: addresses that are missing on ``kube-ipvs0``.
        full: whether a set was full; a resync then creates a larger one.
    """

    def __init__(self) -> None:
        self.servers: set[VirtualServerKey] = set()
        self.real: dict[VirtualServerKey, set[RealServerKey]] = {}
        self.entries: set[Entry] = set()
        self.addresses: set[str] = set()
        self.full = False

    def __bool__(self) -> bool:
        return bool(self.servers or self.real or self.entries or self.addresses)

    def record(
        self, failures: Iterable[Failure], substituted: Mapping[str, Collection[str]]
    ) -> tuple[dict[Item, list[str]], list[Failure]]:
        """Remember the failures that concern single Service ports.

        Args:
            failures: the operations that the kernel refused.
            substituted: the sets that each temporary set replaced.

        Returns:
            The reasons for each missing item, and the failures that concern no single Service
            port: deletions, errors of the node, and servers that another program deleted.
        """
        reasons: dict[Item, list[str]] = {}
        rest = []
        for failure in sorted(failures, key=_is_real_server):  # virtual servers first
            items = self._record(failure, substituted)
            if not items:
                rest.append(failure)
            elif failure.number not in _NOT_FOUND:  # else the virtual server's failure has a reason
                for item in items:
                    reasons.setdefault(item, []).append(described(failure))
        return reasons, rest

    def _record(
        self, failure: Failure, substituted: Mapping[str, Collection[str]]
    ) -> Collection[Item]:
        operation, number = failure.operation, failure.number
        items: Collection[Item] = ()
        match operation:
            case _ if number in _SYSTEMIC:
                pass
            case AddVirtualServer(key) | SetVirtualServer(key) if number not in _NOT_FOUND:
                self.servers.add(key)
                items = (key,)
            case AddRealServer(key, real) | SetRealServer(key, real, 1):
                # If its virtual server is gone but was not refused, another program deleted it.
                if number not in _NOT_FOUND or key in self.servers:
                    self.real.setdefault(key, set()).add(real)
                    items = (key,)
            case AddEntries(name, _, entries) if number in _ENTRY_ERRORS:
                self.full = self.full or number == _SET_FULL
                names = substituted.get(name, (name,))
                items = [(each, entry) for each in names for entry in entries]
                self.entries.update((each, entry) for each in names for entry in entries)
            case BindAddresses(addresses):
                self.addresses.update(addresses)
                items = addresses
        return items

    def forget_servers(self, keys: Iterable[VirtualServerKey]) -> None:
        """Forget virtual servers with their real servers: a plan writes or deletes them."""
        for key in keys:
            self.servers.discard(key)
            self.real.pop(key, None)

    def missing(self, key: VirtualServerKey) -> AbstractSet[RealServerKey]:
        """Return the refused real servers of a virtual server."""
        return self.real.get(key, frozenset())


def retry(refused: set[T], concerned: AbstractSet[T], gained: set[T], lost: set[T]) -> None:
    """Add refused items that are still needed to ``gained``; drop the others from ``lost``."""
    again = refused & concerned
    refused -= again
    gained |= again - lost
    lost -= again


# --- Schedulers that the kernel lacks -------------------------------------------------------------


class Rescheduling(NamedTuple):
    """How to repeat operations on virtual servers whose scheduler the kernel lacks.

    Attributes:
        operations: the operations to execute, with the fallback scheduler.
        replaced: the refused operations that these replace.
        failures: the failures that have other causes.
    """

    operations: list[ServerOperation]
    replaced: list[AddVirtualServer | SetVirtualServer]
    failures: list[Failure]


def rescheduling(
    operations: Sequence[ServerOperation], failures: list[Failure], fallback: Scheduling
) -> Rescheduling:
    """Return what to repeat after a batch of operations.

    Args:
        operations: the operations of the batch.
        failures: those that the kernel refused.
        fallback: the scheduler that replaces one that the kernel lacks.
    """
    unscheduled = {f.operation for f in failures if _lacks_scheduler(f)}
    if not unscheduled:
        return Rescheduling([], [], failures)
    virtual = set()
    again: list[ServerOperation] = []
    replaced: list[AddVirtualServer | SetVirtualServer] = []
    for operation in operations:
        if isinstance(operation, AddVirtualServer | SetVirtualServer):
            if operation in unscheduled:
                replaced.append(operation)
                virtual.add(operation.key)
                flags = operation.server.flags & ~SCHEDULER_FLAGS | fallback.flags
                server = msgspec.structs.replace(
                    operation.server, scheduler=fallback.name, flags=flags
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
    return Rescheduling(again, replaced, others)


def _lacks_scheduler(failure: Failure) -> bool:
    operation = failure.operation
    return failure.number == errno.ENOENT and isinstance(
        operation, AddVirtualServer | SetVirtualServer
    )


# --- Reasons by Service port ----------------------------------------------------------------------


def named(key: VirtualServerKey) -> str:
    """Return the text for a virtual server in messages."""
    protocol, address, port = key
    return f"virtual server {_endpoint(address, port)}/{protocol.keyword}"


def described(failure: Failure) -> str:
    """Return the text for a failure: the object and the reason."""
    match failure.operation:
        case AddVirtualServer(key) | SetVirtualServer(key):
            what = named(key)
        case AddRealServer(virtual, key) | SetRealServer(virtual, key):
            what = f"real server {_endpoint(*key)} of {named(virtual)}"
        case AddEntries(name, _, entries):
            what = f"entry {' '.join(str(part) for part in entries[0] if part)} of ipset {name}"
        case BindAddresses(addresses):
            what = f"address {addresses[0]} on kube-ipvs0"
        case operation:
            what = f"{type(operation).__name__} {' '.join(map(str, operation))}"
    return f"{what}: {failure.reason}"


def attributed(
    reasons: Mapping[Item, Sequence[str]], states: Iterable[tuple[ServicePortName, PortState]]
) -> tuple[dict[ServicePortName, str], dict[Item, Sequence[str]]]:
    """Map missing items to the Service ports that need them.

    Returns:
        The reasons by Service port, and the reasons of the items that none of the ports needs.
    """
    found, left = {}, dict(reasons)
    for name, state in states:
        needed: Iterable[Item] = chain[Item](state.servers, state.entries, state.addresses)
        items = [item for item in needed if item in reasons]
        if items:
            found[name] = _listed(sorted(text for item in items for text in reasons[item]))
            for item in items:
                left.pop(item, None)
    return found, left


def suspects(ports: Iterable[ServicePort], items: Iterable[Item]) -> Iterator[ServicePort]:
    """Yield the Service ports that may need one of the items: cheaper than computing all states."""
    addresses, numbers = set(), set()
    for item in items:
        match item:
            case str():
                addresses.add(item)
            case VirtualServerKey(_, address, number):
                addresses.add(address)
                numbers.add(number)
            case (_, entry):
                addresses.add(entry.address)
                numbers.add(entry.port)
    for port in ports:
        endpoints = (*port.cluster_endpoints, *port.local_endpoints)
        if any(
            f.address in addresses or (not f.address and f.port in numbers) for f in port.frontends
        ) or any(e.address in addresses for e in endpoints):
            yield port


def _listed(reasons: Sequence[str]) -> str:
    more = len(reasons) - _MAX_REASONS
    return "; ".join(reasons[:_MAX_REASONS]) + (f"; and {more} more" if more > 0 else "")


def _is_real_server(failure: Failure) -> bool:
    return isinstance(failure.operation, AddRealServer | SetRealServer)


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
