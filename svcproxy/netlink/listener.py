"""Listening to what the kernel tells about others' changes."""

import contextlib
import errno
import selectors
import socket
import threading
from collections.abc import Callable, Iterable, Iterator

import structlog

from svcproxy import limits, threads

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_RCVBUFFORCE = 33
_BUFFER = 32 << 20
"""Bytes; ten thousand Services' worth of events fits, should they all come at once."""
_RECEIVE = 1 << 20
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
        try:
            made.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
        except PermissionError:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
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

        A thread that hangs keeps its socket: a number that is in use again would be read by it.
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
        """What has come, datagram by datagram; ``None`` where the kernel had to drop some."""
        while not self._stopped:
            try:
                yield self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield None

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stopped:
                threads.waiting()
                selector.select()
                threads.working(limits.THREAD_STEP_SECONDS)
                if self._stopped:
                    return
                try:
                    self._read()
                except Exception:
                    log.exception("netlink.listener_failed", listener=self._name)
