"""The fork server's process: a Python that has imported a module and forks itself on request.

The first argument is the descriptor of its socket, the second a module with a function ``start``.
A request is a JSON array of strings with file descriptors: that of the network namespace in which
the new process shall run, and further ones that ``start(arguments, descriptors)`` expects. The
reply is ``[process id]``; when that process exits, ``[process id, exit status]`` follows. The
server exits when the other end of the socket is closed.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from testbed.netns import enter

_BYTES = 65536
_DESCRIPTORS = 8
Start = Callable[[list[str], list[int]], None]


def main() -> None:
    """Serve requests until the other end of the socket is closed."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    start: Start = import_module(sys.argv[2]).start
    # Exclude imported objects from collections, so that children do not copy their pages.
    gc.collect()
    gc.freeze()
    wakeup_r, wakeup_w = socket.socketpair()
    wakeup_w.setblocking(False)  # noqa: FBT003 - setblocking has no keyword
    signal.set_wakeup_fd(wakeup_w.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, wakeup_r], [], [])
        if wakeup_r in ready:
            wakeup_r.recv(_BYTES)
            _reap(requests)
        if requests in ready:
            message, descriptors, _, _ = socket.recv_fds(requests, _BYTES, _DESCRIPTORS)
            if not message:
                return
            child = os.fork()
            if child == 0:
                break
            for descriptor in descriptors:
                os.close(descriptor)
            _send(requests, [child])
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for own in (requests, wakeup_r, wakeup_w):
        own.close()
    # Only the main process handles Ctrl-C at the terminal; it ends the others.
    os.setsid()
    enter(descriptors[0])
    os.close(descriptors[0])
    start(json.loads(message), descriptors[1:])


def _reap(requests: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            _send(requests, [child, os.waitstatus_to_exitcode(status)])


def _send(requests: socket.socket, message: list[Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        requests.send(json.dumps(message).encode())
