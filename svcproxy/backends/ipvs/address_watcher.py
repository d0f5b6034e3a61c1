"""Noticing that the node got or lost an address."""

import contextlib
import errno
import selectors
import socket
from collections.abc import Callable
from threading import Thread

import structlog

from svcproxy.backends.ipvs import link_messages
from svcproxy.backends.ipvs.failing import failed
from svcproxy.backends.ipvs.values import DUMMY_INTERFACE
from svcproxy.netlink.connection import ROUTE, Connection
from svcproxy.netlink.messages import messages

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_RCVBUFFORCE = 33
_BUFFER = 32 << 20
"""Bytes; ours are ten thousand events at a cold start, of some 0.8 kB each."""
_RECEIVE = 1 << 16
_GROUPS = (link_messages.LINK_GROUP, link_messages.IPV4_GROUP, link_messages.IPV6_GROUP)

log = structlog.get_logger()


class AddressWatcher:
    """A thread that calls ``on_change`` when an address comes or goes, except on ``kube-ipvs0``.

    Args:
        on_change: called in the watcher's thread, once for events that came together, and when
            events were lost.

    Raises:
        BackendError: the kernel does not let us listen.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._follower = link_messages.Follower(DUMMY_INTERFACE)
        try:
            self._socket = _listen()
            self._look_around()
        except OSError as error:
            raise failed("listen to changes of addresses", error) from error
        self._wake, self._woken = socket.socketpair()
        self._stopped = False
        self._thread = Thread(target=self._run, name="address-watcher", daemon=True)

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

    def _look_around(self) -> None:
        connection = Connection(ROUTE)
        try:
            links = connection.dump(link_messages.links_request())
        finally:
            connection.close()
        self._follower.know(link_messages.decode_links(links))

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stopped:
                selector.select()
                try:
                    if self._read() and not self._stopped:
                        self._on_change()
                except Exception:
                    log.exception("addresses.watcher_failed")

    def _read(self) -> bool:
        """Take in all events that are there; whether the node's addresses may have changed."""
        changed = False
        while not self._stopped:
            try:
                data = self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._look_around()
                changed = True
            else:
                changed = self._follower.concerns(messages(data)) or changed
        return changed


def _listen() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, ROUTE)
    try:
        made.bind((0, 0))
        with contextlib.suppress(PermissionError):
            made.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
        for group in _GROUPS:
            made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        made.close()
        raise
    return made
