"""Raw requests to the API server, over urllib3.

The kubernetes client library is left aside: importing it takes longer than all else at the start
of the daemon, and building its models costs fifty times what decoding the few fields we need does.
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
from svcproxy.kube.connections import CHUNK_BYTES, Sockets
from svcproxy.kube.core.apiserver import ApiServer, PemFile
from svcproxy.kube.core.body import Body
from svcproxy.kube.credentials import ConnectionSettings, OnRequest, load_api_server
from svcproxy.kube.source import one_line
from svcproxy.refusals import REFUSALS

_USER_AGENT = f"svcproxy/{__version__}"
_RELOAD_SECONDS = 1.0
_CLOSE_SECONDS = 0.2
# Connections that are kept for another request: one for each kind, and one for Events
_KEPT_CONNECTIONS = 8
# A peer that is gone is noticed as soon as by client-go (net.Dialer with a KeepAlive of 30 s)
_SOCKET_OPTIONS = (
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9),
)


class TransportError(Exception):
    """No answer, or only a part of one: refused, cut, TLS failure, name not found."""


class IdleError(TransportError):
    """Nothing came for longer than the read time-out."""


class TooLargeError(TransportError):
    """The body of an answer is larger than it may be."""


class Response:
    """An answer whose body is read piece by piece."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._encoding = response.headers.get("Content-Encoding", "")
        self.status: int = response.status

    def read(self, limit: int, seconds: float) -> bytes:
        """Read the whole body, decompressed.

        Args:
            limit: the longest body, in decompressed bytes.
            seconds: how long reading it may take in all.

        Raises:
            TooLargeError: it is larger.
            TransportError: it was cut off, or took longer.
        """
        deadline = time.monotonic() + seconds
        with _translated():
            body = Body(self._encoding, limit)
            while received := self._response.read1(CHUNK_BYTES, decode_content=False):
                if not body.feed(received):
                    REFUSALS.count("api_response", "body_bytes")
                    raise TooLargeError(f"the answer is larger than {limit} bytes")
                if time.monotonic() > deadline:
                    REFUSALS.count("api_response", "body_seconds")
                    raise TransportError(f"the answer took longer than {seconds:g} s")
            return body.whole()

    def read_error(self) -> bytes:
        """Read the body of an error response, up to a limit; empty if it cannot be read."""
        deadline = time.monotonic() + limits.RESPONSE_HEAD_SECONDS
        try:
            with _translated():
                body = Body(self._encoding, limits.ERROR_BODY_BYTES)
                while received := self._response.read1(CHUNK_BYTES, decode_content=False):
                    if not body.feed(received) or time.monotonic() > deadline:
                        break
                return body.read()
        except TransportError:
            return b""

    def chunks(self) -> Iterator[bytes]:
        """Give what comes, as it comes, until the server ends the response.

        Raises:
            IdleError: the read time-out passed in silence.
            TransportError: the connection broke.
        """
        while True:
            with _translated():
                chunk = self._response.read1(CHUNK_BYTES, decode_content=False)
            if not chunk:
                return
            yield chunk

    def be_patient(self, idle_seconds: float) -> None:
        """Change the read time-out of this response."""
        connection = self._response.connection
        if isinstance(connection, HTTPConnection) and connection.sock is not None:
            connection.sock.settimeout(idle_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        # A body read to its end has given its connection back already; any other is closed.
        self._response.close()


class Client:
    """Sends requests to one API server; every thread may use it.

    Args:
        settings: where the server is and how long to wait for it.

    Raises:
        SourceError: the settings or the files they name are of no use.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._sockets = Sockets()
        self._connected = self._connect()
        self._reloaded = -math.inf

    def get(
        self, path: str, query: Mapping[str, str], *, stream: bool, idle_seconds: float
    ) -> Response:
        """Send a GET request and wait for the head of the answer, whatever its status.

        Args:
            path: the path below the server's URL.
            query: the query parameters, unquoted.
            stream: whether the body is a watch: those come uncompressed, so that no event
                waits in a compressor.
            idle_seconds: the longest silence to bear while reading.

        Raises:
            TransportError: there is no answer.
            SourceError: credentials are missing now.
        """
        encoding = "identity" if stream else "gzip"
        if query:
            path = f"{path}?{urlencode(query, quote_via=quote)}"
        return self._send("GET", path, {"Accept-Encoding": encoding}, idle_seconds)

    def post(self, path: str, body: Mapping[str, Any], *, idle_seconds: float) -> Response:
        """Send an object in a POST request and wait for the head of the answer.

        Args:
            path: the path below the server's URL.
            body: what to send as JSON.
            idle_seconds: the longest silence to bear while reading.

        Raises:
            TransportError: there is no answer; the server may have taken the object all the same.
            SourceError: credentials are missing now.
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
            # Under the lock, as this may read token files or run a credential plugin.
            manager, server = self._connected
            if authorization := server.authorization():
                headers["Authorization"] = authorization
        timeout = urllib3.Timeout(connect=self._settings.connect_seconds, read=idle_seconds)
        with _translated(), self._told(method, server.url) as told:
            answer = manager.urlopen(
                method,
                server.url + path,
                body=body,
                headers=headers,
                timeout=timeout,
                preload_content=False,
            )
            told.code = str(answer.status)
        return Response(answer)

    def _told(self, method: str, server: str) -> "_Told":
        return _Told(self._settings.on_request, method, urlsplit(server).netloc)

    def reload(self) -> None:
        """Load configuration and credentials anew, as after a 401; at most once a second.

        Raises:
            SourceError: they are of no use now; the old ones stay.
        """
        with self._lock:
            # All threads meet the same 401 at about the same time: one of them is enough.
            if time.monotonic() - self._reloaded < _RELOAD_SECONDS:
                return
            self._reloaded = time.monotonic()
            (stale, _), self._connected = self._connected, self._connect()
        stale.clear()

    def close(self) -> None:
        """End every request, also those that other threads are blocked in; allow no more."""
        self._sockets.shut()
        # Whoever holds the lock may be waiting for a credential plugin; we do not wait with it.
        if self._lock.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._connected[0].clear()
            finally:
                self._lock.release()

    def _connect(self) -> tuple[urllib3.PoolManager, ApiServer]:
        server = load_api_server(self._settings)
        manager = _pool_manager(server)
        self._sockets.track(manager)
        return manager, server


def _pool_manager(server: ApiServer) -> urllib3.PoolManager:
    # The reflector decides about retries; urllib3's own would only delay it.
    options: dict[str, Any] = {
        "retries": False,
        "maxsize": _KEPT_CONNECTIONS,
        "socket_options": _SOCKET_OPTIONS,
    }
    if server.tls:
        # Paths rather than what is in the files now: every new connection reads them again.
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


class _Told:
    """Reports a request when it has ended, with or without an answer."""

    def __init__(self, tell: OnRequest | None, method: str, host: str) -> None:
        self._tell = tell
        self._method = method
        self._host = host
        self._begin = time.monotonic()
        self.code = "<error>"  # as client-go has it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._tell is not None:
            self._tell(self._method, self._host, self.code, time.monotonic() - self._begin)


class _translated:  # noqa: N801 - used as a function
    """Turn the libraries' many exceptions into ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ReadTimeoutError | TimeoutError):
            _drop_tracebacks(error)
            raise IdleError("nothing came within the time limit") from error
        if isinstance(error, HTTPError | http.client.HTTPException | OSError | ValueError):
            _drop_tracebacks(error)
            raise TransportError(one_line(error)) from error


def _drop_tracebacks(error: BaseException) -> None:
    """Break the cycles of an exception that urllib3 still has in local variables.

    Its traceback refers to their frames, and these to the connection, its buffers and the calling
    frames with their objects. An API server that refuses connections would leave all of that to the
    garbage collector at every attempt.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
