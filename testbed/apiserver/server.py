"""A fake API server on real sockets, with faults that tests switch on and off.

It serves lists (paged), watches (bookmarks, WatchList) and 410s like the real one, from bytes
that are encoded once; changes reach open watches immediately. Faults are plain attributes and
methods: ``stall``, ``delay``, ``cut()``, ``outage()``/``restore()``, ``compact()``, ``token``.
"""

import contextlib
import json
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed.apiserver.exchange import ApiConnection, Behaviour, Exchange, Received, read_request
from testbed.apiserver.store import Store


class FakeApiServer:
    """A fake API server; as a context manager it is started and stopped."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        behaviour: Behaviour | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.behaviour = behaviour or Behaviour()
        self.store = Store()
        self.received: list[Received] = []
        self.tls = tls
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._connections: set[ApiConnection] = set()
        self._sent = 0
        self._lock = threading.Lock()

    def start(self) -> Self:
        """Listen, in the network namespace of the calling thread, and serve in threads."""
        self._listen()
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The URL at which it listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    def stop(self) -> None:
        """Close the listener and all connections."""
        self.outage()

    def put(self, obj: dict[str, Any], body: bytes | None = None) -> int:
        """Create or replace an object; return its resourceVersion.

        Args:
            obj: the object.
            body: bytes to send instead of the object's JSON, in which ``@VERSION@`` is replaced
                by the resourceVersion.
        """
        if body is None:
            return self.store.put(obj)

        def encode(stored: dict[str, Any]) -> bytes:
            version = stored["metadata"]["resourceVersion"]
            return body.replace(b"@VERSION@", version.encode())

        return self.store.put(obj, encode)

    def mute(self) -> None:
        """Send nothing more on existing connections and keep them open: no FIN, no RST."""
        with self._lock:
            for connection in self._connections:
                connection.mute = True

    def unmute(self) -> None:
        """Close the connections that ``mute`` has kept open."""
        with self._lock:
            muted = [connection for connection in self._connections if connection.mute]
        for connection in muted:
            connection.dead = True
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
        self.store.wake()

    def put_many(self, objs: list[dict[str, Any]]) -> None:
        """Create or replace many objects."""
        for obj in objs:
            self.store.put(obj)

    def delete(self, kind: str, namespace: str, name: str) -> int:
        """Delete an object; return the resource version of the deletion."""
        return self.store.delete(kind, namespace, name)

    def compact(self) -> None:
        """Discard all events so far: watches from older versions get 410."""
        self.store.compact()

    def count(self, kind: str, verb: str) -> int:
        """Return how many lists or watches of a kind were requested."""
        return sum(1 for request in self.received if (request.kind, request.verb) == (kind, verb))

    @property
    def sent(self) -> int:
        """How many bytes it has sent so far, headers and all, on all connections."""
        with self._lock:
            return self._sent + sum(connection.sent for connection in self._connections)

    def cut(self) -> None:
        """Cut all connections and wait for their threads; accept new connections."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.dead = True
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
        self.store.wake()
        for connection in connections:
            connection.thread.join(5)

    def outage(self) -> None:
        """Stop listening, and cut all connections."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        if self._accepting is not None:
            self._accepting.join(5)
            self._accepting = None
        self.cut()

    def restore(self) -> None:
        """Listen again, on the same port."""
        self._listen()

    def write_kubeconfig(self, path: Path, *, user: dict[str, Any] | None = None) -> Path:
        """Write a kubeconfig for this server; ``user`` replaces the user with the token."""
        if user is None:
            user = {"token": self.behaviour.token} if self.behaviour.token else {}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "tester", "user": user}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "tester"}}],
            "current-context": "fake",
        }
        path.write_text(json.dumps(config))
        return path

    def _listen(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(128)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._accepting = threading.Thread(target=self._accept, args=(listener,), daemon=True)
        self._accepting.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = ApiConnection(sock)
            connection.thread = threading.Thread(
                target=self._serve, args=(connection,), name="fake-api", daemon=True
            )
            with self._lock:
                self._connections.add(connection)
                connection.thread.start()

    def _serve(self, connection: ApiConnection) -> None:
        try:
            if self.tls is not None:
                connection.sock = self.tls.wrap_socket(connection.sock, server_side=True)
            with connection.sock.makefile("rb") as reader:
                while (request := read_request(reader)) is not None:
                    self.received.append(request)
                    Exchange(self.store, self.behaviour, connection, request).answer()
        except OSError:
            pass  # the client or a test has cut the connection
        finally:
            connection.sock.close()
            with self._lock:
                self._connections.discard(connection)
                self._sent += connection.sent
