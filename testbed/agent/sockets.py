"""Creates client sockets, and translates their answers and errors into results.

Results travel as short JSON arrays: ``["answer", seconds, server, source, source port]``,
``["refused", seconds, "icmp" | "reset"]``, ``["timed out", seconds]``,
``["unreachable", seconds, errno name]``, ``["broken", seconds, reason]``.
"""

import contextlib
import errno
import itertools
import socket
import struct
import threading
from typing import Any

Result = list[Any]
Target = dict[str, Any]

PING = b"ping\n"
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP_BIND_ADDRESS_NO_PORT = 24
_UNREACHABLE = {
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EPERM,
    errno.EACCES,
    errno.EPROTO,
    errno.EOPNOTSUPP,
    errno.ENOPROTOOPT,
}
_BROKEN = {errno.ECONNRESET: "reset", errno.EPIPE: "reset"}

# A UDP source port that is reused too soon still belongs to an old flow in connection tracking.
# Cycling through all ports makes every datagram a new flow.
_udp_ports = itertools.cycle(range(10240, 65000))
_udp_lock = threading.Lock()


def open_socket(target: Target, *, blocking: bool = True) -> socket.socket:
    """Create the socket for a target, bound to its source if it has one."""
    address = str(target["address"])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    udp = target["proto"] == "udp"
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    sock = socket.socket(family, kind if blocking else kind | socket.SOCK_NONBLOCK)
    try:
        _bind(sock, str(target.get("source_address", "")), int(target.get("source_port", 0)), udp)
        if not udp and not target.get("hold"):
            # The error queue distinguishes an ICMP error from a reset.
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            if target.get("source_port"):
                # Close with a reset: TIME_WAIT would prevent reuse of the port.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, address: str, port: int, udp: bool) -> None:  # noqa: FBT001
    if port or (address and not udp):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not port:
            # Let connect() choose a port that no earlier connection to the target still uses.
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((address, port))
    elif udp:
        while True:
            with _udp_lock:
                port = next(_udp_ports)
            try:
                sock.bind((address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return


def answer(line: bytes, seconds: float) -> Result:
    """Return the result for an echo server's line."""
    server, source, port = line.decode().split("|")[:3]
    return ["answer", seconds, server, source, int(port)]


def failure(error: OSError, sock: socket.socket | None, seconds: float) -> Result:
    """Return the result for an error.

    Raises:
        OSError: the error is not a result of the network but of the test's set-up.
    """
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return ["timed out", seconds]
    if error.errno == errno.ECONNREFUSED or (error.errno == errno.EPERM and _rejected(sock)):
        return ["refused", seconds, _refused_by(sock)]
    if error.errno in _UNREACHABLE:
        return ["unreachable", seconds, errno.errorcode[error.errno]]
    if error.errno in _BROKEN:
        return ["broken", seconds, _BROKEN[error.errno]]
    raise error


def _rejected(sock: socket.socket | None) -> bool:
    # If the sender's own machine rejects a packet, Linux returns EPERM, as for DROP; the ICMP
    # error follows as the socket's pending error.
    return (
        sock is not None
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    )


def _refused_by(sock: socket.socket | None) -> str:
    if sock is None:
        return "reset"
    if sock.type == socket.SOCK_DGRAM:
        return "icmp"
    sock.settimeout(0.0)
    with contextlib.suppress(OSError):
        sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
        return "icmp"
    return "reset"
