"""Listening sockets."""

import socket

from svcproxy.limits import HTTP_BACKLOG


def listening(host: str, port: int, *, only_v6: bool) -> socket.socket:
    """Listen on an address; its port may be in TIME_WAIT, but not in use.

    Args:
        host: an IP address; ``::`` without ``only_v6`` takes IPv4 clients as well.
        port: the port, 0 for any.
        only_v6: whether an IPv6 socket leaves IPv4 to others.

    Raises:
        OSError: it cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        sock.bind((host, port))
        sock.listen(HTTP_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
