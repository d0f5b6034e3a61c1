"""Noticing what others do to our tables."""

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable, Collection, Iterator
from functools import partial
from threading import Lock

import structlog

from svcproxy.backends.base import BackendError, ExternalChange
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables.events import (
    EventParser,
    Relevance,
    TransactionEvent,
    all_in_tables,
    originator_filter,
)
from svcproxy.netlink.core.nf_tables.protocol import EVENT_GROUP, FAMILY_NUMBERS
from svcproxy.netlink.core.nf_tables.ruleset import TABLE
from svcproxy.netlink.listener import Listener, listening_socket

LOST = "unknown"
"""The process name that stands for events that were lost."""

_NETFILTER = 12
_ATTACH_FILTER = 26

_ALL_OF_OURS = all_in_tables((TABLE,))

log = structlog.get_logger()


class NftablesWatcher:
    """A thread that listens to nf_tables events and calls ``on_external_change`` for others' changes.

    Our own are told by the netlink address they come from, not by the process: the kernel names
    processes by their numbers in the initial pid namespace, which a container does not know. The
    kernel drops them before they reach us, so a large transaction of ours costs and overflows
    nothing. Changes that we have a program make cannot be told like this; see ``own``.

    Args:
        on_external_change: called in the watcher's thread after each transaction of somebody else that
            concerns us, and with the process ``LOST`` when events were lost: then anything may
            have changed.
        own_ports: the netlink addresses of our own connections (``NftablesBackend.port_id``).
        families: the families of the tables.
        judge: says which changes concern us; all those of our own tables, if not given.

    Raises:
        BackendError: the kernel does not let us listen.
    """

    def __init__(
        self,
        on_external_change: Callable[[ExternalChange], None],
        own_ports: Collection[int] = (),
        families: Collection[IPFamily] = tuple(IPFamily),
        judge: Relevance = _ALL_OF_OURS,
    ) -> None:
        self._on_foreign = on_external_change
        self._changes = EventParser(judge, [FAMILY_NUMBERS[family] for family in families])
        self._lock = Lock()
        self._own: set[int] = set()
        try:
            listening = listening_socket(_NETFILTER, [EVENT_GROUP], partial(_ignore, own_ports))
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise BackendError(f"cannot listen to nf_tables events: {reason}") from error
        self._listener = Listener(listening, self._read_all, "nftables-watcher")

    def start(self) -> None:
        """Start the thread; what has happened since the constructor is reported first."""
        self._listener.start()

    def stop(self) -> None:
        """End the thread and close its socket."""
        self._listener.stop()

    @contextlib.contextmanager
    def own(self, start: Callable[[], int]) -> Iterator[None]:
        """Take the changes of a program that we run for our own.

        A program's first netlink socket has the address that is its process number, as we see it
        (``netlink_autobind``), also in a container. When the context ends, the program has ended
        and all its events have been sent; they are read here.

        Args:
            start: starts the program and gives its process number. No event is judged meanwhile.
        """
        with self._lock:
            port = start()
            self._own.add(port)
        try:
            yield
        finally:
            with self._lock:
                self._read()
                self._own.discard(port)

    def _read_all(self) -> None:
        with self._lock:
            self._read()

    def _read(self) -> None:
        """Take in all events that are there."""
        for data in self._listener.received():
            if data is None:
                self._changes.forget()
                self._tell(ExternalChange(LOST, 0))
            else:
                for change in self._changes.take(data, self._own):
                    self._tell(_foreign(change))

    def _tell(self, change: ExternalChange) -> None:
        try:
            self._on_foreign(change)
        except Exception:
            log.exception("nftables.watcher_failed")


def _foreign(change: TransactionEvent) -> ExternalChange:
    families = frozenset(f for f, number in FAMILY_NUMBERS.items() if number in change.families)
    return ExternalChange(change.process, change.pid, change.certain, families)


def _ignore(own_ports: Collection[int], listening: socket.socket) -> None:
    if own_ports:
        _attach(listening, originator_filter(own_ports))


class _FilterProgram(ctypes.Structure):
    """``struct sock_fprog``: how many instructions, and where."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _attach(made: socket.socket, instructions: bytes) -> None:
    held = ctypes.create_string_buffer(instructions, len(instructions))
    program = _FilterProgram(len(instructions) // 8, ctypes.addressof(held))
    made.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, bytes(program))
