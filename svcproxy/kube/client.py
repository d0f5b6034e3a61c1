"""Raw requests to the API server, with the kubernetes client's authentication and TLS.

The generated API classes are left aside: building their models costs fifty times what decoding
the few fields we need does. This module and ``credentials`` are the only ones that know the
library, and it has no types: ``Any`` ends here.
"""

import math
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

import urllib3
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

from svcproxy import __version__
from svcproxy.kube.credentials import ConnectionSettings, OnRequest, load_configuration

_CHUNK = 1 << 16
_ERROR_BODY_LIMIT = 1 << 16
_RELOAD_SECONDS = 1.0
_CLOSE_SECONDS = 0.2


class TransportError(Exception):
    """No answer, or only a part of one: refused, cut, TLS failure, name not found."""


class IdleError(TransportError):
    """Nothing came for longer than the read time-out."""


class Response:
    """An answer whose body is read piece by piece."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self.status: int = response.status

    def read(self) -> bytes:
        """Read the whole body, decompressed.

        Raises:
            TransportError: it did not come whole.
        """
        with _translated():
            return self._response.read(decode_content=True)

    def read_error(self) -> bytes:
        """Read the body of a failure, as far as it is of a sensible size and comes at all."""
        try:
            with _translated():
                return self._response.read(_ERROR_BODY_LIMIT, decode_content=True)
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
                chunk = self._response.read1(_CHUNK)
            if not chunk:
                return
            yield chunk

    def be_patient(self, idle_seconds: float) -> None:
        """Bear another length of silence from now on."""
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
        self._sockets = _Sockets()
        self._api = self._connect()
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
        headers = {"Accept": "application/json", "Accept-Encoding": encoding}
        return self._send("GET", path, headers, idle_seconds, query=list(query.items()))

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
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        return self._send("POST", path, headers, idle_seconds, body=dict(body))

    def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        idle_seconds: float,
        *,
        query: list[tuple[str, str]] | None = None,
        body: dict[str, Any] | None = None,
    ) -> Response:
        with self._lock:
            # Under the lock, as this may read token files or run a credential plugin.
            api, server = self._api
            request = api.param_serialize(
                method,
                path,
                query_params=query,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _host=server,
            )
        with _translated(), self._told(method, server) as told:
            answer = api.call_api(
                *request, _request_timeout=(self._settings.connect_seconds, idle_seconds)
            )
            told.code = str(answer.response.status)
        return Response(answer.response)

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
            (stale, _), self._api = self._api, self._connect()
        stale.close()

    def close(self) -> None:
        """End every request, also those that other threads are blocked in; allow no more."""
        self._sockets.shut()
        # Whoever holds the lock may be waiting for a credential plugin; we do not wait with it.
        if self._lock.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._api[0].close()
            finally:
                self._lock.release()

    def _connect(self) -> tuple[Any, str]:
        """Make the library's client, and keep its server's URL.

        The library sets the server of the kubeconfig again whenever it renews a token, and so
        forgets one that overrides it.
        """
        api = ApiClient(load_configuration(self._settings))
        api.user_agent = f"svcproxy/{__version__}"
        self._sockets.track(api.rest_client.pool_manager)
        return api, api.configuration.host


class _Sockets:
    """The open connections of a client, so that another thread can shut them down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._shut = False

    def track(self, manager: urllib3.PoolManager) -> None:
        """Make a pool manager open its connections under our eyes."""
        http = type("HTTPConnection", (_TrackedHTTP,), {"sockets": self})
        https = type("HTTPSConnection", (_TrackedHTTPS,), {"sockets": self})
        manager.pool_classes_by_scheme = {
            "http": type("Pool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": http}),
            "https": type("TLSPool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": https}),
        }

    def add(self, connection: HTTPConnection) -> None:
        """Note a new connection, or refuse it when the client is closed."""
        with self._lock:
            self._open.add(connection)
            shut = self._shut
        if shut:
            connection.close()
            raise ConnectionAbortedError("the client is closed")

    def shut(self) -> None:
        """Shut all connections down; threads that read from them see their end at once."""
        with self._lock:
            self._shut = True
            connections = list(self._open)
        for connection in connections:
            sock = connection.sock
            if sock is not None:
                try:
                    # Not the TLS socket's own shutdown, which takes the TLS state away from
                    # under a reading thread.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
                except OSError:
                    continue


class _TrackedHTTP(HTTPConnection):
    sockets: ClassVar[_Sockets]

    def connect(self) -> None:
        super().connect()
        self.sockets.add(self)


class _TrackedHTTPS(HTTPSConnection):
    sockets: ClassVar[_Sockets]

    def connect(self) -> None:
        super().connect()
        self.sockets.add(self)


class _Told:
    """Tells of a request when it is over, answered or not."""

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
            raise IdleError("nothing came within the time limit") from error
        if isinstance(error, HTTPError | ApiException | OSError | ValueError):
            raise TransportError(_line(error)) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
