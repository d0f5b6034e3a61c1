"""Connections to the API server, below urllib3: large reads, and shutdown from other threads."""

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
"""How much is read from a socket at once."""


class Sockets:
    """The open connections of a client, so that another thread can shut them down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._shut = False

    def track(self, manager: urllib3.PoolManager) -> None:
        """Make a pool manager register the connections that it opens."""
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


class _Received(io.RawIOBase):
    """Reads from a socket; fails after the deadline, which applies to the head of a response."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__()
        self._raw = raw
        self.deadline = time.monotonic() + limits.RESPONSE_HEAD_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        if time.monotonic() > self.deadline:
            REFUSALS.count("api_response", "head_seconds")
            raise TimeoutError("the head of the answer took too long")
        size: int | None = self._raw.readinto(buffer)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """Reads from the socket in large pieces: with the usual 8 KiB a list takes thousands of calls."""

    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        small = self.fp
        self._received = _Received(sock.makefile("rb", buffering=0))
        self.fp = io.BufferedReader(self._received, CHUNK_BYTES)
        small.close()
        self._dechunker = Dechunker()

    def begin(self) -> None:
        """Read the head; http.client bounds it to 100 lines of 64 KiB each."""
        super().begin()
        self._received.deadline = math.inf

    def read1(self, n: int = -1) -> bytes:
        """Return what has arrived of the body; ``n`` is the limit for bodies that are not chunked."""
        if not self.chunked:
            return super().read1(n)
        data = b""
        while not (data or self._dechunker.ended):
            received = self.fp.read1(CHUNK_BYTES)
            if not received:
                raise http.client.IncompleteRead(b"")
            try:
                data = self._dechunker.feed(received)
            except MalformedChunksError as error:
                raise http.client.HTTPException(str(error)) from error
            if self._dechunker.ended:
                self.fp.close()
                self.fp = None  # as http.client leaves it
        return data


class _TrackedHTTP(HTTPConnection):
    sockets: ClassVar[Sockets]
    response_class = _Answer

    def connect(self) -> None:
        super().connect()
        self.sockets.add(self)


class _TrackedHTTPS(HTTPSConnection):
    sockets: ClassVar[Sockets]
    response_class = _Answer

    def connect(self) -> None:
        super().connect()
        self.sockets.add(self)
