"""The HTTP engine: a thread that owns listening sockets and all connections to them.

1. The thread never blocks on a client and renders no slow page, so it answers probes immediately.
2. Only this thread uses the sockets; other threads leave data for it and wake it.
3. An exception in one iteration is logged and the loop continues. If that fails as well, for
   example without free memory, the process exits (``svcproxy.threads``).
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
from svcproxy.observe.client_connections import (
    ClientConnection,
    ClientConnections,
    ClientLimits,
    HttpHandler,
)
from svcproxy.observe.core.routes import Reply
from svcproxy.observe.log_throttle import LogThrottle
from svcproxy.observe.workers import Workers
from svcproxy.threads import spawn

_log = structlog.get_logger()

_WAKE_BYTES = 1 << 12


class _Listener(NamedTuple):
    sock: socket.socket
    handler: HttpHandler


class _Rendering:
    """Slow answers: rendered by worker threads, sent by the engine's thread."""

    def __init__(self, name: str, wake: Callable[[], None]) -> None:
        self._workers = Workers(name, limits.HTTP_PAGE_THREADS)
        self._apart = Workers(f"{name}-apart", 1)
        self.done: deque[tuple[ClientConnection, Reply | None]] = deque()
        self._wake = wake

    def render(
        self, connection: ClientConnection, answer: Callable[[], Reply | None], *, apart: bool
    ) -> None:
        def job() -> None:
            self.done.append((connection, answer()))
            self._wake()

        (self._apart if apart else self._workers).submit(connection, job)

    def cancel(self, connection: ClientConnection) -> None:
        self._workers.cancel(connection)
        self._apart.cancel(connection)

    def stop(self, seconds: float) -> None:
        self._workers.stop(seconds)
        self._apart.stop(seconds)


class Engine:
    """Serves HTTP on listening sockets, in a thread of its own.

    Args:
        name: the name of the thread.
        limits_: what clients may use.
        on_wakeup: called in the thread after each ``wake`` and at the time that it returned last;
            returns the monotonic time at which to call it again, infinity for never.
    """

    def __init__(
        self,
        name: str,
        limits_: ClientLimits,
        on_wakeup: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._name = name
        self._on_wakeup = on_wakeup
        self._wakeup_at = math.inf
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()
        self._rendering = _Rendering(name, self.wake)
        self._connections = ClientConnections(self._selector, limits_, self._rendering)
        self._defects = LogThrottle()
        self._wakeup_w, self._wakeup_r = socket.socketpair()
        self._wakeup_w.settimeout(0)
        self._wakeup_r.settimeout(0)
        self._selector.register(self._wakeup_r, selectors.EVENT_READ)

    def start(self) -> None:
        """Start the thread."""
        self._thread = spawn(self._run, self._name)

    def wake(self) -> None:
        """Call ``on_wakeup`` soon in the engine's thread; safe from any thread."""
        with suppress(OSError):  # pipe full: a wake-up is already pending
            self._wakeup_w.send(b"!")

    def stop(self, seconds: float) -> None:
        """Close all sockets; wait at most ``seconds`` for the thread, then for the workers."""
        self._stopping.set()
        self.wake()
        if self._thread is None:
            self._close()
        else:
            self._thread.join(seconds)
        self._rendering.stop(seconds / 10)

    def listen(self, socks: Iterable[socket.socket], handler: HttpHandler) -> None:
        """Serve requests at listening sockets, which the engine owns from now on.

        Before ``start`` any thread may call this, afterwards only ``on_wakeup``.

        Args:
            socks: the listening sockets.
            handler: answers their requests.

        Raises:
            OSError: a socket cannot be watched; the caller still owns all of them, open.
        """
        watched: list[socket.socket] = []
        try:
            for sock in socks:
                sock.settimeout(0)
                self._selector.register(sock, selectors.EVENT_READ, _Listener(sock, handler))
                watched.append(sock)
        except OSError:
            for sock in watched:
                self._selector.unregister(sock)
            raise

    def unlisten(self, sock: socket.socket) -> None:
        """Close a listening socket; only ``on_wakeup`` may call this."""
        self._selector.unregister(sock)
        sock.close()

    def hang_up(self, handler: HttpHandler) -> None:
        """Close the connections of a handler; only ``on_wakeup`` may call this."""
        self._connections.close(handler)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:  # noqa: BLE001 - one defect must not stop all health checks
                if self._defects.allow("turn"):
                    _log.exception("http.defect")
                self._stopping.wait(1.0)
        self._close()

    def _turn(self) -> None:
        until = min(self._wakeup_at, self._connections.deadline())
        timeout = None if until == math.inf else max(0.0, until - time.monotonic())
        threads.waiting()  # select has its own time-out, or legitimately waits for ever
        found = self._selector.select(timeout)
        threads.working(limits.THREAD_STEP_SECONDS)
        for key, _ in found:
            match key.data:
                case ClientConnection() as connection:
                    self._connections.serve(connection)
                case _Listener() as listener:
                    self._connections.accept(listener.sock, listener.handler)
                case _:
                    with suppress(BlockingIOError):
                        self._wakeup_r.recv(_WAKE_BYTES)
                    self._wakeup_at = -math.inf
        self._connections.serve_pipelined()
        while self._rendering.done:
            self._connections.send_rendered(*self._rendering.done.popleft())
        self._connections.expire()
        if time.monotonic() >= self._wakeup_at and not self._stopping.is_set():
            self._wakeup_at = time.monotonic() + 1.0  # the retry time if it raises
            self._wakeup_at = self._on_wakeup()

    def _close(self) -> None:
        self._connections.close()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Listener):
                self.unlisten(key.data.sock)
        self._selector.close()
        self._wakeup_r.close()
        self._wakeup_w.close()
