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

from svcproxy.backends.base import BackendError
from svcproxy.backends.nftables.events import Change, Changes, without
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

log = structlog.get_logger()


class NftablesWatcher:
    """A thread that listens to nf_tables events and calls ``on_foreign`` for others' changes.

    Our own are told by the netlink address they come from, not by the process: the kernel names
    processes by their numbers in the initial pid namespace, which a container does not know. The
    kernel drops them before they reach us, so a large transaction of ours costs and overflows
    nothing. Changes that we have a program make cannot be told like this; see ``expecting``.

    Args:
        on_foreign: called in the watcher's thread with the process's name and number after each
            transaction of somebody else that changed one of the tables, and with ``LOST`` and 0
            when events were lost: then anything may have changed.
        own_ports: the netlink addresses of our own connections (``NftablesBackend.port_id``).
        tables: the tables of interest; those of iptables-nft are ``filter``, ``nat`` and so on.
        families: the families of the tables.

    Raises:
        BackendError: the kernel does not let us listen.
    """

    def __init__(
        self,
        on_foreign: Callable[[str, int], None],
        own_ports: Collection[int] = (),
        tables: Collection[str] = (TABLE,),
        families: Collection[IPFamily] = tuple(IPFamily),
    ) -> None:
        self._on_foreign = on_foreign
        self._changes = Changes(tables, [FAMILY_NUMBERS[family] for family in families])
        self._lock = Lock()
        self._expected: tuple[str, ...] = ()
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
    def expecting(self, *prefixes: str) -> Iterator[None]:
        """Take changes by processes of these names for our own while the context lasts.

        It is for programs that we run, such as iptables-nft-restore. When the context ends, all
        events that it caused have been sent, and are read here.

        Args:
            prefixes: what the processes' names begin with.
        """
        with self._lock:
            self._read()
            self._expected = prefixes
        try:
            yield
        finally:
            with self._lock:
                self._read()
                self._expected = ()

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
                self._tell(Change(LOST, 0))
            else:
                for change in self._changes.take(data):
                    if not (self._expected and change.process.startswith(self._expected)):
                        self._tell(change)

    def _tell(self, change: Change) -> None:
        try:
            self._on_foreign(change.process, change.pid)
        except Exception:
            log.exception("nftables.watcher_failed")


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
