"""Starts the threads of the daemon; a thread that fails ends the process, one that hangs is reported.

A daemon that lost a thread looks alive and does nothing. So if the target of a thread raises any
exception, the process ends with status 1, and its supervisor restarts it. The rules in the kernel
stay.

A thread that hangs raises nothing. So each thread announces how long its next step may take
(``working``), or that it waits without a limit (``waiting``). ``stalled`` names the threads that are
overdue; ``/livez`` answers 503 while there are any.
"""

import math
import os
import select
import threading
import time
from collections.abc import Callable

_STDERR = 2
_LONGEST_LINE = 512  # below PIPE_BUF: written whole or not at all


class _Progress:
    """A thread, and the monotonic time by which it must report again (``deadline``)."""

    __slots__ = ("deadline", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.deadline = math.inf


class _Current(threading.local):
    """The progress of the calling thread; ``None`` in threads that ``spawn`` did not start."""

    progress: _Progress | None = None


_current = _Current()
_threads: dict[_Progress, None] = {}
_before_death: list[Callable[[], object]] = []


def spawn(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread that ends the process if ``target`` raises.

    Args:
        target: the body of the thread; it may return.
        name: the name of the thread, for the log and for ``/livez``.
    """
    progress = _Progress(name)

    def body() -> None:
        try:
            _current.progress = progress
            target()
        except BaseException as error:  # noqa: BLE001 - a MemoryError ends the process as well
            die(f"thread {name} failed: {type(error).__name__}: {_text(error)}")
        progress.deadline = math.inf
        _threads.pop(progress, None)

    thread = threading.Thread(target=body, name=name, daemon=True)
    _threads[progress] = None
    try:
        thread.start()
    except BaseException:
        del _threads[progress]
        raise
    return thread


def working(seconds: float) -> None:
    """Announce that the calling thread reports again within ``seconds``, unless it hangs."""
    progress = _current.progress
    if progress is not None:
        progress.deadline = time.monotonic() + seconds


def waiting() -> None:
    """Announce that the calling thread waits without a limit."""
    progress = _current.progress
    if progress is not None:
        progress.deadline = math.inf


def stalled() -> list[str]:
    """Return the names of the threads that are overdue, in no particular order."""
    now = time.monotonic()
    return [progress.name for progress in tuple(_threads) if progress.deadline < now]


def before_death(action: Callable[[], object]) -> None:
    """Have ``action`` called before ``die`` ends the process; it must take a bounded time."""
    if action not in _before_death:
        _before_death.append(action)


def die(reason: str) -> None:
    """End the process at once with status 1; write the reason if stderr does not block.

    This must work when memory or descriptors have run out, so it uses neither the log nor locks.
    """
    try:
        for action in _before_death:
            action()
        line = f"fatal: {_printable(reason)}\n".encode("ascii", "backslashreplace")
        if select.select([], [_STDERR], [], 0)[1]:
            os.write(_STDERR, line[: _LONGEST_LINE - 1].rstrip(b"\n") + b"\n")
    finally:
        os._exit(1)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - this is on the way out
        return ""


def _printable(text: str) -> str:
    """Cut and escape text, so that it can neither begin a line nor control a terminal."""
    text = text[:_LONGEST_LINE]
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
