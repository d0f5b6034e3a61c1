"""The two small HTTP servers: metrics for Prometheus, health for the kubelet and load balancers.

Goals:

1. A probe is answered at once, whatever other clients do. Every connection has a thread of its
   own, and a deadline by which its request must be over; when there are too many connections,
   the one nearest to its deadline makes room.
2. Nothing here can end the daemon, or write anything but the daemon's log.
3. A restart can bind at once, but never beside another server on the same port.
"""

import errno
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

import structlog

from svcproxy.config import ProxyMode
from svcproxy.observe.health import Answer, HealthState
from svcproxy.observe.metrics import Metrics
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
    seconds.
    """

    connections: int = 64
    idle: float = 30.0
    request: float = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a route answers."""

    status: int
    content_type: str
    body: bytes


Route = Callable[[Message], Reply]
_TEXT = "text/plain; charset=utf-8"


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD from the server's routes."""

    server: "_Listener"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together
    error_content_type = _TEXT
    error_message_format = "%(code)d %(message)s\n"

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.limits.idle)

    def version_string(self) -> str:
        return "svcproxy"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Stay silent: probes every few seconds are no news."""

    def do_GET(self) -> None:
        reply = self._route()
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body we do not read must not become a request
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
        self.wfile.flush()
        self.server.renew(self.connection)

    do_HEAD = do_GET  # noqa: N815 - http.server's naming

    def _route(self) -> Reply:
        route = self.server.routes.get(self.path.partition("?")[0])
        if route is None:
            return Reply(HTTPStatus.NOT_FOUND, _TEXT, b"404 page not found\n")
        try:
            return route(self.headers)
        except Exception:  # noqa: BLE001 - a fault in one answer is no reason to stop serving
            _log.exception("http.failed", path=self.path)
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"500 internal error\n")


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


class _Server:
    """A listener and the thread that accepts its connections."""

    purpose = ""
    flag = ""

    def __init__(self, bind: Bind, routes: Mapping[str, Route], limits: Limits | None) -> None:
        self._bind = bind
        self._routes = routes
        self._limits = limits or Limits()
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None

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
        try:
            self._listener = _Listener(self._bind, self._routes, self._limits)
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, f"{error.strerror or error};")
            raise BindError(
                f"cannot serve {self.purpose} on {self._bind}: {reason} "
                f"or choose another address and port with --{self.flag}"
            ) from error
        self._thread = threading.Thread(
            target=self._listener.serve_forever,
            kwargs={"poll_interval": 1.0},
            name=f"http-{self.purpose}",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop serving within half a second; calling it again, or before start, is no error."""
        listener, self._listener = self._listener, None
        thread, self._thread = self._thread, None
        if listener is None or thread is None:
            return
        _hang_up(listener.socket)  # ends the poll at once
        listener.shutdown()
        thread.join(0.1)
        listener.close(timeout=0.3)


class MetricsServer(_Server):
    """Serves /metrics, /healthz (always "ok": the process runs) and /proxyMode."""

    purpose = "metrics"
    flag = "metrics-bind-address"

    def __init__(
        self, bind: Bind, metrics: Metrics, mode: ProxyMode | str, limits: Limits | None = None
    ) -> None:
        def render(headers: Message) -> Reply:
            content_type, body = metrics.render(", ".join(headers.get_all("Accept", ())))
            return Reply(HTTPStatus.OK, content_type, body)

        def constant(text: str) -> Route:
            reply = Reply(HTTPStatus.OK, _TEXT, text.encode())
            return lambda _headers: reply

        routes = {
            "/metrics": render,
            "/healthz": constant("ok"),
            "/proxyMode": constant(str(mode)),
        }
        super().__init__(bind, routes, limits)


class HealthServer(_Server):
    """Serves /healthz (shall this node get traffic?) and /livez (does the proxy work?)."""

    purpose = "health checks"
    flag = "healthz-bind-address"

    def __init__(
        self, bind: Bind, health: HealthState, metrics: Metrics, limits: Limits | None = None
    ) -> None:
        def probe(answer: Callable[[], Answer], counter: Any) -> Route:
            def route(_headers: Message) -> Reply:
                result = answer()
                counter.labels(code=str(result.status)).inc()
                return Reply(result.status, "application/json", result.body)

            return route

        routes = {
            "/healthz": probe(health.healthz, metrics.proxy_healthz),
            "/livez": probe(health.livez, metrics.proxy_livez),
        }
        super().__init__(bind, routes, limits)
