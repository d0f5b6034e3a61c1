"""Waiting for something to become true."""

import time
from collections.abc import Callable
from typing import TypeVar

from testbed import uml, vm

T = TypeVar("T")

SLOW = uml.inside() or vm.inside()
"""Whether this is a guest, where programs take seconds to start."""
PATIENCE = 4.0 if SLOW else 1.0
"""By how much to multiply what something may take here; it may wait for the start of programs,
and in a guest that takes long, the more so as this machine is busy with other tests."""


def eventually(
    check: Callable[[], T], what: str = "", *, timeout: float = 5.0, every: float = 0.01
) -> T:
    """Call ``check`` until it returns something true, and return that.

    An ``AssertionError`` of ``check`` counts as "not yet".

    Raises:
        AssertionError: it did not within ``timeout`` seconds (times ``PATIENCE``); the message says what it saw last.
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
