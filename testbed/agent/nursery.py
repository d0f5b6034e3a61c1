"""Starts helpers by forking: one Python that has loaded all of it stands for all their starts.

A request on its socket carries a helper's name, the helper's control socket and the namespace it
is to live in; the reply is its process id. It ends when the other end of its socket goes away;
helpers go with their own control sockets.
"""

import os
import signal
import socket
import sys
from typing import Never

from testbed.agent.main import Agent
from testbed.netns import enter

_NAME_BYTES = 256


def main() -> None:
    """Serve requests: the socket's descriptor is the only argument."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    # The kernel takes leave of those that have ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        name, (control, space), _, _ = _receive(requests)
        child = os.fork()
        if child == 0:
            requests.close()
            _become(name.decode(), control, space)
        os.close(control)
        os.close(space)
        requests.send(str(child).encode())


def _receive(requests: socket.socket) -> tuple[bytes, list[int], int, object]:
    received = socket.recv_fds(requests, _NAME_BYTES, 2)
    if not received[0]:
        sys.exit(0)
    return received


def _become(name: str, control: int, space: int) -> Never:
    """Be a helper to the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        os.setsid()
        enter(space)
        os.close(space)
        Agent(name, socket.socket(fileno=control)).run()
    finally:
        os._exit(1)
