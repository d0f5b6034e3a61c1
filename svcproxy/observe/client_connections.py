"""The client connections of one HTTP server: accept, read, answer and close.

The number of connections is limited, in total and per client address. When a limit is reached, a
connection of the address with the most connections is closed in favour of the new one. So one
client cannot lock out the kubelet's probes.
"""

import errno
import math
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from typing import Any, Protocol

import structlog

from svcproxy import limits
from svcproxy.observe.core.http1 import Http1Session, HttpRequest, ParserLimits
from svcproxy.observe.core.routes import Reply
from svcproxy.observe.log_throttle import LogThrottle
from svcproxy.refusals import REFUSALS

_log = structlog.get_logger()

_CHUNK = 1 << 12
_DISCARD_CHUNK = 1 << 16
_ACCEPT_BATCH = 32
_LINGER_SECONDS = 1.0
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Answer = Callable[[HttpRequest], Reply | None]
Peer = bytes


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Limits of what clients may use.

    ``connections`` is the limit of all clients together, ``per_peer`` that of one address. ``idle``
    is the longest pause in seconds, ``request`` the longest time in seconds from the accept (or
    the end of the previous answer) to the end of the answer.
    """

    connections: int = limits.HTTP_CONNECTIONS
    per_peer: int = limits.HTTP_CONNECTIONS_PER_PEER
    idle: float = limits.HTTP_IDLE_SECONDS
    request: float = limits.HTTP_REQUEST_SECONDS
    bounds: ParserLimits = field(default_factory=ParserLimits)


@dataclass(frozen=True, eq=False, slots=True)
class HttpHandler:
    """Answers the requests that arrive at a listening socket.

    ``answer`` returns the reply, or ``None`` to close the connection. ``slow`` returns whether
    ``answer`` may take long and runs in a worker thread; ``apart`` whether that is the one thread
    for answers that would delay other slow ones. ``keep_alive`` allows several requests per
    connection.
    """

    answer: Answer
    keep_alive: bool = True
    slow: Callable[[HttpRequest], bool] = lambda _request: False
    apart: Callable[[HttpRequest], bool] = lambda _request: False


@dataclass(eq=False, slots=True)
class ClientConnection:
    """One connection and its state; times are monotonic seconds."""

    sock: socket.socket
    peer: Peer
    handler: HttpHandler
    session: Http1Session
    deadline: float
    idle_until: float
    events: int = 0
    rendering: bool = False
    lingering: bool = False

    @property
    def expires_at(self) -> float:
        """When the connection is closed unless it makes progress."""
        return min(self.deadline, self.idle_until)


class Renderer(Protocol):
    """Renders slow answers in other threads; ``ClientConnections.send_rendered`` takes them."""

    def render(
        self, connection: ClientConnection, answer: Callable[[], Reply | None], *, apart: bool
    ) -> None:
        """Call ``answer`` in a worker thread; ``apart`` in the one that runs no other answers."""

    def cancel(self, connection: ClientConnection) -> None:
        """Skip the answer of a closed connection if its rendering has not begun."""


class ClientConnections:
    """All connections of a server; not thread-safe: the thread that owns the selector calls it.

    Args:
        selector: watches the clients' sockets; the data of each key is the ``ClientConnection``.
        limits: what clients may use.
        renderer: renders slow answers; without it, all answers are rendered in this thread.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        limits: ClientLimits,
        renderer: Renderer | None = None,
    ) -> None:
        self._selector = selector
        self._limits = limits
        self._renderer = renderer
        self._open: set[ClientConnection] = set()
        self._peers: dict[Peer, set[ClientConnection]] = {}
        self._ready: list[ClientConnection] = []
        self._defects = LogThrottle()

    def __len__(self) -> int:
        return len(self._open)

    def deadline(self) -> float:
        """Return the monotonic time of the next pending work or time-out; infinity for none."""
        if self._ready:
            return -math.inf
        return min((c.expires_at for c in self._open), default=math.inf)

    def expire(self) -> None:
        """Close the connections that have timed out."""
        now = time.monotonic()
        for connection in [c for c in self._open if c.expires_at <= now]:
            if connection.session.mid_request:
                REFUSALS.count("http", "request_seconds")
            self._hang_up(connection)

    def close(self, handler: HttpHandler | None = None) -> None:
        """Close the connections of a handler, or all of them."""
        for connection in [c for c in self._open if handler is None or c.handler is handler]:
            self._hang_up(connection)

    def accept(self, listener: socket.socket, handler: HttpHandler) -> None:
        """Accept waiting clients of a listening socket.

        Args:
            listener: the listening socket.
            handler: answers their requests.
        """
        for _ in range(_ACCEPT_BATCH):
            try:
                sock, address = listener.accept()
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    self._handle_descriptor_shortage()
                return  # no other client is waiting, or the client has closed the connection
            self.add(sock, _peer(address), handler)

    def add(self, sock: socket.socket, peer: Peer, handler: HttpHandler) -> None:
        """Add a connection and answer the request that has already arrived on it.

        Args:
            sock: the client's socket; closed with the connection.
            peer: identifies the client for the limit per address.
            handler: answers its requests.
        """
        own = self._peers.get(peer, ())
        if len(own) >= self._limits.per_peer:
            self._evict_one(own, "connections_per_peer")
        elif len(self._open) >= self._limits.connections:
            self._evict_from_busiest_peer("connections")
        sock.settimeout(0)
        with suppress(OSError):  # a socket pair has no TCP
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        now = time.monotonic()
        session = Http1Session(
            self._limits.bounds,
            keep_alive=handler.keep_alive,
            date=partial(formatdate, usegmt=True),
        )
        until = now + self._limits.request
        connection = ClientConnection(sock, peer, handler, session, until, now + self._limits.idle)
        self._open.add(connection)
        self._peers.setdefault(peer, set()).add(connection)
        self.serve(connection)

    def _handle_descriptor_shortage(self) -> None:
        if not self._evict_from_busiest_peer("descriptors"):
            time.sleep(0.05)  # the listening socket stays readable: avoid a busy loop

    def _evict_from_busiest_peer(self, limit: str) -> bool:
        """Close a connection of the client address with the most; return whether there was one."""
        if not self._open:
            return False
        # Among equals, choose the address with the connection closest to its time-out
        self._evict_one(
            max(self._peers.values(), key=lambda own: (len(own), -min(c.expires_at for c in own))),
            limit,
        )
        return True

    def _evict_one(self, among: Any, limit: str) -> None:
        REFUSALS.count("http", limit)
        self._hang_up(min(among, key=lambda c: c.expires_at))

    def serve(self, connection: ClientConnection) -> None:
        """Handle a connection that is readable or writable."""
        if connection not in self._open:
            return  # evicted earlier in this turn
        try:
            if connection.session.out:
                self._send(connection)
            else:
                self._read(connection)
        except OSError:
            self._hang_up(connection)

    def serve_pipelined(self) -> None:
        """Answer one more request of some clients that pipelined several, in turn.

        New clients do not wait until all pipelined requests have been answered.
        """
        most = limits.HTTP_PIPELINED
        ready, self._ready = self._ready[:most], self._ready[most:]
        for connection in ready:
            if connection in self._open:
                self._step_safely(connection)

    def send_rendered(self, connection: ClientConnection, reply: Reply | None) -> None:
        """Send a slow answer that has been rendered, unless its connection is closed."""
        if connection in self._open:
            connection.rendering = False
            connection.idle_until = time.monotonic() + self._limits.idle
            self._reply(connection, reply)
            self._step_safely(connection)

    def _step_safely(self, connection: ClientConnection) -> None:
        try:
            self._step(connection)
        except OSError:
            self._hang_up(connection)

    def _read(self, connection: ClientConnection) -> None:
        try:
            data = connection.sock.recv(_DISCARD_CHUNK if connection.lingering else _CHUNK)
        except BlockingIOError:
            self._watch(connection, selectors.EVENT_READ)
            return
        if not data:
            self._hang_up(connection)
        elif not connection.lingering:
            connection.idle_until = time.monotonic() + self._limits.idle
            connection.session.feed(data)
            self._step(connection)

    def _step(self, connection: ClientConnection) -> None:
        """Answer the next request if it is complete, otherwise wait for more data."""
        session = connection.session
        if not session.out:
            request = session.next()
            if session.refused:
                REFUSALS.count("http", session.refused)
            if request is not None and not self._answer(connection, request):
                return
        if session.out:
            self._send(connection)
        elif connection in self._open:
            self._watch(connection, selectors.EVENT_READ)

    def _answer(self, connection: ClientConnection, request: HttpRequest) -> bool:
        """Answer a request; return whether the answer is ready (a slow one is not)."""
        answer = partial(self._safely, partial(connection.handler.answer, request))
        if self._renderer is not None and connection.handler.slow(request):
            self._watch(connection, 0)
            connection.idle_until = math.inf  # the client waits for the server
            connection.rendering = True
            self._renderer.render(connection, answer, apart=connection.handler.apart(request))
            return False
        self._reply(connection, answer())
        return True

    def _safely(self, answer: Callable[[], Reply | None]) -> Reply | None:
        """Return the answer; an exception closes the connection and is logged at a limited rate."""
        try:
            return answer()
        except Exception:  # noqa: BLE001 - a defect in one answer must not stop the server
            if self._defects.allow("answer"):
                _log.exception("http.defect")
            return None

    def _reply(self, connection: ClientConnection, reply: Reply | None) -> None:
        if reply is None:
            self._hang_up(connection)
        else:
            connection.session.answer(reply)

    def _send(self, connection: ClientConnection) -> None:
        session, now = connection.session, time.monotonic()
        try:
            sent = connection.sock.send(session.out)
        except BlockingIOError:
            sent = 0
        session.out = session.out[sent:]
        if sent:
            connection.idle_until = now + self._limits.idle
        if session.out:
            self._watch(connection, selectors.EVENT_WRITE)
        elif session.closing:
            self._linger(connection, now)
        else:
            connection.deadline = now + self._limits.request
            self._watch(connection, selectors.EVENT_READ)
            if session.mid_request:
                self._ready.append(connection)

    def _linger(self, connection: ClientConnection, now: float) -> None:
        # Closing a socket with unread data sends RST, which may discard the answer at the client:
        # keep reading until the client closes the connection, too.
        connection.sock.shutdown(socket.SHUT_WR)
        connection.lingering = True
        connection.deadline = min(connection.deadline, now + _LINGER_SECONDS)
        self._watch(connection, selectors.EVENT_READ)

    def _watch(self, connection: ClientConnection, events: int) -> None:
        if connection.events == events or connection not in self._open:
            return
        if not connection.events:
            self._selector.register(connection.sock, events, connection)
        elif events:
            self._selector.modify(connection.sock, events, connection)
        else:
            self._selector.unregister(connection.sock)
        connection.events = events

    def _hang_up(self, connection: ClientConnection) -> None:
        self._open.discard(connection)
        own = self._peers.get(connection.peer, set())
        own.discard(connection)
        if not own:
            self._peers.pop(connection.peer, None)
        if connection.events:
            self._selector.unregister(connection.sock)
        if connection.rendering and self._renderer is not None:
            self._renderer.cancel(connection)
        connection.sock.close()


def _peer(address: Any) -> Peer:
    """Identify a client by its IPv4 address, or by the /64 of its IPv6 address.

    A client that has one IPv6 address normally controls the whole /64.
    """
    host = str(address[0]).partition("%")[0]
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    packed = socket.inet_pton(socket.AF_INET6, host)
    mapped = packed.startswith(bytes(10) + b"\xff\xff")  # ::ffff:192.0.2.1
    return packed[12:] if mapped else packed[:8]
