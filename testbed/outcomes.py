"""The outcomes of connection attempts: an answer, or a kind of failure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """An echo server answered: its name, and the source address that it saw."""

    seconds: float
    server: str
    source: str
    source_port: int

    @property
    def label(self) -> str:
        """The server's name."""
        return self.server


@dataclass(frozen=True, slots=True)
class Refused:
    """An ICMP port unreachable (``how`` is ``icmp``) or a TCP reset (``reset``)."""

    seconds: float
    how: str
    label = "refused"


@dataclass(frozen=True, slots=True)
class TimedOut:
    """There was no answer in time."""

    seconds: float
    label = "timed out"


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Another ICMP error, or the client's kernel refused to send (``EPERM``, ``ENETUNREACH``)."""

    seconds: float
    reason: str
    label = "unreachable"


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection was established, then ended: ``reset`` or ``closed``."""

    seconds: float
    reason: str
    label = "broken"


Outcome = Answer | Refused | TimedOut | Unreachable | Broken

_KINDS: dict[str, type[Outcome]] = {
    "answer": Answer,
    "refused": Refused,
    "timed out": TimedOut,
    "unreachable": Unreachable,
    "broken": Broken,
}


def decode(result: list[Any]) -> Outcome:
    """Decode a helper's result array."""
    return _KINDS[result[0]](*result[1:])


@dataclass(frozen=True, slots=True)
class Sample:
    """One connection of a load; ``at`` is ``time.monotonic()`` at its start."""

    at: float
    outcome: Outcome

    @property
    def until(self) -> float:
        """``time.monotonic()`` at its end."""
        return self.at + self.outcome.seconds


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The outcomes of a load's connections, ordered by start."""

    samples: tuple[Sample, ...]

    @property
    def total(self) -> int:
        """The number of connections started."""
        return len(self.samples)

    @property
    def ok(self) -> int:
        """The number of connections answered."""
        return sum(isinstance(sample.outcome, Answer) for sample in self.samples)

    @property
    def failures(self) -> list[Sample]:
        """The connections that were not answered."""
        return [s for s in self.samples if not isinstance(s.outcome, Answer)]

    @property
    def labels(self) -> Counter[str]:
        """How often each server answered and each failure happened."""
        return count(sample.outcome for sample in self.samples)

    @property
    def rate(self) -> float:
        """Connections started per second."""
        if len(self.samples) < 2:
            return 0.0
        return (len(self.samples) - 1) / (self.samples[-1].at - self.samples[0].at)

    def last_answer(self, server: str) -> float | None:
        """``time.monotonic()`` at the end of the last answer from ``server``."""
        return max(
            (s.until for s in self.samples if s.outcome.label == server),
            default=None,
        )

    def between(self, start: float, end: float = float("inf")) -> "LoadResult":
        """The part that started between two monotonic times."""
        return LoadResult(tuple(s for s in self.samples if start <= s.at < end))


def count(outcomes: Iterable[Outcome]) -> Counter[str]:
    """How often each server answered (by name) and each failure happened (by label)."""
    return Counter(outcome.label for outcome in outcomes)
