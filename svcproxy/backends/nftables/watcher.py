"""Noticing what others do to our tables."""

import contextlib
import ctypes
import errno
import os
import selectors
import socket
from collections.abc import Callable, Collection, Iterator
from threading import Lock, Thread

import structlog

from svcproxy.backends.base import BackendError, Foreign
from svcproxy.backends.nftables.events import Change, Changes, Judge, everything_in, without
from svcproxy.backends.nftables.protocol import EVENT_GROUP, FAMILY_NUMBERS
from svcproxy.backends.nftables.ruleset import TABLE
from svcproxy.model.names import IPFamily

LOST = "unknown"
"""The process name that stands for events that were lost."""

_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_RCVBUFFORCE, _ATTACH_FILTER = 33, 26
_BUFFER = 32 << 20
_RECEIVE = 1 << 20

_ALL_OF_OURS = everything_in((TABLE,))

log = structlog.get_logger()


class NftablesWatcher:
    """A thread that listens to nf_tables events and calls ``on_foreign`` for others' changes.

    Our own are told by the netlink address they come from, not by the process: the kernel names
    processes by their numbers in the initial pid namespace, which a container does not know. The
    kernel drops them before they reach us, so a large transaction of ours costs and overflows
    nothing. Changes that we have a program make cannot be told like this; see ``own``.

    Args:
        on_foreign: called in the watcher's thread after each transaction of somebody else that
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
        on_foreign: Callable[[Foreign], None],
        own_ports: Collection[int] = (),
        families: Collection[IPFamily] = tuple(IPFamily),
        judge: Judge = _ALL_OF_OURS,
    ) -> None:
        self._on_foreign = on_foreign
        self._changes = Changes(judge, [FAMILY_NUMBERS[family] for family in families])
        self._lock = Lock()
        self._own: set[int] = set()
        try:
            self._socket = _listen(own_ports)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise BackendError(f"cannot listen to nf_tables events: {reason}") from error
        self._wake, self._woken = socket.socketpair()
        self._stopped = False
        self._thread = Thread(target=self._run, name="nftables-watcher", daemon=True)

    def start(self) -> None:
        """Start the thread; what has happened since the constructor is reported first."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close its socket."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")
        if self._thread.is_alive():
            self._thread.join()
        for used in (self._socket, self._wake, self._woken):
            used.close()

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

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stopped:
                selector.select()
                with self._lock:
                    self._read()

    def _read(self) -> None:
        """Take in all events that are there."""
        while not self._stopped:
            try:
                data = self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    log.exception("nftables.watcher_failed")
                    return
                self._changes.forget()
                self._tell(Foreign(LOST, 0))
            else:
                for change in self._changes.take(data, self._own):
                    self._tell(_foreign(change))

    def _tell(self, change: Foreign) -> None:
        try:
            self._on_foreign(change)
        except Exception:
            log.exception("nftables.watcher_failed")


def _foreign(change: Change) -> Foreign:
    families = frozenset(f for f, number in FAMILY_NUMBERS.items() if number in change.families)
    return Foreign(change.process, change.pid, change.sure, families)


def _listen(own_ports: Collection[int]) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
    try:
        made.bind((0, 0))
        try:
            made.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
        except PermissionError:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        if own_ports:
            _attach(made, without(own_ports))
        made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, EVENT_GROUP)
    except BaseException:
        made.close()
        raise
    return made


class _FilterProgram(ctypes.Structure):
    """``struct sock_fprog``: how many instructions, and where."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _attach(made: socket.socket, instructions: bytes) -> None:
    held = ctypes.create_string_buffer(instructions, len(instructions))
    program = _FilterProgram(len(instructions) // 8, ctypes.addressof(held))
    made.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, bytes(program))
