"""A stop request that signals set and one thread waits for."""

import select
import signal
import socket
from types import FrameType


class StopSignal:
    """Like ``threading.Event`` for one waiting thread, but safe to set from a signal.

    Python runs signal handlers in the main thread, between bytecode instructions. A signal that
    arrives just before that thread blocks on a lock is handled only after the lock is acquired,
    which may be never. (A signal that arrives inside ``Event.wait`` deadlocks on the event's own
    lock.) So ``wait`` polls a socket, and the C-level handler writes to that socket immediately
    (``signal.set_wakeup_fd``), regardless of what the interpreter does.
    """

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)  # noqa: FBT003 - setblocking has no keyword
        self._installed = False

    def install(self, *numbers: signal.Signals) -> None:
        """Treat these signals as stop requests from now on; call this in the main thread only."""
        self._installed = True
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _ignore)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for a stop request, at most ``seconds`` if given; return whether there is one."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def close(self) -> None:
        """Close the sockets; later signals no longer wake ``wait``."""
        if self._installed:
            signal.set_wakeup_fd(-1)
        self._read.close()
        self._write.close()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the C-level handler has already written to the wake-up socket."""
