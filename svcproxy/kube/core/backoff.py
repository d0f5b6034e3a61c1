"""Exponential back-off between attempts."""

from collections.abc import Callable


class Backoff:
    """Exponential back-off with full jitter, so that a thousand nodes do not retry together.

    The rule is "full jitter" of the AWS Architecture Blog's "Exponential Backoff And Jitter".

    Args:
        uniform: draws a number between its two arguments (``random.uniform``).
        first: the upper limit of the first wait, in seconds.
        longest: the upper limit of all waits, in seconds.
    """

    def __init__(
        self, uniform: Callable[[float, float], float], *, first: float = 0.2, longest: float = 30.0
    ) -> None:
        self._uniform = uniform
        self._first = first
        self._longest = longest
        self._ceiling = min(first, longest)

    def next(self) -> float:
        """Return the seconds to wait after a failure, and double the limit of the next wait."""
        wait = self._uniform(0.0, self._ceiling)
        self._ceiling = min(self._ceiling * 2, self._longest)
        return wait

    def reset(self) -> None:
        """Start again at the first wait, after a success."""
        self._ceiling = min(self._first, self._longest)
