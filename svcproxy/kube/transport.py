"""urllib3 connections to the API server with large reads, which other threads can shut down."""

import http.client
import io
import math
import socket
import threading
import time
import weakref
from typing import Any, ClassVar

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from svcproxy import limits
from svcproxy.kube.core.chunked import Dechunker, MalformedChunksError
from svcproxy.refusals import REFUSALS

CHUNK_BYTES = 1 << 17
"""How many bytes one read from a socket requests."""


class OpenConnections:
    """Tracks the open connections of a client, so that another thread can shut them down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._closed = False

    def track(self, manager: urllib3.PoolManager) -> None:
        """Make a pool manager register the connections that it opens."""
        http = type("HTTPConnection", (_TrackedHTTP,), {"registry": self})
        https = type("HTTPSConnection", (_TrackedHTTPS,), {"registry": self})
        manager.pool_classes_by_scheme = {
            "http": type("Pool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": http}),
            "https": type("TLSPool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": https}),
        }

    def add(self, connection: HTTPConnection) -> None:
        """Add a new connection, or close it if the client is closed."""
        with self._lock:
            self._open.add(connection)
            closed = self._closed
        if closed:
            connection.close()
            raise ConnectionAbortedError("the client is closed")

    def shut_down(self) -> None:
        """Shut down all connections; threads blocked in a read see the end of the stream."""
        with self._lock:
            self._closed = True
            connections = list(self._open)
        for connection in connections:
            sock = connection.sock
            if sock is not None:
                try:
                    # Not SSLSocket.shutdown: it drops the TLS state that a reading thread
                    # still uses.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
                except OSError:
                    continue


class _ResponseReader(io.RawIOBase):
    """Reads from a socket; raises after the deadline, which applies to the response head only."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__()
        self._raw = raw
        self.deadline = time.monotonic() + limits.RESPONSE_HEAD_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        if time.monotonic() > self.deadline:
            REFUSALS.count("api_response", "head_seconds")
            raise TimeoutError("the head of the response took too long")
        size: int | None = self._raw.readinto(buffer)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """Reads from the socket in large pieces: at the default of 8 KiB a list takes thousands of reads."""

    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        small = self.fp
        self._reader = _ResponseReader(sock.makefile("rb", buffering=0))
        self.fp = io.BufferedReader(self._reader, CHUNK_BYTES)
        small.close()
        self._dechunker = Dechunker()

    def begin(self) -> None:
        """Read the response head; http.client limits it to 100 lines of 64 KiB each."""
        super().begin()
        self._reader.deadline = math.inf

    def read1(self, n: int = -1) -> bytes:
        """Return the body data that has arrived; ``n`` limits bodies that are not chunked."""
        if not self.chunked:
            return super().read1(n)
        data = b""
        while not (data or self._dechunker.ended):
            piece = self.fp.read1(CHUNK_BYTES)
            if not piece:
                raise http.client.IncompleteRead(b"")
            try:
                data = self._dechunker.feed(piece)
            except MalformedChunksError as error:
                raise http.client.HTTPException(str(error)) from error
            if self._dechunker.ended:
                self.fp.close()
                self.fp = None  # as http.client does at the end of a response
        return data


class _TrackedHTTP(HTTPConnection):
    registry: ClassVar[OpenConnections]
    response_class = _Response

    def connect(self) -> None:
        super().connect()
        self.registry.add(self)


class _TrackedHTTPS(HTTPSConnection):
    registry: ClassVar[OpenConnections]
    response_class = _Response

    def connect(self) -> None:
        super().connect()
        self.registry.add(self)
