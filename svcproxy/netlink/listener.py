"""Netlink events: a thread that reads a socket subscribed to multicast groups."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Iterable, Iterator

import structlog

from svcproxy import threads
from svcproxy.limits import NETLINK_EVENT_BUFFER_BYTES, THREAD_STEP_SECONDS
from svcproxy.netlink.errors import BufferOverrunError, MalformedError
from svcproxy.netlink.socket import NetlinkSocket
from svcproxy.refusals import REFUSALS

_STOP_SECONDS = 1.0

log = structlog.get_logger()


def listening_socket(
    protocol: int, groups: Iterable[int], socket_filter: bytes = b""
) -> NetlinkSocket:
    """Open a netlink socket that receives the events of multicast groups.

    Args:
        protocol: the netlink protocol.
        groups: the numbers of the multicast groups.
        socket_filter: a classic BPF program, attached before the first event can arrive; it drops
            events in the kernel.

    Raises:
        NetlinkError: the kernel does not permit it.
    """
    made = NetlinkSocket(protocol, receive_buffer_bytes=NETLINK_EVENT_BUFFER_BYTES)
    try:
        if socket_filter:
            made.attach_filter(socket_filter)
        for group in groups:
            made.join(group)
    except BaseException:
        made.close()
        raise
    return made


class Listener:
    """A thread that waits for datagrams on a socket and has them read.

    Args:
        listening: the socket; ``stop`` closes it.
        read: called in the thread when datagrams have arrived; reads them with ``received``. An
            exception from it is logged.
        name: the thread's name.
    """

    def __init__(self, listening: NetlinkSocket, read: Callable[[], None], name: str) -> None:
        self._socket = listening
        self._read = read
        self._wakeup_w, self._wakeup_r = socket.socketpair()
        self._stopped = False
        self._name = name
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; datagrams that arrived earlier are read first."""
        self._thread = threads.spawn(self._run, self._name)

    def stop(self) -> None:
        """End the thread and close the socket; wait at most a second.

        If the thread hangs, its socket stays open. Otherwise the thread might read from another
        socket that got the same descriptor number.
        """
        self._stopped = True
        with contextlib.suppress(OSError):
            self._wakeup_w.send(b"\0")
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
            if self._thread.is_alive():
                return
        for used in (self._socket, self._wakeup_w, self._wakeup_r):
            used.close()

    def received(self) -> Iterator[bytes | None]:
        """Yield the datagrams that have arrived; ``None`` where some were lost.

        The kernel drops events that do not fit into the socket's buffer. A datagram longer than
        svcproxy's buffer counts as lost too.
        """
        while not self._stopped:
            try:
                data = self._socket.receive_queued()
            except BufferOverrunError:
                yield None
            except MalformedError:
                REFUSALS.count("netlink", "malformed")
                yield None
            else:
                if data is None:
                    return
                yield data

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._wakeup_r, selectors.EVENT_READ)
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
