"""The wish to stop, which a signal may express at any moment."""

import select
import signal
import socket
from types import FrameType


class Stop:
    """What ``threading.Event`` is, for one thread that waits, and safe with signals.

    Python's handlers run in the main thread, between any two of its instructions. A signal that
    comes when that thread has looked for signals last, and is about to wait for a lock, is
    handled when the wait is over: never. (And one that comes in ``Event.wait``, which holds the
    event's lock, waits for that lock itself.) So the wait is for a socket, and the C handler
    writes to it at once (``signal.set_wakeup_fd``), whatever Python is doing.
    """

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)  # noqa: FBT003 - the only way to say it
        self._on = False

    def on(self, *numbers: signal.Signals) -> None:
        """Take these signals for the wish from now on; only the main thread may ask for it."""
        self._on = True
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _ignore)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the wish, so long or for ever; tell whether there is one."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def close(self) -> None:
        """Close the socket; signals wake nobody any more."""
        if self._on:
            signal.set_wakeup_fd(-1)
        self._read.close()
        self._write.close()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """What Python runs later, when the wish has been expressed long since."""
