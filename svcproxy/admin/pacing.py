"""Paces the work for clients of the admin socket, so that changes do not wait for it."""

import time
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

_REST = 9.0
"""Seconds of rest for each second of work."""

_SHORTEST_REST_SECONDS = 0.002
"""A change takes 2 to 3 ms in nftables mode: it waits for one piece of work, rarely for two."""

_LONGEST_REST_SECONDS = 0.1

Result = TypeVar("Result")


class Pacer:
    """Runs one piece of work at a time, each followed by a rest of nine times its CPU time.

    Threads of Python take turns: while one computes, all others wait. So the work for all clients
    together takes at most a tenth of the interpreter's time, in pieces that should be short.
    """

    def __init__(self) -> None:
        self._lock = Lock()

    def run(self, work: Callable[[], Result]) -> tuple[Result, float]:
        """Run a piece of work, then rest; return its result and its CPU seconds."""
        with self._lock:
            began = time.thread_time()
            took = 0.0
            try:
                result = work()
            finally:
                took = time.thread_time() - began
                rest = max(_SHORTEST_REST_SECONDS, _REST * took)
                time.sleep(min(rest, _LONGEST_REST_SECONDS))
            return result, took
