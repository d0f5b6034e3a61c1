"""Which Service ports are held back, and when each is retried. Pure: the caller has the clock."""

import math
from collections.abc import Iterable, KeysView, Mapping

import msgspec

from svcproxy.model.names import ServicePortName


class _Held(msgspec.Struct):
    """A Service port that is held back: the reason, the number of failures, and the next retry."""

    reason: str
    attempts: int
    retry_at: float


class Quarantine:
    """Service ports that failed on their own while all others were programmed.

    Each is retried on its own: ``first`` seconds after its first failure, then after twice as long
    each time, up to ``longest``. It leaves the quarantine when an attempt succeeds, when the
    Service port changes, and when it is deleted. All times are seconds of one monotonic clock.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = max(first, longest)
        self._held: dict[ServicePortName, _Held] = {}
        self._next_due = math.inf

    def __len__(self) -> int:
        return len(self._held)

    @property
    def names(self) -> KeysView[ServicePortName]:
        """The Service ports that are held back."""
        return self._held.keys()

    @property
    def next_due(self) -> float:
        """When the first of them is due; infinity if none is held back."""
        return self._next_due

    def due(self, now: float) -> list[ServicePortName]:
        """Return those whose retry is due ``now``."""
        if now < self._next_due:
            return []
        return [name for name, held in self._held.items() if held.retry_at <= now]

    def release(self, names: Iterable[ServicePortName]) -> None:
        """Forget Service ports that succeeded, changed or were deleted."""
        if self._held:
            for name in names:
                self._held.pop(name, None)
            self._renew()

    def note(
        self,
        now: float,
        refused: Mapping[ServicePortName, str],
        attempted: Iterable[ServicePortName] | None,
    ) -> list[tuple[ServicePortName, str]]:
        """Note the result of a sync.

        Args:
            now: when it ended.
            refused: the Service ports that failed, with the reason in words.
            attempted: the Service ports that the sync included; ``None`` for all.

        Returns:
            The new ones, and those with a new reason: these have not been reported yet.
        """
        if not (refused or self._held):
            return []
        done = self._held.keys() if attempted is None else attempted
        for name in [name for name in done if name not in refused]:
            self._held.pop(name, None)
        news = []
        for name, reason in refused.items():
            known = self._held.get(name)
            if known is None or known.reason != reason:
                news.append((name, reason))
            attempts = 1 if known is None else known.attempts + 1
            wait = min(self._first * 2.0 ** min(attempts - 1, 16), self._longest)
            self._held[name] = _Held(reason, attempts, now + wait)
        self._renew()
        return news

    def _renew(self) -> None:
        self._next_due = min((held.retry_at for held in self._held.values()), default=math.inf)
