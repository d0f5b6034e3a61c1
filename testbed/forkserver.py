"""Forks processes from a server that has already imported their code (``forkserver_process``).

That is much faster than starting Python where page faults are slow, as in User Mode Linux.
"""

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
"""Seconds that the server may take to exit."""
_START = "from testbed.forkserver_process import main; main()"


class Child:
    """A process that a fork server has started, with the used methods of ``subprocess.Popen``."""

    def __init__(self, server: "ForkServer", process: int) -> None:
        self._server = server
        self.pid = process
        # Refers to this process even after its id has been reused.
        self._handle = os.pidfd_open(process)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status as ``subprocess`` does, ``None`` while the process runs."""
        if self.returncode is None and select.select([self._handle], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process exits and return its exit status.

        Raises:
            subprocess.TimeoutExpired: it did not exit within ``timeout`` seconds.
        """
        if self.returncode is None:
            if not select.select([self._handle], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            self.returncode = self._server.status(self.pid)
            os.close(self._handle)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal; does nothing if the process has exited."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """A process that has imported a module and forks on request; it exits with this process.

    Args:
        module: the module whose ``start`` the children run.
        site: whether installed packages can be imported; without them, Python starts in a third
            of the time.
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
        """End the server; its children keep running."""
        self._requests.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def start(self, arguments: Sequence[str], space: NetNS, descriptors: Sequence[int]) -> Child:
        """Start a process in a namespace, with the arguments that the module expects.

        Raises:
            OSError: the namespace or the server does not exist any longer.
        """
        with self._lock, space.path.open("rb") as handle:
            message = json.dumps(list(arguments)).encode()
            socket.send_fds(self._requests, [message], [handle.fileno(), *descriptors])
            started = self._receive()
            while started is None:
                started = self._receive()
        return Child(self, started)

    def status(self, process: int) -> int:
        """Return the exit status of a process, once it has exited."""
        with self._lock:
            while process not in self._statuses:
                self._receive()
            return self._statuses.pop(process)

    def _receive(self) -> int | None:
        """Receive a message; return the id of a started process, ``None`` if one has exited."""
        message = self._requests.recv(4096)
        if not message:
            raise OSError("the fork server has exited")
        process, *status = json.loads(message)
        if not status:
            return int(process)
        self._statuses[process] = int(status[0])
        return None


@cache
def agents() -> ForkServer:
    """Return the fork server of the helper processes of machines."""
    return ForkServer("testbed.agent.main", site=False)


@cache
def daemons() -> ForkServer:
    """Return the fork server of daemons."""
    return ForkServer("testbed.forked_daemon", site=True)
