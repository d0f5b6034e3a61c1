"""Which Service ports are held back, and when each is retried. The caller supplies the time."""

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

    Each is retried on its own: ``first`` seconds after its first failure, then after waits that
    double up to ``longest``. A port leaves the quarantine when an attempt succeeds, when it changes,
    and when it is deleted. All times are seconds of one monotonic clock.

    Args:
        first: seconds until the first retry.
        longest: the longest wait in seconds.
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

    def reasons(self, limit: int) -> dict[ServicePortName, str]:
        """Return the reasons of at most ``limit`` ports; safe from any thread."""
        return {name: held.reason for name, held in list(self._held.items())[:limit]}

    @property
    def next_due(self) -> float:
        """When the first retry is due; infinity if no port is held back."""
        return self._next_due

    def due(self, now: float) -> list[ServicePortName]:
        """Return the Service ports whose retry is due ``now``."""
        if now < self._next_due:
            return []
        return [name for name, held in self._held.items() if held.retry_at <= now]

    def release(self, names: Iterable[ServicePortName]) -> None:
        """Forget Service ports that succeeded, changed or were deleted."""
        if self._held:
            for name in names:
                self._held.pop(name, None)
            self._update_next_due()

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
            The new ports, and those with a new reason: these have not been reported yet.
        """
        if not (refused or self._held):
            return []
        succeeded = self._held.keys() if attempted is None else attempted
        for name in [name for name in succeeded if name not in refused]:
            self._held.pop(name, None)
        unreported = []
        for name, reason in refused.items():
            known = self._held.get(name)
            if known is None or known.reason != reason:
                unreported.append((name, reason))
            attempts = 1 if known is None else known.attempts + 1
            wait = min(self._first * 2.0 ** min(attempts - 1, 16), self._longest)
            self._held[name] = _Held(reason, attempts, now + wait)
        self._update_next_due()
        return unreported

    def _update_next_due(self) -> None:
        self._next_due = min((held.retry_at for held in self._held.values()), default=math.inf)
