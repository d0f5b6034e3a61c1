"""Processes that are forked instead of started anew, see ``forks.py``; quick where that is slow."""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache

from testbed import ROOT
from testbed.netns import NetNS

_END = 5.0
"""Seconds that it may take to end."""
_START = "from testbed.forks import main; main()"


class Child:
    """A process that a nursery has started; has what is used of ``subprocess.Popen``."""

    def __init__(self, nursery: "Nursery", process: int) -> None:
        self._nursery = nursery
        self.pid = process
        # Ended or not, it is this process and no later one with the same id.
        self._handle = os.pidfd_open(process)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status as ``subprocess`` has it, ``None`` while it runs."""
        if self.returncode is None and select.select([self._handle], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status.

        Raises:
            subprocess.TimeoutExpired: it did not end within so many seconds.
        """
        if self.returncode is None:
            if not select.select([self._handle], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            self.returncode = self._nursery.status(self.pid)
            os.close(self._handle)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing happens if it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """A process that has loaded a module, and is forked; it ends with this one.

    Args:
        module: the module whose ``start`` the children run.
        site: whether installed packages can be imported; Python starts in a third of the time
            without them.
    """

    def __init__(self, module: str, *, site: bool) -> None:
        self._lock = threading.Lock()
        self._statuses: dict[int, int] = {}
        self._requests, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = [] if site else ["-S"]
        with other:
            self._process = subprocess.Popen(
                [sys.executable, *options, "-c", _START, str(other.fileno()), module],
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )
        atexit.register(self.close)

    def close(self) -> None:
        """Let the process end; its children stay."""
        self._requests.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def start(self, arguments: Sequence[str], space: NetNS, descriptors: Sequence[int]) -> Child:
        """Start a process in a namespace, with the arguments that the module expects.

        Raises:
            OSError: there is no namespace, or no nursery any more.
        """
        with self._lock, space.path.open("rb") as handle:
            message = json.dumps(list(arguments)).encode()
            socket.send_fds(self._requests, [message], [handle.fileno(), *descriptors])
            started = self._receive()
            while started is None:
                started = self._receive()
        return Child(self, started)

    def status(self, process: int) -> int:
        """The exit status of a process that has ended."""
        with self._lock:
            while process not in self._statuses:
                self._receive()
            return self._statuses.pop(process)

    def _receive(self) -> int | None:
        """Take one message: the id of a process that has started, or ``None`` if it has ended."""
        message = self._requests.recv(4096)
        if not message:
            raise OSError("the process that others are forked from is gone")
        process, *status = json.loads(message)
        if not status:
            return int(process)
        self._statuses[process] = int(status[0])
        return None


@cache
def agents() -> Nursery:
    """Where the helper of each machine comes from."""
    return Nursery("testbed.agent.main", site=False)


@cache
def daemons() -> Nursery:
    """Where daemons come from that need not be programs of their own."""
    return Nursery("testbed.forked_daemon", site=True)
