"""Operations on virtual servers, ipsets and addresses, as values.

An operation states a result: adding an existing object corrects it, and deleting an object that
does not exist succeeds. The socket classes of this package execute operations and return those
that the kernel refused.
"""

from typing import NamedTuple

from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    SetEntry,
    SetKind,
    VirtualServer,
    VirtualServerKey,
)


class AddVirtualServer(NamedTuple):
    """Add a virtual server; an existing one gets the properties and keeps its real servers."""

    key: VirtualServerKey
    server: VirtualServer


class SetVirtualServer(NamedTuple):
    """Change the properties of a virtual server; fails with ESRCH if it does not exist."""

    key: VirtualServerKey
    server: VirtualServer


class DeleteVirtualServer(NamedTuple):
    """Delete a virtual server with its real servers."""

    key: VirtualServerKey


class AddRealServer(NamedTuple):
    """Add a real server to a virtual server; an existing one gets the weight."""

    virtual: VirtualServerKey
    key: RealServerKey
    weight: int


class SetRealServer(NamedTuple):
    """Change the weight of a real server; fails with ENOENT if it does not exist."""

    virtual: VirtualServerKey
    key: RealServerKey
    weight: int


class DeleteRealServer(NamedTuple):
    """Delete a real server of a virtual server; its established connections break."""

    virtual: VirtualServerKey
    key: RealServerKey


class CreateSet(NamedTuple):
    """Create an ipset; fails with EEXIST if one with the name exists and is of another kind."""

    name: str
    kind: SetKind


class AddEntries(NamedTuple):
    """Add entries to an ipset; ``kind`` is the kind of the set in the kernel."""

    name: str
    kind: SetKind
    entries: tuple[SetEntry, ...]


class RemoveEntries(NamedTuple):
    """Delete entries from an ipset; ``kind`` is the kind of the set in the kernel."""

    name: str
    kind: SetKind
    entries: tuple[SetEntry, ...]


class SwapSets(NamedTuple):
    """Swap the contents of two ipsets of the same type; rules refer to sets by name."""

    name: str
    other: str


class FlushSet(NamedTuple):
    """Empty an ipset."""

    name: str


class DestroySet(NamedTuple):
    """Destroy an ipset; fails with ipset's error 4100 while a rule refers to it."""

    name: str


class BindAddresses(NamedTuple):
    """Add addresses to the dummy interface, which makes them local to the node."""

    addresses: tuple[str, ...]


class UnbindAddresses(NamedTuple):
    """Remove addresses from the dummy interface."""

    addresses: tuple[str, ...]


ServerOperation = (
    AddVirtualServer
    | SetVirtualServer
    | DeleteVirtualServer
    | AddRealServer
    | SetRealServer
    | DeleteRealServer
)
SetOperation = CreateSet | AddEntries | RemoveEntries | SwapSets | FlushSet | DestroySet
AddressOperation = BindAddresses | UnbindAddresses
Operation = ServerOperation | SetOperation | AddressOperation


class Failure(NamedTuple):
    """An operation that the kernel refused.

    Attributes:
        operation: the operation; if it had several entries or addresses, only the refused ones.
        number: the errno, or from 4096 on an error number of ipset.
        reason: the error in words.
    """

    operation: Operation
    number: int
    reason: str
