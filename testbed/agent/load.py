"""Open-loop load: new connections at a fixed rate, whatever becomes of the earlier ones."""

import errno
import os
import selectors
import socket
import threading
import time
from collections import deque

from testbed.agent.sockets import PING, Result, Target, answer, failure, open_socket

_IN_PROGRESS = {0, errno.EINPROGRESS}


class Attempt:
    """One connection of a load; ``sock`` is ``None`` once it is over."""

    __slots__ = ("began", "sock", "watched")

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.sock: socket.socket | None = None
        self.watched = False


class Load(threading.Thread):
    """Starts ``rate`` connections a second for ``duration`` seconds and records each result.

    ``records`` has one array for each: the monotonic time at its start, then the result as in
    ``testbed.agent.sockets``.
    """

    def __init__(self, target: Target, rate: float, duration: float) -> None:
        super().__init__(daemon=True)
        self.records: list[Result] = []
        self.error = ""
        self.stop = threading.Event()
        self._target = target
        self._timeout = float(target["timeout"])
        self._interval = 1.0 / rate
        self._count = max(1, round(duration * rate))
        self._selector = selectors.DefaultSelector()
        self._open: deque[Attempt] = deque()

    def run(self) -> None:
        """Make all connections and wait for their ends."""
        try:
            self._loop()
        except Exception as error:  # noqa: BLE001 - whatever it is, the owner gets to see it
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self._selector.close()

    def _loop(self) -> None:
        began = time.monotonic()
        started = 0
        while started < self._count or self._open:
            now = time.monotonic()
            if self.stop.is_set():
                self._count = started
            while started < self._count and now >= began + started * self._interval:
                self._start()
                started += 1
            due = self._expire(time.monotonic())
            if started < self._count:
                due = min(due, began + started * self._interval)
            for key, events in self._selector.select(max(0.0, due - time.monotonic())):
                self._ready(key.data, events)

    def _start(self) -> None:
        attempt = Attempt()
        try:
            attempt.sock = open_socket(self._target)
            attempt.sock.settimeout(0.0)
            code = attempt.sock.connect_ex((self._target["address"], self._target["port"]))
            if code not in _IN_PROGRESS:
                raise OSError(code, os.strerror(code))  # noqa: TRY301 - one way to fail
            if self._target["proto"] == "udp":
                attempt.sock.send(PING)
        except OSError as error:
            self._fail(attempt, error)
            return
        events = selectors.EVENT_READ
        if self._target["proto"] == "tcp":
            events = selectors.EVENT_WRITE
        self._selector.register(attempt.sock, events, attempt)
        attempt.watched = True
        self._open.append(attempt)

    def _expire(self, now: float) -> float:
        # All attempts have the same time limit: the oldest one is always the next to expire.
        while self._open:
            attempt = self._open[0]
            if attempt.sock is None:
                self._open.popleft()
            elif attempt.began + self._timeout <= now:
                self._finish(attempt, ["timed out", now - attempt.began])
            else:
                # Short naps let stop() be seen soon.
                return min(attempt.began + self._timeout, now + 0.05)
        return now + 0.05

    def _ready(self, attempt: Attempt, events: int) -> None:
        sock = attempt.sock
        if sock is None:
            return
        try:
            if events & selectors.EVENT_WRITE:
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))  # noqa: TRY301
                sock.send(PING)
                self._selector.modify(sock, selectors.EVENT_READ, attempt)
                return
            line = sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(attempt, error)
            return
        seconds = time.monotonic() - attempt.began
        self._finish(attempt, answer(line, seconds) if line else ["broken", seconds, "closed"])

    def _fail(self, attempt: Attempt, error: OSError) -> None:
        self._finish(attempt, failure(error, attempt.sock, time.monotonic() - attempt.began))

    def _finish(self, attempt: Attempt, result: Result) -> None:
        if attempt.sock is not None:
            if attempt.watched:
                self._selector.unregister(attempt.sock)
            attempt.sock.close()
            attempt.sock = None
        self.records.append([attempt.began, *result])
