"""What the kernel refused of single Service ports, so that it costs no other one.

IPVS mode writes object by object, so one refusal undoes nothing else. What was refused is kept
here until it is tried again or not wanted any more: the planner must know that the kernel does not
hold it, and the audit must not miss it.

Pure.
"""

import errno
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import TypeVar

from svcproxy.backends.ipvs.layout import PortState
from svcproxy.backends.ipvs.operations import (
    AddEntries,
    AddRealServer,
    AddVirtualServer,
    BindAddresses,
    Failure,
    SetRealServer,
    SetVirtualServer,
)
from svcproxy.backends.ipvs.plan import Entry
from svcproxy.backends.ipvs.values import RealServerKey, VirtualServerKey
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort

T = TypeVar("T")
Item = VirtualServerKey | Entry | str
"""What Service ports need of the kernel: a virtual server, a set entry, or a bound address."""

_MOST_REASONS = 3
"""As many are named for one Service port; there may be one for each of its endpoints."""

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
"""Errors of the node and not of the object; a comparison from scratch looks at all of it."""
_GONE = frozenset({errno.ENOENT, errno.ESRCH})

_SET_FULL = 4352
_ENTRY_ERRORS = frozenset({4104, _SET_FULL, 4353, 4356, 4357})
"""ipset's errors for an impossible prefix length, a full set, an all-zero entry, and ranges.

All others say that the set is not what it should be, which a comparison corrects."""


class Refused:
    """What the kernel does not hold, although Service ports need it.

    Attributes:
        servers: virtual servers that are missing or have other properties.
        real: real servers that are missing, by virtual server.
        entries: missing set entries.
        addresses: addresses that are missing on ``kube-ipvs0``.
        full: whether a set is full that should have had room.
    """

    def __init__(self) -> None:
        self.servers: set[VirtualServerKey] = set()
        self.real: dict[VirtualServerKey, set[RealServerKey]] = {}
        self.entries: set[Entry] = set()
        self.addresses: set[str] = set()
        self.full = False

    def __bool__(self) -> bool:
        return bool(self.servers or self.real or self.entries or self.addresses)

    def note(
        self, failures: Iterable[Failure], substitutes: Mapping[str, Collection[str]]
    ) -> tuple[dict[Item, list[str]], list[Failure]]:
        """Remember failures that concern single Service ports.

        Args:
            failures: what the kernel refused.
            substitutes: the sets whose place a set took that was filled under another name, by
                that name.

        Returns:
            Why each item is missing, and the failures that are no single Service port's: deletions,
            errors of the node, and servers that somebody else has deleted.
        """
        reasons: dict[Item, list[str]] = {}
        rest = []
        for failure in sorted(failures, key=_after_its_virtual_server):
            items = self._noted(failure, substitutes)
            if not items:
                rest.append(failure)
            elif failure.number not in _GONE:  # else its virtual server has said it
                for item in items:
                    reasons.setdefault(item, []).append(described(failure))
        return reasons, rest

    def _noted(
        self, failure: Failure, substitutes: Mapping[str, Collection[str]]
    ) -> Collection[Item]:
        operation, number = failure.operation, failure.number
        items: Collection[Item] = ()
        match operation:
            case _ if number in _SYSTEMIC:
                pass
            case AddVirtualServer(key) | SetVirtualServer(key) if number not in _GONE:
                self.servers.add(key)
                items = (key,)
            case AddRealServer(key, real) | SetRealServer(key, real, 1):
                # Without its virtual server, unless that was refused: somebody has deleted it.
                if number not in _GONE or key in self.servers:
                    self.real.setdefault(key, set()).add(real)
                    items = (key,)
            case AddEntries(name, _, entries) if number in _ENTRY_ERRORS:
                self.full = self.full or number == _SET_FULL
                names = substitutes.get(name, (name,))
                items = [(each, entry) for each in names for entry in entries]
                self.entries.update((each, entry) for each in names for entry in entries)
            case BindAddresses(addresses):
                self.addresses.update(addresses)
                items = addresses
        return items

    def retried_servers(self, keys: Iterable[VirtualServerKey]) -> None:
        """Forget virtual servers with their real servers: they are written again, or deleted."""
        for key in keys:
            self.servers.discard(key)
            self.real.pop(key, None)

    def missing(self, key: VirtualServerKey) -> AbstractSet[RealServerKey]:
        """The refused real servers of a virtual server."""
        return self.real.get(key, frozenset())


def named(key: VirtualServerKey) -> str:
    """A virtual server in words."""
    protocol, address, port = key
    return f"virtual server {_endpoint(address, port)}/{protocol.keyword}"


def described(failure: Failure) -> str:
    """What failed, and why."""
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
    """Which Service ports need what is missing.

    Returns:
        For each of them, why it is not all there; and the reasons of items that none of them needs.
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
    """The Service ports that may need one of the items; cheaper than to compute their layouts."""
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


def retry(refused: set[T], concerned: AbstractSet[T], gained: set[T], lost: set[T]) -> None:
    """Add what is still needed to ``gained``, and take what was never there from ``lost``."""
    again = refused & concerned
    refused -= again
    gained |= again - lost
    lost -= again


def _listed(reasons: Sequence[str]) -> str:
    more = len(reasons) - _MOST_REASONS
    return "; ".join(reasons[:_MOST_REASONS]) + (f"; and {more} more" if more > 0 else "")


def _after_its_virtual_server(failure: Failure) -> bool:
    return isinstance(failure.operation, AddRealServer | SetRealServer)


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
