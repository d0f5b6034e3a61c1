"""The servers of the metrics port and the health port: an address, and routes for the answers.

``pages.py`` has the routes, ``engine.py`` the thread that serves them. Goals:

1. A probe is answered at once, whatever other clients do and however long a page takes: quick
   routes run in the server's thread, which waits for nothing, all others in worker threads.
2. What clients do wrong is counted (``docs/limits.md``), never logged.
3. A restart can bind at once, but never beside another server on the same port.
4. A port that is still held, by a kube-proxy that is about to go perhaps, is tried again until
   it is free.
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

from svcproxy.observe.connections import Limits, Site
from svcproxy.observe.core.exchange import TEXT, Reply, Request, Route, not_found
from svcproxy.observe.core.http1 import Ask
from svcproxy.observe.engine import Engine
from svcproxy.observe.listening import listening
from svcproxy.observe.seldom import Seldom
from svcproxy.threads import spawn
from svcproxy.values import Bind

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
    """A server cannot listen; the message is one line: address, port, reason, remedy, flag."""


class _Pages:
    """Finds the route of each request and calls it."""

    def __init__(self, routes: Mapping[str, Route], quick: Collection[str]) -> None:
        self._routes = routes
        self._quick = frozenset(quick)
        self._defects = Seldom()

    def slow(self, ask: Ask) -> bool:
        """Whether a route answers that may take long."""
        try:
            path = urlsplit(ask.head.target).path
        except ValueError:
            return False
        return path not in self._quick and self._found(path)[1] is not None

    def _found(self, path: str) -> tuple[str, Route | None]:
        """Find the route of a path: its own, or that of the folder it is in (``/folder/``)."""
        if path in self._routes:
            return path, self._routes[path]
        folder = path[: path.rfind("/") + 1] or path
        return folder, self._routes.get(folder)

    def answer(self, ask: Ask) -> Reply:
        """Answer a request."""
        if ask.head.method not in _METHODS:
            return Reply(HTTPStatus.NOT_IMPLEMENTED, TEXT, b"501 Not Implemented\n")
        try:
            target = urlsplit(ask.head.target)
            query = dict(reversed(parse_qsl(target.query, keep_blank_values=True)))
        except ValueError:
            return Reply(HTTPStatus.BAD_REQUEST, TEXT, b"400 not a path\n")
        name, route = self._found(target.path)
        if route is None:
            return not_found()
        request = Request(ask.head.method, target.path, query, ask.head.headers, ask.body)
        try:
            return route(request)
        except Exception:  # noqa: BLE001 - a fault in one answer is no reason to stop serving
            if self._defects.due(name):
                _log.exception("http.failed", path=name)
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, b"500 internal error\n")


def _bound(bind: Bind) -> socket.socket:
    """Listen on an address; ``0.0.0.0`` means all addresses of both families, as in Go.

    Raises:
        OSError: it cannot be listened on.
    """
    if bind.host == "0.0.0.0":
        try:
            return listening("::", bind.port, only_v6=False)
        except OSError as error:
            if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                raise  # else the kernel is without IPv6
    # [::] serves IPv4 clients too, as Go's listeners do; the system's default may differ
    return listening(bind.host, bind.port, only_v6=bind.host != "::")


class Server:
    """An address and what is served there.

    Args:
        purpose: what is served, for messages: "metrics".
        flag: the flag that chooses the address, without dashes.
        bind: where to listen.
        routes: the answers by path; a path that ends in "/" is also for what is directly below it.
        quick: the paths whose routes take no time and wait for nothing, not even a slow page.
        limits: what one client may take.
    """

    def __init__(
        self,
        purpose: str,
        flag: str,
        bind: Bind,
        routes: Mapping[str, Route],
        *,
        quick: Collection[str] = (),
        limits: Limits | None = None,
    ) -> None:
        self.purpose = purpose
        self._flag = flag
        self._bind = bind
        self._routes = routes
        self._limits = limits or Limits()
        self._pages = _Pages(routes, quick)
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._port = bind.port
        self._stopped = threading.Event()

    @property
    def paths(self) -> list[str]:
        """What is served."""
        return list(self._routes)

    @property
    def address(self) -> Bind:
        """Where the server listens; it tells the port when 0 was asked for."""
        return Bind(self._bind.host, self._port)

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
        engine.listen([sock], Site(self._pages.answer, slow=self._pages.slow))
        return engine

    def stop(self) -> None:
        """Stop serving within half a second; calling it again, or before start, is no error."""
        self._stopped.set()
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.stop(_STOP_SECONDS)
