"""Writes log lines to stderr from a dedicated thread, so that logging never blocks.

stderr is often a pipe, and a write blocks while its reader does not read. So lines wait in a queue
that is bounded in lines and bytes. When the queue is full, new lines are dropped: the queued lines
show how the problem began, and a ``log.lost`` line takes the place of the dropped ones. A quarter
of the queue is reserved for warnings and errors.

``O_NONBLOCK`` is no alternative: it is a property of the open file, which other processes share.
"""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

from svcproxy import limits, threads
from svcproxy.refusals import REFUSALS

_STDERR = 2
_TICK_SECONDS = 1.0
_FLUSH_STEP_SECONDS = 0.002


class QueuedWriter:
    """A bounded queue of finished lines, and the thread that writes them.

    Args:
        lost_line: renders the line that reports how many lines were dropped.
        tick: called when the queue has been written; called again about once a second for as
            long as it returns true.
    """

    def __init__(self, lost_line: Callable[[int], bytes], tick: Callable[[], bool]) -> None:
        self._lost_line = lost_line
        self._tick = tick
        # Reentrant: the garbage collector may run a finalizer that logs while we hold the lock.
        self._lock = threading.RLock()
        self._wake = threading.Lock()
        self._wake.acquire()
        self._asleep = False
        self._queue: deque[bytes | int] = deque()
        self._bytes = 0
        self._lost = 0
        self._busy = False
        self._flush_timed_out = False
        self._recent: deque[bytes] = deque()
        self._recent_bytes = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threads.spawn(self._run, "log")

    def __call__(self, line: bytes, *, urgent: bool = False) -> None:
        """Queue ``line``, or drop it if the queue is full. Never blocks.

        Args:
            line: a finished line, newline included.
            urgent: whether it may use the part of the queue reserved for warnings and errors.
        """
        size = len(line)
        part = 1.0 if urgent else 0.75
        with self._lock:
            if (
                len(self._queue) >= part * limits.LOG_QUEUE_LINES
                or self._bytes + size > part * limits.LOG_QUEUE_BYTES
            ):
                self._lost += 1
                REFUSALS.count("log", "full")
                return
            if self._lost:
                self._queue.append(self._lost)
                self._lost = 0
            self._queue.append(line)
            self._bytes += size
            if self._asleep:
                self._asleep = False
                self._wake.release()

    def flush(self, seconds: float = limits.LOG_FLUSH_SECONDS) -> None:
        """Wait until all lines are written, at most ``seconds``. Uses no locks."""
        if (
            self._thread is None
            or threading.current_thread() is self._thread
            or self._flush_timed_out
        ):
            return
        until = time.monotonic() + seconds
        while (self._queue or self._busy or self._lost) and self._thread.is_alive():
            if time.monotonic() >= until:
                self._flush_timed_out = True  # further calls would only delay the exit
                return
            time.sleep(_FLUSH_STEP_SECONDS)

    def _run(self) -> None:
        ticking = False
        while True:
            item = self._next()
            if item is None:
                self._sleep(_TICK_SECONDS if ticking else -1.0)
                ticking = self._tick()
                continue
            line = item if isinstance(item, bytes) else self._lost_line(item)
            self._remember(line)
            _write(line)
            with self._lock:
                self._bytes -= len(item) if isinstance(item, bytes) else 0
                self._busy = False

    def recent(self) -> bytes:
        """Return the last lines; safe from any thread."""
        with self._lock:
            lines = tuple(self._recent)
        return b"".join(lines)

    def _remember(self, line: bytes) -> None:
        recent = self._recent
        with self._lock:
            recent.append(line)
            self._recent_bytes += len(line)
            while (
                len(recent) > limits.LOG_RECENT_LINES
                or self._recent_bytes > limits.LOG_RECENT_BYTES
            ):
                self._recent_bytes -= len(recent.popleft())

    def _next(self) -> bytes | int | None:
        """Take the next line, or the number of dropped lines; ``None`` if the queue is empty."""
        with self._lock:
            if self._queue:
                self._busy = True
                return self._queue.popleft()
            if self._lost:
                lost, self._lost, self._busy = self._lost, 0, True
                return lost
            self._asleep = True
            return None

    def _sleep(self, seconds: float) -> None:
        if not self._wake.acquire(timeout=seconds):
            with self._lock:
                if not self._asleep:  # another thread has just released the lock
                    self._wake.acquire()
                self._asleep = False


def _write(line: bytes) -> None:
    """Write a whole line to file descriptor 2; drop it if the reader is gone."""
    # Not through sys.stderr: data that it could not flush would make the interpreter's exit fail
    while line:
        try:
            line = line[os.write(_STDERR, line) :]
        except BlockingIOError:  # the parent process has made it non-blocking
            poll = select.poll()
            poll.register(_STDERR, select.POLLOUT)
            poll.poll()
        except OSError:
            return
