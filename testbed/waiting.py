"""Waits for conditions, with time-outs that fit the machine."""

import time
from collections.abc import Callable
from typing import TypeVar

from testbed import uml, vm

T = TypeVar("T")

SLOW = uml.inside() or vm.inside()
"""Whether this process runs in a guest, where programs take seconds to start."""
PATIENCE = 4.0 if SLOW else 1.0
"""The factor for time-outs on this machine: starting programs takes long in a guest, all the more
while other tests run on the host."""


def eventually(
    check: Callable[[], T], what: str = "", *, timeout: float = 5.0, every: float = 0.01
) -> T:
    """Call ``check`` until it returns a true value, and return that value.

    An ``AssertionError`` of ``check`` counts as "not yet", so ``check`` can say what is missing.

    Args:
        check: the condition.
        what: the condition in words, for the error.
        timeout: seconds to wait, to be multiplied by ``PATIENCE``.
        every: seconds between calls.

    Raises:
        AssertionError: the condition did not become true in time; the message has the last value
            or error of ``check``.
    """
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    while True:
        try:
            seen: object = check()
            if seen:
                return seen  # type: ignore[return-value]
        except AssertionError as error:
            seen = error
        if time.monotonic() >= deadline:
            raise AssertionError(
                f"not within {timeout:g} s: {what or 'the check'}; last seen: {seen!r}"
            )
        time.sleep(every)
