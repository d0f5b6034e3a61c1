"""Keeps a value for a time that depends on how long it took to compute."""

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")

_FACTOR = 5.0


class Kept(Generic[Value]):
    """A value that is computed again when it may be outdated, but not all the time.

    It is used for at least ``seconds``, and for at least five times as long as it took to compute.
    So requests without a pause use at most a sixth of a processor's time for it, and of the
    daemon's time for its part.

    Args:
        seconds: the shortest time for which a value is used.
        clock: returns monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._value: Value | None = None
        self._key: Hashable = None
        self._until = float("-inf")

    def get(self, compute: Callable[[], Value], key: Hashable = None) -> Value:
        """Return the kept value, or compute it.

        Args:
            compute: computes the value.
            key: what the value depends on; while it is the same and not ``None``, the value does
                not become outdated.
        """
        value, now = self._value, self._clock()
        if value is not None and (now < self._until or (key is not None and key == self._key)):
            return value
        # Dropped first, so that the old and the new value do not need memory at the same time
        self._value = value = None
        value = compute()
        ended = self._clock()
        self._value, self._key = value, key
        self._until = ended + max(self._seconds, _FACTOR * (ended - now))
        return value
