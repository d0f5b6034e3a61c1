"""Starts the daemon's threads: a thread that fails ends the process, a thread that hangs is reported.

A daemon that has lost a thread looks alive but does nothing. So if the target of a thread raises
any exception, the process exits with status 1 and its supervisor restarts it. The rules in the
kernel stay.

A thread that hangs raises nothing. So each thread announces how long its next step may take
(``working``), or that it waits without a time limit (``waiting``). ``stalled`` lists overdue
threads; ``/livez`` answers 503 while there are any.
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
_fatal_exit_actions: list[Callable[[], object]] = []


def spawn(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread that ends the process if ``target`` raises.

    Args:
        target: the body of the thread; it may return.
        name: the thread's name in the log and on ``/livez``.

    Returns:
        The started thread.

    Raises:
        RuntimeError: the system cannot start another thread.
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
    """Announce that the calling thread reports again within ``seconds``; later counts as stalled."""
    progress = _current.progress
    if progress is not None:
        progress.deadline = time.monotonic() + seconds


def waiting() -> None:
    """Announce that the calling thread waits without a time limit."""
    progress = _current.progress
    if progress is not None:
        progress.deadline = math.inf


def stalled() -> list[str]:
    """Return the names of the threads that are overdue, in no particular order."""
    now = time.monotonic()
    return [progress.name for progress in tuple(_threads) if progress.deadline < now]


def on_fatal_exit(action: Callable[[], object]) -> None:
    """Call ``action`` before ``die`` ends the process; it must finish in bounded time."""
    if action not in _fatal_exit_actions:
        _fatal_exit_actions.append(action)


def die(reason: str) -> None:
    """Exit immediately with status 1; write the reason to stderr unless that would block.

    This must work without free memory or file descriptors, so it uses neither the log nor locks.

    Args:
        reason: why; cut to one line of at most 512 bytes.
    """
    try:
        for action in _fatal_exit_actions:
            action()
        line = f"fatal: {_printable(reason)}\n".encode("ascii", "backslashreplace")
        if select.select([], [_STDERR], [], 0)[1]:
            os.write(_STDERR, line[: _LONGEST_LINE - 1].rstrip(b"\n") + b"\n")
    finally:
        os._exit(1)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the process is exiting
        return ""


def _printable(text: str) -> str:
    """Cut and escape text, so that it can neither start a new line nor control a terminal."""
    text = text[:_LONGEST_LINE]
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
