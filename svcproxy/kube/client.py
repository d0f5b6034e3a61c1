"""Raw HTTP requests to the API server, over urllib3.

The kubernetes client library is not used. Importing it takes longer than the rest of the daemon's
start, and building its models costs fifty times as much as decoding the few fields that svcproxy
reads.
"""

import http.client
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self
from urllib.parse import quote, unquote, urlencode, urlsplit

import msgspec
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

from svcproxy import __version__, limits
from svcproxy.kube.core.apiserver import ApiServer, PemFile
from svcproxy.kube.core.body import Body
from svcproxy.kube.credentials import ClientSettings, OnRequest, load_api_server
from svcproxy.kube.source import one_line
from svcproxy.kube.transport import CHUNK_BYTES, OpenConnections
from svcproxy.refusals import REFUSALS

_USER_AGENT = f"svcproxy/{__version__}"
_RELOAD_SECONDS = 1.0
_CLOSE_SECONDS = 0.2
# Idle connections kept for reuse: one for each kind of object, and one for Events.
_KEPT_CONNECTIONS = 8
# TCP keepalive detects a dead server as quickly as client-go does (net.Dialer, KeepAlive 30 s).
_SOCKET_OPTIONS = (
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9),
)


class TransportError(Exception):
    """No response, or a truncated one: connection refused or reset, TLS failure, unknown host."""


class IdleError(TransportError):
    """No data arrived within the read timeout."""


class ResponseTooLargeError(TransportError):
    """A response body exceeds its size limit."""


class Response:
    """A response whose body is read incrementally."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._encoding = response.headers.get("Content-Encoding", "")
        self.status: int = response.status

    def read(self, limit: int, seconds: float) -> bytes:
        """Read the whole body, decompressed.

        Args:
            limit: the maximum size of the body, in decompressed bytes.
            seconds: the maximum time for reading the whole body.

        Raises:
            ResponseTooLargeError: the body exceeds ``limit``.
            TransportError: the body was cut off, or reading it took longer than ``seconds``.
        """
        deadline = time.monotonic() + seconds
        with _translate_errors():
            body = Body(self._encoding, limit)
            while received := self._response.read1(CHUNK_BYTES, decode_content=False):
                if not body.feed(received):
                    REFUSALS.count("api_response", "body_bytes")
                    raise ResponseTooLargeError(f"the response is larger than {limit} bytes")
                if time.monotonic() > deadline:
                    REFUSALS.count("api_response", "body_seconds")
                    raise TransportError(f"the response took longer than {seconds:g} s")
            return body.whole()

    def read_error(self) -> bytes:
        """Read the body of an error response up to a limit; empty if reading fails."""
        deadline = time.monotonic() + limits.RESPONSE_HEAD_SECONDS
        try:
            with _translate_errors():
                body = Body(self._encoding, limits.ERROR_BODY_BYTES)
                while received := self._response.read1(CHUNK_BYTES, decode_content=False):
                    if not body.feed(received) or time.monotonic() > deadline:
                        break
                return body.read()
        except TransportError:
            return b""

    def chunks(self) -> Iterator[bytes]:
        """Yield data as it arrives, until the server ends the response.

        Raises:
            IdleError: no data arrived within the read timeout.
            TransportError: the connection broke.
        """
        while True:
            with _translate_errors():
                chunk = self._response.read1(CHUNK_BYTES, decode_content=False)
            if not chunk:
                return
            yield chunk

    def set_read_timeout(self, idle_seconds: float) -> None:
        """Change the read timeout of this response, in seconds."""
        connection = self._response.connection
        if isinstance(connection, HTTPConnection) and connection.sock is not None:
            connection.sock.settimeout(idle_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        # Reading a body to its end has returned the connection to the pool; otherwise close it.
        self._response.close()


class Client:
    """Sends requests to one API server. All methods may be called from any thread.

    Args:
        settings: the address of the API server, the credentials and the timeouts.

    Raises:
        SourceError: the settings, or the files that they name, are unusable.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._connections = OpenConnections()
        self._pool = self._load()
        self._reloaded = -math.inf

    def get(
        self, path: str, query: Mapping[str, str], *, stream: bool, idle_seconds: float
    ) -> Response:
        """Send a GET request and wait for the response head, whatever its status.

        Args:
            path: the path below the server's URL.
            query: the query parameters, unquoted.
            stream: whether the response is a watch. Watches are requested uncompressed, so that no
                event is delayed by a compressor's buffer.
            idle_seconds: the read timeout.

        Raises:
            TransportError: there is no response.
            SourceError: the credentials cannot be read.
        """
        encoding = "identity" if stream else "gzip"
        if query:
            path = f"{path}?{urlencode(query, quote_via=quote)}"
        return self._send("GET", path, {"Accept-Encoding": encoding}, idle_seconds)

    def post(self, path: str, body: Mapping[str, Any], *, idle_seconds: float) -> Response:
        """Send an object in a POST request and wait for the response head.

        Args:
            path: the path below the server's URL.
            body: the object, sent as JSON.
            idle_seconds: the read timeout.

        Raises:
            TransportError: there is no response. The server may still have created the object.
            SourceError: the credentials cannot be read.
        """
        headers = {"Content-Type": "application/json"}
        return self._send("POST", path, headers, idle_seconds, msgspec.json.encode(body))

    def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        idle_seconds: float,
        body: bytes | None = None,
    ) -> Response:
        headers |= {"Accept": "application/json", "User-Agent": _USER_AGENT}
        with self._lock:
            # Hold the lock: this may read a token file or run a credential plugin.
            manager, server = self._pool
            if authorization := server.authorization():
                headers["Authorization"] = authorization
        timeout = urllib3.Timeout(connect=self._settings.connect_seconds, read=idle_seconds)
        with _translate_errors(), self._timer(method, server.url) as timer:
            answer = manager.urlopen(
                method,
                server.url + path,
                body=body,
                headers=headers,
                timeout=timeout,
                preload_content=False,
            )
            timer.code = str(answer.status)
        return Response(answer)

    def _timer(self, method: str, server: str) -> "_RequestTimer":
        place = urlsplit(server).netloc.rpartition("@")[2]  # without a password
        return _RequestTimer(self._settings.on_request, method, place)

    def reload(self) -> None:
        """Load the kubeconfig and the credentials again, at most once a second; used after a 401.

        Raises:
            SourceError: they are unusable; the previous ones stay in use.
        """
        with self._lock:
            # All watch threads get the same 401 at about the same time: reload once for all.
            if time.monotonic() - self._reloaded < _RELOAD_SECONDS:
                return
            self._reloaded = time.monotonic()
            (stale, _), self._pool = self._pool, self._load()
        stale.clear()

    def close(self) -> None:
        """Abort all requests, including those that block other threads, and refuse new ones."""
        self._connections.shut_down()
        # Another thread may hold the lock while it runs a credential plugin: do not wait for it.
        if self._lock.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._pool[0].clear()
            finally:
                self._lock.release()

    def _load(self) -> tuple[urllib3.PoolManager, ApiServer]:
        server = load_api_server(self._settings)
        manager = _pool_manager(server)
        self._connections.track(manager)
        return manager, server


def _pool_manager(server: ApiServer) -> urllib3.PoolManager:
    # The reflector decides when to retry.
    options: dict[str, Any] = {
        "retries": False,
        "maxsize": _KEPT_CONNECTIONS,
        "socket_options": _SOCKET_OPTIONS,
    }
    if server.tls:
        # Pass paths, not contents: every new connection reads the files again.
        options |= {
            "cert_reqs": ssl.CERT_REQUIRED if server.verify else ssl.CERT_NONE,
            "ca_certs": _path(server.ca),
            "cert_file": _path(server.certificate),
            "key_file": _path(server.key),
            "server_hostname": server.tls_name or None,
        }
    if server.proxy:
        login = urllib3.util.parse_url(server.proxy).auth
        headers = urllib3.util.make_headers(proxy_basic_auth=unquote(login)) if login else None
        return urllib3.ProxyManager(server.proxy, proxy_headers=headers, **options)
    return urllib3.PoolManager(**options)


def _path(file: PemFile | None) -> str | None:
    return None if file is None else file.path


class _RequestTimer:
    """Reports the duration and the status code of one request when it ends."""

    def __init__(self, report: OnRequest | None, method: str, host: str) -> None:
        self._report = report
        self._method = method
        self._host = host
        self._begin = time.monotonic()
        self.code = "<error>"  # client-go's label for a request without a response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._report is not None:
            self._report(self._method, self._host, self.code, time.monotonic() - self._begin)


class _translate_errors:  # noqa: N801 - used as a function
    """Translate exceptions of urllib3, ``http.client`` and the sockets to ``TransportError``."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ReadTimeoutError | TimeoutError):
            _drop_tracebacks(error)
            raise IdleError("no data arrived within the time limit") from error
        if isinstance(error, HTTPError | http.client.HTTPException | OSError | ValueError):
            _drop_tracebacks(error)
            raise TransportError(one_line(error)) from error


def _drop_tracebacks(error: BaseException) -> None:
    """Break the reference cycles of an exception that urllib3 keeps in local variables.

    Its traceback refers to frames of urllib3, and through them to the connection, its buffers and
    the frames of the callers. Without this, every failed attempt to reach the API server would
    leave all of these objects to the garbage collector.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
