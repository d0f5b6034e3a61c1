"""What IPVS mode does to the kernel, one value per step.

Pure. The planner makes these; ``connection``, ``ipset`` and ``links`` carry them out and return
those that failed. All of them state a result: adding what is there already corrects it, and
deleting what is gone succeeds.
"""

from typing import NamedTuple

from svcproxy.backends.ipvs.values import (
    RealServerKey,
    SetEntry,
    SetKind,
    VirtualServer,
    VirtualServerKey,
)


class AddVirtualServer(NamedTuple):
    """Make a virtual server; one that is there gets these properties and keeps its servers."""

    key: VirtualServerKey
    server: VirtualServer


class SetVirtualServer(NamedTuple):
    """Give a virtual server that is there other properties; it fails with ESRCH if it is not."""

    key: VirtualServerKey
    server: VirtualServer


class DeleteVirtualServer(NamedTuple):
    """Remove a virtual server with its real servers."""

    key: VirtualServerKey


class AddRealServer(NamedTuple):
    """Give a virtual server a real server; one that is there gets the weight."""

    virtual: VirtualServerKey
    key: RealServerKey
    weight: int


class SetRealServer(NamedTuple):
    """Give a real server that is there another weight; it fails with ENOENT if it is not."""

    virtual: VirtualServerKey
    key: RealServerKey
    weight: int


class DeleteRealServer(NamedTuple):
    """Take a real server from a virtual server; its established connections end."""

    virtual: VirtualServerKey
    key: RealServerKey


class CreateSet(NamedTuple):
    """Make an ipset; it fails with EEXIST if one of the name is there that is made otherwise."""

    name: str
    kind: SetKind


class AddEntries(NamedTuple):
    """Put entries into an ipset; the kind is the set's own, in the kernel."""

    name: str
    kind: SetKind
    entries: tuple[SetEntry, ...]


class RemoveEntries(NamedTuple):
    """Take entries out of an ipset."""

    name: str
    kind: SetKind
    entries: tuple[SetEntry, ...]


class SwapSets(NamedTuple):
    """Exchange the contents of two ipsets of the same type; rules follow the name."""

    name: str
    other: str


class FlushSet(NamedTuple):
    """Empty an ipset."""

    name: str


class DestroySet(NamedTuple):
    """Remove an ipset; it fails with ipset's error 4100 while a rule refers to it."""

    name: str


class BindAddresses(NamedTuple):
    """Put addresses on ``kube-ipvs0``, which makes them the node's own."""

    addresses: tuple[str, ...]


class UnbindAddresses(NamedTuple):
    """Take addresses from ``kube-ipvs0``."""

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
    """An operation that the kernel refused; the others were carried out.

    Of an operation with several entries or addresses ``operation`` holds only those that were
    refused. ``number`` is the errno, or the kernel's private number for ipset errors from 4096;
    ``reason`` says it in words.
    """

    operation: Operation
    number: int
    reason: str
