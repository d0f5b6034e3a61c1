"""Open-loop load: new connections at a fixed rate, regardless of earlier ones."""

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections import deque

from testbed.agent.sockets import PING, Result, Target, answer, failure, open_socket

_IN_PROGRESS = {0, errno.EINPROGRESS}


class Attempt:
    """One connection of a load; ``sock`` is ``None`` once it has ended."""

    __slots__ = ("began", "sent", "sock")

    def __init__(self, began: float) -> None:
        self.began = began
        self.sent = False
        self.sock: socket.socket | None = None


class Load(threading.Thread):
    """Starts ``rate`` connections a second for ``duration`` seconds and records each result.

    ``records`` has one array per connection: the monotonic time of its start, then the result as
    in ``testbed.agent.sockets``.

    The loop makes few system calls. In User Mode Linux each takes about 10 µs, reading the clock
    included, and hundreds of connections a second must leave CPU time for the code under test.
    """

    def __init__(self, target: Target, rate: float, duration: float) -> None:
        super().__init__(daemon=True)
        self.records: list[Result] = []
        self.error = ""
        self.stop = threading.Event()
        self._target = target
        self._address = (target["address"], target["port"])
        self._timeout = float(target["timeout"])
        self._interval = 1.0 / rate
        self._count = max(1, round(duration * rate))
        self._epoll = select.epoll()
        self._open: deque[Attempt] = deque()
        self._watched: dict[int, Attempt] = {}

    def run(self) -> None:
        """Start all connections and wait until they have ended."""
        try:
            self._loop()
        except Exception as error:  # noqa: BLE001 - every error is reported to the owner
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self._epoll.close()

    def _loop(self) -> None:
        began = now = time.monotonic()
        started = 0
        while started < self._count or self._open:
            if self.stop.is_set():
                self._count = started
            while started < self._count and now >= began + started * self._interval:
                self._start(now)
                started += 1
            due = self._expire(now)
            if started < self._count:
                due = min(due, began + started * self._interval)
            events = self._epoll.poll(max(0.0, due - now))
            now = time.monotonic()
            for descriptor, _ in events:
                self._ready(self._watched[descriptor], now)

    def _start(self, now: float) -> None:
        attempt = Attempt(now)
        self._open.append(attempt)
        try:
            attempt.sock = sock = open_socket(self._target, blocking=False)
            code = sock.connect_ex(self._address)
            if code not in _IN_PROGRESS:
                raise OSError(code, os.strerror(code))  # noqa: TRY301 - one way to fail
            self._send(attempt)
        except OSError as error:
            self._finish(attempt, failure(error, attempt.sock, time.monotonic() - now))
            return
        # Edge-triggered and registered once; closing the socket removes it.
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self._watched[sock.fileno()] = attempt

    def _send(self, attempt: Attempt) -> None:
        assert attempt.sock is not None
        # All machines are namespaces of one host, so the connection may be established already.
        with contextlib.suppress(BlockingIOError):
            attempt.sock.send(PING)
            attempt.sent = True

    def _expire(self, now: float) -> float:
        # All attempts have the same time limit, so the oldest one expires first.
        while self._open:
            attempt = self._open[0]
            if attempt.sock is None:
                self._open.popleft()
            elif attempt.began + self._timeout <= now:
                self._finish(attempt, ["timed out", now - attempt.began])
            else:
                # Wake up often enough to notice stop() soon.
                return min(attempt.began + self._timeout, now + 0.05)
        return now + 0.05

    def _ready(self, attempt: Attempt, now: float) -> None:
        sock, seconds = attempt.sock, now - attempt.began
        if sock is None:
            return
        try:
            if not attempt.sent:
                self._send(attempt)
            line = sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(attempt, failure(error, sock, seconds))
            return
        self._finish(attempt, answer(line, seconds) if line else ["broken", seconds, "closed"])

    def _finish(self, attempt: Attempt, result: Result) -> None:
        if attempt.sock is not None:
            self._watched.pop(attempt.sock.fileno(), None)
            attempt.sock.close()
            attempt.sock = None
        self.records.append([attempt.began, *result])
