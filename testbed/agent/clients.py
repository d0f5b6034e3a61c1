"""Blocking clients: single connections, held connections, an HTTP request."""

import socket
import time

from testbed.agent.sockets import PING, Result, Target, answer, failure, open_socket


def dial(target: Target) -> Result:
    """Open a connection (or send a datagram) and return the result."""
    began = time.monotonic()
    try:
        sock = open_socket(target)
    except OSError as error:
        return failure(error, None, time.monotonic() - began)
    with sock:
        return _talk(sock, target, began)


def _talk(sock: socket.socket, target: Target, began: float) -> Result:
    deadline = began + float(target["timeout"])
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.connect((target["address"], target["port"]))
        return _exchange(sock, began, deadline)
    except OSError as error:
        return failure(error, sock, time.monotonic() - began)


def _exchange(sock: socket.socket, began: float, deadline: float) -> Result:
    sock.sendall(PING)
    received = b""
    while not received.endswith(b"\n"):
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = sock.recv(4096)
        if not chunk:
            return ["broken", time.monotonic() - began, "closed"]
        received += chunk
    return answer(received, time.monotonic() - began)


class Held:
    """A connection, or a UDP socket with its port, that stays open between checks."""

    def __init__(self, target: Target) -> None:
        self._sock = open_socket({**target, "hold": True})
        self.first = _talk(self._sock, target, time.monotonic())

    def check(self, timeout: float) -> Result:
        """Send a line on the open connection and return the result."""
        began = time.monotonic()
        try:
            self._sock.settimeout(timeout)
            return _exchange(self._sock, began, began + timeout)
        except OSError as error:
            return failure(error, self._sock, time.monotonic() - began)

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()


def fetch(address: str, port: int, path: str, timeout: float) -> tuple[int, str]:
    """Send an HTTP GET; return status and body, or 0 and the reason without an answer."""
    # Importing http.client would double the helper's start-up time.
    host = f"[{address}]" if ":" in address else address
    request = f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    received = bytearray()
    try:
        with socket.create_connection((address, port), timeout) as sock:
            sock.sendall(request.encode())
            while chunk := sock.recv(65536):
                received += chunk
    except OSError as error:
        return 0, str(error)
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    words = head.split(None, 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    return status, body.decode(errors="replace")
