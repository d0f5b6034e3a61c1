"""Echo servers: the answer to each line (TCP) or datagram (UDP) names the server and the client.

The answer is one line, ``server name|client address|client port|received line``; a TCP connection
stays open and answers line after line until the client closes it.
"""

import contextlib
import selectors
import socket
from collections.abc import Iterable

_ANY = ("0.0.0.0", "::")


class Servers:
    """The echo servers of one namespace, driven by the caller's selector.

    Every registered file object has a callable without arguments as its data.
    """

    def __init__(self, selector: selectors.BaseSelector, name: str) -> None:
        self._selector = selector
        self._name = name
        self._listening: dict[tuple[str, int], list[socket.socket]] = {}
        self._connections: dict[int, set[socket.socket]] = {}

    def open(self, proto: str, port: int, addresses: Iterable[str] = ()) -> None:
        """Serve on a port, by default on all addresses of both families."""
        if (proto, port) in self._listening:
            return
        socks = [self._listen(proto, address, port) for address in (tuple(addresses) or _ANY)]
        self._listening[proto, port] = socks

    def close(self, proto: str, port: int, *, established: bool) -> None:
        """Stop serving on a port; close its TCP connections if ``established``."""
        for sock in self._listening.pop((proto, port), []):
            self._selector.unregister(sock)
            sock.close()
        if proto == "tcp" and established:
            for sock in list(self._connections.get(port, ())):
                self._drop(sock, port)

    def _listen(self, proto: str, address: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        kind = socket.SOCK_DGRAM if proto == "udp" else socket.SOCK_STREAM
        sock = socket.socket(family, kind)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if proto == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.settimeout(0.0)
        if proto == "tcp":
            sock.listen(4096)
            self._selector.register(sock, selectors.EVENT_READ, lambda: self._accept(sock, port))
        else:
            self._selector.register(sock, selectors.EVENT_READ, lambda: self._datagrams(sock))
        return sock

    def _accept(self, listener: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):  # no client is waiting any longer
            while True:
                sock, peer = listener.accept()
                self._connections.setdefault(port, set()).add(sock)
                prefix = f"{self._name}|{peer[0]}|{peer[1]}|".encode()
                self._watch(sock, prefix, port)

    def _watch(self, sock: socket.socket, prefix: bytes, port: int) -> None:
        pending = bytearray()

        def read() -> None:
            try:
                chunk = sock.recv(65536, socket.MSG_DONTWAIT)
                pending.extend(chunk)
                *lines, rest = bytes(pending).split(b"\n")
                pending[:] = rest
                for line in lines:
                    sock.send(prefix + line + b"\n", socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                chunk = b""
            if not chunk:
                self._drop(sock, port)

        self._selector.register(sock, selectors.EVENT_READ, read)

    def _drop(self, sock: socket.socket, port: int) -> None:
        self._connections[port].discard(sock)
        self._selector.unregister(sock)
        sock.close()

    def _datagrams(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = sock.recvfrom(65536)
                line = f"{self._name}|{peer[0]}|{peer[1]}|".encode() + data.rstrip(b"\n")
                sock.sendto(line + b"\n", peer)
