"""The connections of one HTTP server: accepting, reading, answering and closing them.

The number of connections is limited, in all and for each client address. When the limit is
reached, a connection of the address that has the most is closed in favour of the new one. So one
client cannot keep the kubelet's probes out.
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
from svcproxy.observe.core.exchange import Reply
from svcproxy.observe.core.http1 import Ask, Bounds, Conversation
from svcproxy.observe.seldom import Seldom
from svcproxy.refusals import REFUSALS

_log = structlog.get_logger()

_CHUNK = 1 << 12
_DISCARD_CHUNK = 1 << 16
_ACCEPT_AT_ONCE = 32
_LINGER_SECONDS = 1.0
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Answer = Callable[[Ask], Reply | None]
Peer = bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take.

    ``connections`` is for all of them together, ``per_peer`` for one address. ``idle`` is the
    longest pause, ``request`` the longest time from the start (or the end of the last answer) to
    the end of the answer; both in seconds.
    """

    connections: int = limits.HTTP_CONNECTIONS
    per_peer: int = limits.HTTP_CONNECTIONS_PER_PEER
    idle: float = limits.HTTP_IDLE_SECONDS
    request: float = limits.HTTP_REQUEST_SECONDS
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, eq=False, slots=True)
class Site:
    """What is served at a listening socket.

    ``answer`` gives the reply, or ``None`` to hang up. ``slow`` tells whether that may take long,
    so that a worker does it. ``keeps`` allows several requests in one connection.
    """

    answer: Answer
    keeps: bool = True
    slow: Callable[[Ask], bool] = lambda _ask: False


@dataclass(eq=False, slots=True)
class Connection:
    """A client, and how far we are with it; times are monotonic seconds."""

    sock: socket.socket
    peer: Peer
    site: Site
    conversation: Conversation
    deadline: float
    idle_until: float
    events: int = 0
    rendering: bool = False
    lingering: bool = False

    @property
    def until(self) -> float:
        """When it has to end unless something happens."""
        return min(self.deadline, self.idle_until)


class Renderer(Protocol):
    """Has slow answers made elsewhere; ``Connections.finish`` is called with each."""

    def render(self, connection: Connection, answer: Callable[[], Reply | None]) -> None:
        """Have ``answer`` called."""

    def cancel(self, connection: Connection) -> None:
        """Do not have it called if that has not begun: the client is gone."""


class Connections:
    """All connections of a server; safe for one thread only, which passes on what selects.

    Args:
        selector: watches the clients' sockets; their data there is the ``Connection``.
        limits: what clients may take.
        renderer: makes the slow answers; without it there are none.
    """

    def __init__(
        self, selector: selectors.BaseSelector, limits: Limits, renderer: Renderer | None = None
    ) -> None:
        self._selector = selector
        self._limits = limits
        self._renderer = renderer
        self._open: set[Connection] = set()
        self._peers: dict[Peer, set[Connection]] = {}
        self._ready: list[Connection] = []
        self._defects = Seldom()

    def __len__(self) -> int:
        return len(self._open)

    def deadline(self) -> float:
        """Give the monotonic time at which something has to be done."""
        return -math.inf if self._ready else min((c.until for c in self._open), default=math.inf)

    def expire(self) -> None:
        """Hang up on those whose time is over."""
        now = time.monotonic()
        for connection in [c for c in self._open if c.until <= now]:
            if connection.conversation.begun:
                REFUSALS.count("http", "request_seconds")
            self._hang_up(connection)

    def close(self, site: Site | None = None) -> None:
        """Hang up on those who ask a site, or on all."""
        for connection in [c for c in self._open if site is None or c.site is site]:
            self._hang_up(connection)

    def accept(self, listener: socket.socket, site: Site) -> None:
        """Take in new clients of a site."""
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, address = listener.accept()
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    self._starved()
                return  # no other client is waiting, or it has hung up
            self.add(sock, _peer(address), site)

    def add(self, sock: socket.socket, peer: Peer, site: Site) -> None:
        """Take in a client; what it has sent already is answered before any other one comes."""
        own = self._peers.get(peer, ())
        if len(own) >= self._limits.per_peer:
            self._give_way(own, "connections_per_peer")
        elif len(self._open) >= self._limits.connections:
            self._make_room("connections")
        sock.settimeout(0)
        with suppress(OSError):  # a socket pair has no TCP
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        now = time.monotonic()
        conversation = Conversation(
            self._limits.bounds, keeps=site.keeps, date=partial(formatdate, usegmt=True)
        )
        until = now + self._limits.request
        connection = Connection(sock, peer, site, conversation, until, now + self._limits.idle)
        self._open.add(connection)
        self._peers.setdefault(peer, set()).add(connection)
        self.serve(connection)

    def _starved(self) -> None:
        if not self._make_room("descriptors"):
            time.sleep(0.05)  # the client keeps waiting, which must not keep us busy

    def _make_room(self, limit: str) -> bool:
        """Hang up on one of the client address with the most connections, if there is any."""
        if not self._open:
            return False
        # Of equals, the one that is nearest to a deadline
        self._give_way(
            max(self._peers.values(), key=lambda own: (len(own), -min(c.until for c in own))), limit
        )
        return True

    def _give_way(self, among: Any, limit: str) -> None:
        REFUSALS.count("http", limit)
        self._hang_up(min(among, key=lambda c: c.until))

    def serve(self, connection: Connection) -> None:
        """Go on with a client that has sent something or can take something."""
        if connection not in self._open:
            return  # it had to make room a moment ago
        try:
            if connection.conversation.out:
                self._send(connection)
            else:
                self._read(connection)
        except OSError:
            self._hang_up(connection)

    def go_on(self) -> None:
        """Answer one more request of some clients that have sent several at once, in turn.

        Clients that come now do not wait until all of these have been answered.
        """
        most = limits.HTTP_PIPELINED
        ready, self._ready = self._ready[:most], self._ready[most:]
        for connection in ready:
            if connection in self._open:
                self._step_safely(connection)

    def finish(self, connection: Connection, reply: Reply | None) -> None:
        """Send a slow answer that is ready now, if its client is still there."""
        if connection in self._open:
            connection.rendering = False
            connection.idle_until = time.monotonic() + self._limits.idle
            self._reply(connection, reply)
            self._step_safely(connection)

    def _step_safely(self, connection: Connection) -> None:
        try:
            self._step(connection)
        except OSError:
            self._hang_up(connection)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(_DISCARD_CHUNK if connection.lingering else _CHUNK)
        except BlockingIOError:
            self._watch(connection, selectors.EVENT_READ)
            return
        if not data:
            self._hang_up(connection)
        elif not connection.lingering:
            connection.idle_until = time.monotonic() + self._limits.idle
            connection.conversation.feed(data)
            self._step(connection)

    def _step(self, connection: Connection) -> None:
        """Answer the next request if it is complete, else wait for the client."""
        conversation = connection.conversation
        if not conversation.out:
            ask = conversation.next()
            if conversation.refused:
                REFUSALS.count("http", conversation.refused)
            if ask is not None and not self._answer(connection, ask):
                return
        if conversation.out:
            self._send(connection)
        elif connection in self._open:
            self._watch(connection, selectors.EVENT_READ)

    def _answer(self, connection: Connection, ask: Ask) -> bool:
        """Have a request answered; whether the answer is ready."""
        answer = partial(self._safely, partial(connection.site.answer, ask))
        if self._renderer is not None and connection.site.slow(ask):
            self._watch(connection, 0)
            connection.idle_until = math.inf  # it is our turn
            connection.rendering = True
            self._renderer.render(connection, answer)
            return False
        self._reply(connection, answer())
        return True

    def _safely(self, answer: Callable[[], Reply | None]) -> Reply | None:
        """Ask for an answer; a defect ends the connection, and is logged once in a while."""
        try:
            return answer()
        except Exception:  # noqa: BLE001 - a defect in one answer is no reason to stop serving
            if self._defects.due("answer"):
                _log.exception("http.defect")
            return None

    def _reply(self, connection: Connection, reply: Reply | None) -> None:
        if reply is None:
            self._hang_up(connection)
        else:
            connection.conversation.answer(reply)

    def _send(self, connection: Connection) -> None:
        conversation, now = connection.conversation, time.monotonic()
        try:
            sent = connection.sock.send(conversation.out)
        except BlockingIOError:
            sent = 0
        conversation.out = conversation.out[sent:]
        if sent:
            connection.idle_until = now + self._limits.idle
        if conversation.out:
            self._watch(connection, selectors.EVENT_WRITE)
        elif conversation.closing:
            self._linger(connection, now)
        else:
            connection.deadline = now + self._limits.request
            self._watch(connection, selectors.EVENT_READ)
            if conversation.begun:
                self._ready.append(connection)

    def _linger(self, connection: Connection, now: float) -> None:
        # Closing while something of the client's is unread would take the answer back (RST):
        # read on until it hangs up too.
        connection.sock.shutdown(socket.SHUT_WR)
        connection.lingering = True
        connection.deadline = min(connection.deadline, now + _LINGER_SECONDS)
        self._watch(connection, selectors.EVENT_READ)

    def _watch(self, connection: Connection, events: int) -> None:
        if connection.events == events or connection not in self._open:
            return
        if not connection.events:
            self._selector.register(connection.sock, events, connection)
        elif events:
            self._selector.modify(connection.sock, events, connection)
        else:
            self._selector.unregister(connection.sock)
        connection.events = events

    def _hang_up(self, connection: Connection) -> None:
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
    """Who a client is: its IPv4 address, or the /64 of its IPv6 address.

    Whoever has one IPv6 address has its /64 as a rule.
    """
    host = str(address[0]).partition("%")[0]
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    packed = socket.inet_pton(socket.AF_INET6, host)
    mapped = packed.startswith(bytes(10) + b"\xff\xff")  # ::ffff:192.0.2.1
    return packed[12:] if mapped else packed[:8]
