"""Listening to what the kernel tells about others' changes."""

import contextlib
import errno
import selectors
import socket
import threading
from collections.abc import Callable, Iterable, Iterator

import structlog

from svcproxy import threads
from svcproxy.limits import (
    NETLINK_DATAGRAM_BYTES,
    NETLINK_EVENT_BUFFER_BYTES,
    THREAD_STEP_SECONDS,
)
from svcproxy.netlink.connection import only_from_kernel
from svcproxy.refusals import REFUSALS

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_RCVBUFFORCE = 33
_STOP_SECONDS = 1.0

log = structlog.get_logger()


def listening_socket(
    protocol: int, groups: Iterable[int], prepare: Callable[[socket.socket], None] | None = None
) -> socket.socket:
    """Open a netlink socket that events of some groups come to.

    Args:
        protocol: the netlink protocol (``NETLINK_ROUTE`` and its like).
        groups: the numbers of the multicast groups.
        prepare: called with the socket before the first event can come.

    Raises:
        OSError: the kernel does not let us listen.
    """
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        made.bind((0, 0))
        only_from_kernel(made)
        try:
            made.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, NETLINK_EVENT_BUFFER_BYTES)
        except PermissionError:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NETLINK_EVENT_BUFFER_BYTES)
        if prepare is not None:
            prepare(made)
        for group in groups:
            made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        made.close()
        raise
    return made


class Listener:
    """A thread that has a socket read whenever something has come to it.

    Args:
        listening: the socket; it is closed with ``stop``.
        read: called in the thread; takes in what ``received`` gives. What it raises is logged.
        name: the thread's name.
    """

    def __init__(self, listening: socket.socket, read: Callable[[], None], name: str) -> None:
        self._socket = listening
        self._buffer = memoryview(bytearray(NETLINK_DATAGRAM_BYTES))
        self._read = read
        self._wake, self._woken = socket.socketpair()
        self._stopped = False
        self._name = name
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; what has come before is read first."""
        self._thread = threads.spawn(self._run, self._name)

    def stop(self) -> None:
        """End the thread and close the socket; wait at most a second.

        If the thread hangs, its socket stays open: it could otherwise read from another socket
        that has got the same descriptor number.
        """
        self._stopped = True
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
            if self._thread.is_alive():
                return
        for used in (self._socket, self._wake, self._woken):
            used.close()

    def received(self) -> Iterator[bytes | None]:
        """Yield the datagrams that have arrived; ``None`` where some were lost.

        The kernel drops events that do not fit into the socket's buffer. A datagram that is longer
        than our buffer counts as lost as well.
        """
        flags = socket.MSG_DONTWAIT | socket.MSG_TRUNC
        while not self._stopped:
            try:
                # With MSG_TRUNC the result is the length of the datagram, also if it does not fit.
                size = self._socket.recv_into(self._buffer, 0, flags)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                REFUSALS.count("netlink", "enobufs")
                yield None
                continue
            if size > len(self._buffer):
                REFUSALS.count("netlink", "malformed")
                yield None
            else:
                yield self._buffer[:size].tobytes()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stopped:
                threads.waiting()
                selector.select()
                threads.working(THREAD_STEP_SECONDS)
                if self._stopped:
                    return
                try:
                    self._read()
                except Exception:
                    log.exception("netlink.listener_failed", listener=self._name)
