"""Listening sockets whose clients connect faster than they are accepted."""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from svcproxy.observe.listen_socket import open_listen_socket

_CLIENTS = 400
_ALLOWED = int(Path("/proc/sys/net/core/somaxconn").read_text())


@pytest.mark.skipif(_ALLOWED < _CLIENTS, reason="net.core.somaxconn allows fewer connections")
def test_a_burst_of_clients_is_queued() -> None:
    """With a full backlog, a probe's SYN is dropped and retransmitted only after a second."""
    with ExitStack() as stack:
        server = stack.enter_context(open_listen_socket("127.0.0.1", 0, only_v6=False))
        for _ in range(_CLIENTS):
            address = server.getsockname()
            stack.enter_context(socket.create_connection(address, timeout=0.5))
