"""Threads whose end ends the process.

A daemon that lost a thread looks alive and does nothing. If the target of such a thread raises,
whatever it raises, the process ends with status 1 and its supervisor starts it again. The rules in
the kernel stay.
"""

import os
import select
import threading
from collections.abc import Callable

_STDERR = 2
_LONGEST_LINE = 512  # below PIPE_BUF: written whole or not at all


def spawn(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread that ends the process if ``target`` raises.

    Args:
        target: the body of the thread; it may return.
        name: the name of the thread, for the log and for ``/livez``.
    """

    def body() -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - a MemoryError must not go unnoticed either
            die(f"thread {name} failed: {type(error).__name__}")

    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread


def die(reason: str) -> None:
    """End the process at once with status 1; say why if stderr takes it without blocking.

    It must work when memory or descriptors have run out, so it uses neither the log nor locks.
    """
    try:
        line = f"fatal: {reason}\n".encode()[:_LONGEST_LINE]
        if select.select([], [_STDERR], [], 0)[1]:
            os.write(_STDERR, line)
    finally:
        os._exit(1)
