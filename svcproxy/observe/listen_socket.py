"""Opens listening TCP sockets."""

import socket

from svcproxy.limits import HTTP_BACKLOG


def open_listen_socket(host: str, port: int, *, only_v6: bool) -> socket.socket:
    """Open a non-blocking socket that listens on an address.

    Connections in TIME_WAIT do not keep the port busy (``SO_REUSEADDR``); another listener does.

    Args:
        host: an IP address; ``::`` without ``only_v6`` accepts IPv4 clients as well.
        port: the port, 0 for any free one.
        only_v6: whether an IPv6 socket accepts IPv6 clients only.

    Returns:
        The socket; the caller closes it.

    Raises:
        OSError: the address cannot be listened on.
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
    except BaseException:
        sock.close()
        raise
    return sock
