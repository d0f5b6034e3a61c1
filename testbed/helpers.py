"""Processes of helpers: started quickly, waited for and killed without being one's own children."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache

from testbed import ROOT
from testbed.netns import NetNS

_START = "from testbed.agent.nursery import main; main()"


class Helper:
    """A helper process.

    Args:
        process: its id.
    """

    def __init__(self, process: int) -> None:
        # Ended or not, it is this process and no later one with the same id.
        self._handle = os.pidfd_open(process)

    def end(self, patience: float) -> None:
        """Wait for its end, and kill it after so many seconds."""
        if not select.select([self._handle], [], [], patience)[0]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            select.select([self._handle], [], [])
        os.close(self._handle)


class Nursery:
    """The process that helpers are forked from; it ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            # Without site packages Python starts in a third of the time.
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-c", _START, str(other.fileno())],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                pass_fds=[other.fileno()],
                # Ctrl-C at the terminal is for the one who cleans up, not for them.
                start_new_session=True,
            )

    def start(self, name: str, space: NetNS, control: socket.socket) -> Helper:
        """Start a helper in a namespace, with its end of the control socket."""
        with self._lock, space.path.open("rb") as handle:
            descriptors = [control.fileno(), handle.fileno()]
            socket.send_fds(self._requests, [name.encode()], descriptors)
            reply = self._requests.recv(64)
        if not reply:
            raise OSError("the process that starts helpers is gone")
        return Helper(int(reply))


@cache
def nursery() -> Nursery:
    """The nursery of this process."""
    return Nursery()
