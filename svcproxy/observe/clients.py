"""HTTP clients that ask one short question each, served by one thread without waiting for any.

A request has a deadline and a size; when there are too many connections, the one nearest to its
deadline makes room. Any path and method is fine. Every answer ends its connection: probes come
seconds apart, and a connection kept for a Service that is gone would keep answering for it.
"""

import math
import re
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import structlog

from svcproxy.model.names import NamespacedName

_log = structlog.get_logger()

_CHUNK = 1 << 12
_ACCEPT_AT_ONCE = 32
_LINGER_SECONDS = 1.0
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) \S+ HTTP/([0-9])\.[0-9]\r?")
_HEAD_END = re.compile(rb"\n\r?\n")

Answer = tuple[HTTPStatus, dict[str, str], bytes]


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What clients may take: connections in all, and bytes and seconds for each request."""

    connections: int = 256
    request_bytes: int = 8192
    request_seconds: float = 10.0


class Request:
    """The head of a request as it comes in; nothing in it matters but its form and method."""

    def __init__(self, limit: int) -> None:
        self.method = b""
        self._left = limit
        self._pending = b""

    def feed(self, data: bytes) -> HTTPStatus | None:
        """Take what came; give ``OK`` when the head is complete, or what is wrong with it."""
        self._left -= len(data)
        self._pending += data
        if not self.method:
            line, newline, rest = self._pending.lstrip(b"\r\n").partition(b"\n")
            if newline:
                match = _REQUEST_LINE.fullmatch(line)
                if match is None:
                    return HTTPStatus.BAD_REQUEST
                if match[2] != b"1":
                    return HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
                self.method, self._pending = match[1], newline + rest
        if self.method:
            if _HEAD_END.search(self._pending):
                return HTTPStatus.OK
            self._pending = self._pending[-2:]
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if self._left < 0 else None


@dataclass(eq=False, slots=True)
class Connection:
    """A client: first its request is read, then ``out`` is sent, then it may hang up."""

    about: NamespacedName
    sock: socket.socket
    deadline: float
    request: Request
    out: bytes = b""
    answered: bool = False


class Connections:
    """Clients that ask one question each, all watched by one selector.

    Safe for one thread only, which passes on what the selector finds.

    Args:
        selector: watches the clients' sockets; their data there is the ``Connection``.
        answer: gives the answer about a Service.
        limits: what clients may take.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        answer: Callable[[NamespacedName], Answer],
        limits: ClientLimits,
    ) -> None:
        self._selector = selector
        self._answer = answer
        self._limits = limits
        self._open: set[Connection] = set()

    def deadline(self) -> float:
        """Give the time at which the next connection has to end."""
        return min((c.deadline for c in self._open), default=math.inf)

    def expire(self) -> None:
        """Hang up on those whose time is over."""
        now = time.monotonic()
        for connection in [c for c in self._open if c.deadline <= now]:
            self._hang_up(connection)

    def close(self, about: NamespacedName) -> None:
        """Hang up on those who ask about one Service."""
        for connection in [c for c in self._open if c.about == about]:
            self._hang_up(connection)

    def accept(self, listener: socket.socket, about: NamespacedName) -> None:
        """Take in new clients, who ask about one Service."""
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:  # no file descriptor or memory left: share what we have
                _log.debug("health_check.starved", error=str(error))
                if not self._make_room():
                    time.sleep(0.05)  # the client keeps waiting, which must not keep us busy
                return
            if len(self._open) >= self._limits.connections:
                self._make_room()
            sock.settimeout(0)
            deadline = time.monotonic() + self._limits.request_seconds
            request = Request(self._limits.request_bytes)
            connection = Connection(about, sock, deadline, request)
            self._open.add(connection)
            self._selector.register(sock, selectors.EVENT_READ, connection)

    def _make_room(self) -> bool:
        oldest = min(self._open, key=lambda c: c.deadline, default=None)
        if oldest is not None:
            self._hang_up(oldest)
        return oldest is not None

    def serve(self, connection: Connection) -> None:
        """Go on with a client that has sent something or can take something."""
        if connection not in self._open:
            return  # it had to make room a moment ago
        try:
            if connection.out or self._read(connection):
                self._write(connection)
        except BlockingIOError:
            return
        except OSError:
            self._hang_up(connection)
        except Exception:  # noqa: BLE001 - a fault in one answer is no reason to stop serving
            _log.exception("health_check.defect", service=str(connection.about))
            self._hang_up(connection)

    def _read(self, connection: Connection) -> bool:
        """Read a piece and tell whether there is an answer to send now."""
        data = connection.sock.recv(_CHUNK)
        if not data:
            self._hang_up(connection)
        elif not connection.answered:
            status = connection.request.feed(data)
            if status is not None:
                connection.out = self._reply(connection, status)
        return bool(connection.out)

    def _reply(self, connection: Connection, status: HTTPStatus) -> bytes:
        if status is HTTPStatus.OK:
            status, headers, body = self._answer(connection.about)
        else:
            headers = {"Content-Type": "text/plain; charset=utf-8"}
            body = f"{status} {status.phrase}\n".encode()
        headers |= {
            "Content-Length": str(len(body)),
            "Connection": "close",
            "Date": formatdate(usegmt=True),
            "Server": "svcproxy",
        }
        lines = [f"HTTP/1.1 {status} {status.phrase}", *(f"{k}: {v}" for k, v in headers.items())]
        head = "\r\n".join((*lines, "", "")).encode()
        return head if connection.request.method == b"HEAD" else head + body

    def _write(self, connection: Connection) -> None:
        connection.answered = True
        try:
            sent = connection.sock.send(connection.out)
        except BlockingIOError:
            sent = 0
        connection.out = connection.out[sent:]
        if connection.out:
            self._selector.modify(connection.sock, selectors.EVENT_WRITE, connection)
            return
        # Closing while something of the client's is unread would take the answer back (RST):
        # read on until it hangs up too.
        connection.sock.shutdown(socket.SHUT_WR)
        connection.deadline = min(connection.deadline, time.monotonic() + _LINGER_SECONDS)
        self._selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def _hang_up(self, connection: Connection) -> None:
        self._open.discard(connection)
        with suppress(KeyError):
            self._selector.unregister(connection.sock)
        connection.sock.close()
