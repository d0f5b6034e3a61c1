"""Keeps a value for a time that depends on how long it took to compute."""

import os
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")

_FACTOR = 5.0


def processor_seconds() -> float:
    """Return the processor time of this process and of the programs that it has run, in seconds."""
    return sum(os.times()[:4])


class Kept(Generic[Value]):
    """A value that is computed again when it may be outdated, but not all the time.

    It is used for at least ``seconds``, and for at least five times the processor time that it took
    to compute. So requests without a pause use at most a fifth of a processor for it.

    Args:
        seconds: the shortest time for which a value is used.
        clock: returns monotonic seconds.
        spent: returns the seconds that were spent on computing since any moment.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = processor_seconds,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._spent = spent
        self._value: Value | None = None
        self._until = float("-inf")

    def get(self, compute: Callable[[], Value]) -> Value:
        """Return the kept value, or compute it."""
        value = self._value
        if value is not None and self._clock() < self._until:
            return value
        # Dropped first, so that the old and the new value do not need memory at the same time
        self._value = value = None
        began = self._spent()
        value = compute()
        self._value = value
        self._until = self._clock() + max(self._seconds, _FACTOR * (self._spent() - began))
        return value
