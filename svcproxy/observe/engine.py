"""The one HTTP engine: a thread that owns listening sockets and all connections to them.

1. The thread waits for no client and renders no slow page, so a probe is answered at once.
2. Only this thread touches sockets; other threads leave data for it and wake it.
3. A defect in a turn is logged and the next turn goes on. If even that fails, as without memory,
   the process ends (``svcproxy.threads``).
"""

import math
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

import structlog

from svcproxy import limits, threads
from svcproxy.observe.connections import Connection, Connections, Limits, Site
from svcproxy.observe.core.exchange import Reply
from svcproxy.observe.seldom import Seldom
from svcproxy.observe.workers import Workers
from svcproxy.threads import spawn

_log = structlog.get_logger()

_WAKE_BYTES = 1 << 12


class _Listener(NamedTuple):
    sock: socket.socket
    site: Site


class _Rendering:
    """Slow answers: made by workers, sent by the engine's thread."""

    def __init__(self, name: str, wake: Callable[[], None]) -> None:
        self.workers = Workers(name, limits.HTTP_PAGE_THREADS)
        self.done: deque[tuple[Connection, Reply | None]] = deque()
        self._wake = wake

    def render(self, connection: Connection, answer: Callable[[], Reply | None]) -> None:
        def job() -> None:
            self.done.append((connection, answer()))
            self._wake()

        self.workers.submit(connection, job)

    def cancel(self, connection: Connection) -> None:
        self.workers.cancel(connection)


class Engine:
    """Serves the sites of its listening sockets.

    Args:
        name: the name of the thread.
        limits: what clients may take.
        tend: called in the thread after each ``wake`` and when its time has come; returns the
            monotonic time at which it wants to be called again, infinity for never.
    """

    def __init__(
        self,
        name: str,
        limits_: Limits,
        tend: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._name = name
        self._tend = tend
        self._tend_at = math.inf
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()
        self._rendering = _Rendering(name, self.wake)
        self._connections = Connections(self._selector, limits_, self._rendering)
        self._defects = Seldom()
        # A full pipe is fine: a wake-up is already pending
        self._waker, self._woken = socket.socketpair()
        self._waker.settimeout(0)
        self._woken.settimeout(0)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def start(self) -> None:
        """Start the thread."""
        self._thread = spawn(self._run, self._name)

    def wake(self) -> None:
        """Have ``tend`` called soon; safe from any thread."""
        with suppress(OSError):
            self._waker.send(b"!")

    def stop(self, seconds: float) -> None:
        """Close all sockets; wait so long at most for the thread, and for those of slow pages."""
        self._stopping.set()
        self.wake()
        if self._thread is None:
            self._close()
        else:
            self._thread.join(seconds)
        self._rendering.workers.stop(seconds / 10)

    def listen(self, socks: Iterable[socket.socket], site: Site) -> None:
        """Serve a site at listening sockets, which are the engine's from now on.

        Before ``start`` any thread may call this, afterwards ``tend`` only.

        Raises:
            OSError: one of them cannot be watched; none is the engine's then, nor closed.
        """
        watched: list[socket.socket] = []
        try:
            for sock in socks:
                sock.settimeout(0)
                self._selector.register(sock, selectors.EVENT_READ, _Listener(sock, site))
                watched.append(sock)
        except OSError:
            for sock in watched:
                self._selector.unregister(sock)
            raise

    def unlisten(self, sock: socket.socket) -> None:
        """Close a listening socket; only ``tend`` may call this."""
        self._selector.unregister(sock)
        sock.close()

    def hang_up(self, site: Site) -> None:
        """Close the connections to a site; only ``tend`` may call this."""
        self._connections.close(site)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:  # noqa: BLE001 - a defect must not end all health checks
                if self._defects.due("turn"):
                    _log.exception("http.defect")
                self._stopping.wait(1.0)
        self._close()

    def _turn(self) -> None:
        until = min(self._tend_at, self._connections.deadline())
        timeout = None if until == math.inf else max(0.0, until - time.monotonic())
        threads.waiting()  # with a time-out of its own, or for ever
        found = self._selector.select(timeout)
        threads.working(limits.THREAD_STEP_SECONDS)
        for key, _ in found:
            match key.data:
                case Connection() as connection:
                    self._connections.serve(connection)
                case _Listener() as listener:
                    self._connections.accept(listener.sock, listener.site)
                case _:
                    with suppress(BlockingIOError):
                        self._woken.recv(_WAKE_BYTES)
                    self._tend_at = -math.inf
        self._connections.go_on()
        while self._rendering.done:
            self._connections.finish(*self._rendering.done.popleft())
        self._connections.expire()
        if time.monotonic() >= self._tend_at and not self._stopping.is_set():
            self._tend_at = time.monotonic() + 1.0  # should it fail midway
            self._tend_at = self._tend()

    def _close(self) -> None:
        self._connections.close()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Listener):
                self.unlisten(key.data.sock)
        self._selector.close()
        self._woken.close()
        self._waker.close()
