"""The process that others are forked from: one Python that has loaded their code already.

The first argument is the descriptor of its socket, the second a module with a function ``start``.
A request there is a JSON array of strings, with file descriptors: the network namespace that the
new process is to live in, and what else ``start(arguments, descriptors)`` expects. The answer is
``[process id]``; when that process ends, ``[process id, exit status]`` follows. It ends itself
when the other end of the socket goes away.
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
    """Serve requests until nobody is left to make any."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    start: Start = import_module(sys.argv[2]).start
    # What is there stays; children need not copy it to look for garbage in it.
    gc.collect()
    gc.freeze()
    wake, waker = socket.socketpair()
    waker.setblocking(False)  # noqa: FBT003 - the only way to say it
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, wake], [], [])
        if wake in ready:
            wake.recv(_BYTES)
            _bury(requests)
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
    for own in (requests, wake, waker):
        own.close()
    # Ctrl-C at the terminal is for the one who cleans up, not for them.
    os.setsid()
    enter(descriptors[0])
    os.close(descriptors[0])
    start(json.loads(message), descriptors[1:])


def _bury(requests: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            _send(requests, [child, os.waitstatus_to_exitcode(status)])


def _send(requests: socket.socket, message: list[Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        requests.send(json.dumps(message).encode())
