"""The HTTP servers of the metrics port and the health port: an address and its routes.

``pages.py`` has the routes, ``engine.py`` the thread that serves them. Goals:

1. Probes are answered immediately, regardless of other clients and of slow pages:
   quick routes run in the server's thread, which never blocks, all others in worker threads.
2. Errors of clients are counted (``docs/limits.md``), never logged.
3. A restarted process can bind immediately, but never to a port that another server listens on.
4. A port in use, for example by a kube-proxy that is being replaced, is retried until it is free.
"""

import errno
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import structlog

from svcproxy.config.parsing import Bind
from svcproxy.observe.client_connections import ClientLimits, HttpHandler
from svcproxy.observe.core.http1 import HttpRequest
from svcproxy.observe.core.routes import TEXT, PageRequest, Reply, Route, not_found
from svcproxy.observe.engine import Engine
from svcproxy.observe.listen_socket import open_listen_socket
from svcproxy.observe.log_throttle import LogThrottle
from svcproxy.threads import spawn

_log = structlog.get_logger()

_REASONS = {
    errno.EADDRINUSE: "the port is in use; stop the other program, a running kube-proxy perhaps,",
    errno.EADDRNOTAVAIL: "this node has no such address; give it one",
    errno.EACCES: "not permitted; run as root",
    errno.EAFNOSUPPORT: "the kernel has no support for this IP family; load it",
}


_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})
_STOP_SECONDS = 0.4


class BindError(Exception):
    """A server cannot listen; the message is one line with address, reason, remedy and flag."""


class _Pages:
    """Finds the route of each request and calls it."""

    def __init__(
        self, routes: Mapping[str, Route], quick: Collection[str], apart: Collection[str]
    ) -> None:
        self._routes = routes
        self._quick = frozenset(quick)
        self._apart = frozenset(apart)
        self._defects = LogThrottle()

    def slow(self, request: HttpRequest) -> bool:
        """Return whether the request's route may take long."""
        path = _path(request)
        return path not in self._quick and self._found(path)[1] is not None

    def apart(self, request: HttpRequest) -> bool:
        """Return whether the request's route would delay other slow routes."""
        return self._found(_path(request))[0] in self._apart

    def _found(self, path: str) -> tuple[str, Route | None]:
        """Return the route of a path, or else that of its parent folder (``/folder/``)."""
        if path in self._routes:
            return path, self._routes[path]
        folder = path[: path.rfind("/") + 1] or path
        return folder, self._routes.get(folder)

    def answer(self, request: HttpRequest) -> Reply:
        """Answer a request."""
        if request.head.method not in _METHODS:
            return Reply(HTTPStatus.NOT_IMPLEMENTED, TEXT, b"501 Not Implemented\n")
        try:
            target = urlsplit(request.head.target)
            query = dict(reversed(parse_qsl(target.query, keep_blank_values=True)))
        except ValueError:
            return Reply(HTTPStatus.BAD_REQUEST, TEXT, b"400 not a path\n")
        name, route = self._found(target.path)
        if route is None:
            return not_found()
        page_request = PageRequest(
            request.head.method, target.path, query, request.head.headers, request.body
        )
        try:
            return route(page_request)
        except Exception:  # noqa: BLE001 - a defect in one route must not stop the server
            if self._defects.allow(name):
                _log.exception("http.failed", path=name)
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, b"500 internal error\n")


def _path(request: HttpRequest) -> str:
    """Return the path of a request; empty if it is malformed, which no route has."""
    try:
        return urlsplit(request.head.target).path
    except ValueError:
        return ""


def _bound(bind: Bind) -> socket.socket:
    """Open a listening socket; ``0.0.0.0`` means all addresses of both families, as in Go.

    Raises:
        OSError: the address cannot be listened on.
    """
    if bind.host == "0.0.0.0":
        try:
            return open_listen_socket("::", bind.port, only_v6=False)
        except OSError as error:
            if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                raise  # otherwise the kernel has no IPv6
    # [::] also serves IPv4 clients, as Go's listeners do, regardless of net.ipv6.bindv6only
    return open_listen_socket(bind.host, bind.port, only_v6=bind.host != "::")


class HttpServer:
    """An HTTP server: an address and the routes served there.

    Args:
        purpose: the purpose in messages, for example "metrics".
        flag: the flag that sets the address, without dashes.
        bind: where to listen.
        routes: the routes by path; one whose path ends in "/" also serves the paths directly
            below it.
        quick: the paths of routes that return immediately; they run in the server's thread.
        apart: the paths of routes that may take seconds; they share a thread of their own, so that
            other slow routes do not wait for them.
        limits: what clients may use.
    """

    def __init__(
        self,
        purpose: str,
        flag: str,
        bind: Bind,
        routes: Mapping[str, Route],
        *,
        quick: Collection[str] = (),
        apart: Collection[str] = (),
        limits: ClientLimits | None = None,
    ) -> None:
        self.purpose = purpose
        self._flag = flag
        self._bind = bind
        self._routes = routes
        self._limits = limits or ClientLimits()
        self._pages = _Pages(routes, quick, apart)
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._port = bind.port
        self._stopped = threading.Event()

    @property
    def paths(self) -> list[str]:
        """The paths that have a route."""
        return list(self._routes)

    @property
    def address(self) -> Bind:
        """Where the server listens; with the actual port if port 0 was requested."""
        return Bind(self._bind.host, self._port)

    def start(self) -> None:
        """Bind, then serve in a thread.

        Raises:
            BindError: the server cannot listen on the address.
        """
        with self._lock:
            self._stopped.clear()
            self._serve()

    def start_or_retry(self, on_failure: Callable[[BindError], None], every: float = 5.0) -> None:
        """Start; if that fails, retry in a thread until it succeeds or ``stop`` is called.

        Args:
            on_failure: called with the first failure, in the caller's thread.
            every: seconds between attempts; kube-proxy waits 5.
        """
        try:
            self.start()
        except BindError as error:
            on_failure(error)
            spawn(partial(self._retry, every), f"http-{self.purpose}-retry")

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
            engine = self._listen()
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, f"{error.strerror or error};")
            raise BindError(
                f"cannot serve {self.purpose} on {self._bind}: {reason} "
                f"or choose another address and port with --{self._flag}"
            ) from error
        engine.start()
        self._engine = engine

    def _listen(self) -> Engine:
        sock = _bound(self._bind)
        try:
            engine = Engine(f"http-{self.purpose}", self._limits)
        except OSError:
            sock.close()
            raise
        self._port = sock.getsockname()[1]
        pages = self._pages
        engine.listen([sock], HttpHandler(pages.answer, slow=pages.slow, apart=pages.apart))
        return engine

    def stop(self) -> None:
        """Stop serving within half a second; does nothing if the server is not running."""
        self._stopped.set()
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.stop(_STOP_SECONDS)
