"""A small HTTP server: it listens, keeps clients in bounds, and asks routes for the answers.

What is served is told in ``pages.py``. Goals:

1. A probe is answered at once, whatever other clients do. Every connection has a thread of its
   own, and a deadline by which its request must be over; when there are too many connections,
   the one nearest to its deadline makes room.
2. Nothing here can end the daemon, or write anything but the daemon's log.
3. A restart can bind at once, but never beside another server on the same port.
4. A port that is still held, by a kube-proxy that is about to go perhaps, is tried again until
   it is free.
"""

import errno
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import structlog

from svcproxy.observe.exchange import TEXT, Reply, Request, Route, not_found
from svcproxy.values import Bind

_log = structlog.get_logger()

_REASONS = {
    errno.EADDRINUSE: "the port is in use; stop the other program, a running kube-proxy perhaps,",
    errno.EADDRNOTAVAIL: "this node has no such address; give it one",
    errno.EACCES: "not permitted; run as root",
    errno.EAFNOSUPPORT: "the kernel has no support for this IP family; load it",
}


class BindError(Exception):
    """A server cannot listen; the message is one line: address, port, reason, remedy, flag."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take.

    ``idle`` is the longest pause within a request, ``request`` the longest time from the start
    (or the end of the last request of the same connection) to the end of the answer; both in
    seconds. ``body`` is the longest body in bytes.
    """

    connections: int = 64
    idle: float = 30.0
    request: float = 60.0
    body: int = 4096


class _Handler(BaseHTTPRequestHandler):
    """Answers requests from the server's routes; what a method means is their business."""

    server: "_Listener"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together
    error_content_type = TEXT
    error_message_format = "%(code)d %(message)s\n"

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.limits.idle)

    def version_string(self) -> str:
        return "svcproxy"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Stay silent: probes every few seconds are no news."""

    def _answer(self) -> None:
        reply = self._reply()
        if self.close_connection is False and self._has_unread_body():
            self.close_connection = True  # a body we do not read must not become a request
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
        self.wfile.flush()
        self.server.renew(self.connection)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - http.server's naming

    def _has_unread_body(self) -> bool:
        if "Transfer-Encoding" in self.headers:
            return True
        return self.command != "PUT" and self.headers.get("Content-Length", "0") != "0"

    def _reply(self) -> Reply:
        try:
            target = urlsplit(self.path)
        except ValueError:
            return Reply(HTTPStatus.BAD_REQUEST, TEXT, b"400 not a path\n")
        route = self.server.route(target.path)
        if route is None:
            return not_found()
        try:
            body = self._body()
            if body is None:
                return Reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TEXT, b"413 body too large\n")
            query = dict(reversed(parse_qsl(target.query, keep_blank_values=True)))
            return route(Request(self.command, target.path, query, self.headers, body))
        except Exception:  # noqa: BLE001 - a fault in one answer is no reason to stop serving
            _log.exception("http.failed", path=self.path)
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, b"500 internal error\n")

    def _body(self) -> bytes | None:
        """Read the body of a PUT; ``None`` when it is too long to be sensible."""
        length = self.headers.get("Content-Length", "0")
        if self.command != "PUT" or length == "0":
            return b""
        if not length.isdecimal() or int(length) > self.server.limits.body:
            self.close_connection = True
            return None
        return self.rfile.read(int(length))


class _Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """The listening socket, its connections and their threads."""

    allow_reuse_address = True
    allow_reuse_port = False
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, bind: Bind, routes: Mapping[str, Route], limits: Limits) -> None:
        self.address_family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
        self.routes = routes
        self.limits = limits
        self._lock = threading.Lock()
        self._deadlines: dict[socket.socket, float] = {}
        super().__init__((bind.host, bind.port), _Handler)

    def route(self, path: str) -> Route | None:
        """Find the route of a path: its own, or that of the folder it is in (``/folder/``)."""
        own = self.routes.get(path)
        return own or self.routes.get(path[: path.rfind("/") + 1] or path)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            # [::] serves IPv4 clients too, as Go's listeners do; the system's default may differ
            only = self.server_address[0] != "::"
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        super().server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._deadlines) >= self.limits.connections:
                oldest = min(self._deadlines, key=self._deadlines.__getitem__)
                del self._deadlines[oldest]
                _hang_up(oldest)
            self._deadlines[request] = time.monotonic() + self.limits.request
        super().process_request(request, client_address)

    def renew(self, connection: socket.socket) -> None:
        """Give ``connection`` the full time for its next request, unless it was hung up on."""
        with self._lock:
            if connection in self._deadlines:
                self._deadlines[connection] = time.monotonic() + self.limits.request

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Hang up on connections past their deadline; called at least once per poll."""
        now = time.monotonic()
        with self._lock:
            for connection, deadline in self._deadlines.items():
                if deadline < now:
                    _hang_up(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Keep stderr clean; that a client broke its connection is no news at all."""
        if not isinstance(sys.exc_info()[1], OSError):
            _log.exception("http.failed", client=client_address[0])

    def close(self, timeout: float) -> None:
        """Hang up on everybody and wait at most ``timeout`` seconds for their threads."""
        self.server_close()
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            with self._lock:
                if not self._deadlines:
                    return
                for connection in self._deadlines:
                    _hang_up(connection)
            time.sleep(0.005)


def _hang_up(connection: socket.socket) -> None:
    """Wake the thread that reads from or writes to ``connection``; that thread closes it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the client was faster
        return


def _listen(bind: Bind, routes: Mapping[str, Route], limits: Limits) -> _Listener:
    """Listen on an address; ``0.0.0.0`` means all addresses of both families, as in Go.

    Raises:
        OSError: it cannot be listened on.
    """
    if bind.host == "0.0.0.0":
        try:
            return _Listener(Bind("::", bind.port), routes, limits)
        except OSError as error:
            if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                raise  # else the kernel is without IPv6
    return _Listener(bind, routes, limits)


class Server:
    """A listener and the thread that accepts its connections.

    Args:
        purpose: what is served, for messages: "metrics".
        flag: the flag that chooses the address, without dashes.
        bind: where to listen.
        routes: the answers by path; a path that ends in "/" is also for what is directly below it.
        limits: what one client may take.
    """

    def __init__(
        self,
        purpose: str,
        flag: str,
        bind: Bind,
        routes: Mapping[str, Route],
        *,
        limits: Limits | None = None,
    ) -> None:
        self.purpose = purpose
        self._flag = flag
        self._bind = bind
        self._routes = routes
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    @property
    def paths(self) -> list[str]:
        """What is served."""
        return list(self._routes)

    @property
    def address(self) -> Bind:
        """Where the server listens; it tells the port when 0 was asked for."""
        if self._listener is None:
            return self._bind
        return Bind(self._bind.host, self._listener.server_address[1])

    def start(self) -> None:
        """Bind, then serve in a thread.

        Raises:
            BindError: the address cannot be listened on.
        """
        with self._lock:
            self._stopped.clear()
            self._serve()

    def start_or_retry(self, on_failure: Callable[[BindError], None], every: float = 5.0) -> None:
        """Start, or tell why not and try again until it succeeds or ``stop`` is called.

        Args:
            on_failure: told of the first failure, in the caller's thread.
            every: seconds between two attempts; 5, as kube-proxy waits.
        """
        try:
            self.start()
        except BindError as error:
            on_failure(error)
            thread = threading.Thread(
                target=self._retry, args=(every,), name=f"http-{self.purpose}-retry", daemon=True
            )
            thread.start()

    def _retry(self, every: float) -> None:
        began = time.monotonic()
        while not self._stopped.wait(every):
            with self._lock:
                if self._stopped.is_set():
                    return
                try:
                    self._serve()
                except BindError as error:
                    _log.debug("http.still_not_serving", error=str(error), retry_in_s=every)
                    continue
            after = round(time.monotonic() - began, 1)
            _log.info("http.serving", what=self.purpose, address=str(self._bind), after_s=after)
            return

    def _serve(self) -> None:
        try:
            listener = _listen(self._bind, self._routes, self._limits)
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, f"{error.strerror or error};")
            raise BindError(
                f"cannot serve {self.purpose} on {self._bind}: {reason} "
                f"or choose another address and port with --{self._flag}"
            ) from error
        self._listener = listener
        self._thread = threading.Thread(
            target=listener.serve_forever,
            kwargs={"poll_interval": 1.0},
            name=f"http-{self.purpose}",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop serving within half a second; calling it again, or before start, is no error."""
        self._stopped.set()
        with self._lock:
            listener, self._listener = self._listener, None
            thread, self._thread = self._thread, None
        if listener is None or thread is None:
            return
        _hang_up(listener.socket)  # ends the poll at once
        listener.shutdown()
        thread.join(0.1)
        listener.close(timeout=0.3)
