"""The wish to stop, which a signal handler may express at any moment."""

from queue import Empty, SimpleQueue


class Stop:
    """What ``threading.Event`` is, for one thread that waits, and safe in a signal handler.

    A handler runs in the main thread, between any two of its instructions. If that thread is in
    ``Event.wait`` and holds the event's lock, ``Event.set`` waits for it for ever.
    ``SimpleQueue.put`` is made for such interruptions.
    """

    def __init__(self) -> None:
        self._wishes: SimpleQueue[None] = SimpleQueue()
        self._known = False

    def set(self) -> None:
        """Wish to stop."""
        self._wishes.put(None)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the wish, so long or for ever; tell whether there is one."""
        if not self._known:
            try:
                self._wishes.get(timeout=seconds)
            except Empty:
                return False
            self._known = True
        return True
