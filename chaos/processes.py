"""Samples memory, descriptors and threads of processes, and checks that they stay constant."""

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testbed.daemon import Daemon, DaemonError
from testbed.metrics import Metrics

_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Sample:
    """The resources of a process at one time; ``at`` is monotonic, ``rss`` in bytes."""

    at: float
    rss: int
    descriptors: int
    threads: int


def sample(pid: int) -> Sample | None:
    """Sample a process; ``None`` if it does not exist."""
    folder = Path("/proc", str(pid))
    try:
        status = dict(
            line.split(":", 1)
            for line in (folder / "status")
            .read_text(encoding="utf-8", errors="replace")
            .split("\n")
            if ":" in line
        )
        descriptors = len(list((folder / "fd").iterdir()))
    except OSError:
        return None
    if "VmRSS" not in status:  # a zombie
        return None
    rss = int(status["VmRSS"].split()[0]) * 1024
    return Sample(time.monotonic(), rss, descriptors, int(status["Threads"]))


@dataclass
class Generation:
    """One process of the daemon, from start to exit."""

    pid: int
    began: float
    samples: list[Sample] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    ended_by: str = ""

    @property
    def seconds(self) -> float:
        """The time between the first and the last sample."""
        return self.samples[-1].at - self.began if self.samples else 0.0

    def scrape(self, daemon: Daemon) -> None:
        """Store the current metrics; the last ones of a process are used."""
        with contextlib.suppress(DaemonError):
            self.metrics = daemon.metrics()


@dataclass(frozen=True)
class Steady:
    """How the resources of a process changed after its warm-up.

    Memory is compared by medians of the first and the last quarter of the time after warm-up,
    descriptors and threads by minima: their number while no request is being served.
    """

    seconds: float
    warm_mb: float
    end_mb: float
    slope_mb_per_hour: float
    warm_descriptors: int
    end_descriptors: int
    warm_threads: int
    end_threads: int

    @property
    def growth(self) -> float:
        """The growth of memory, relative to that after warm-up."""
        return (self.end_mb - self.warm_mb) / self.warm_mb


def steady(generation: Generation, warm_up: float) -> Steady | None:
    """Compare the resources of a process after ``warm_up`` seconds with those at its end.

    Returns:
        The comparison, or ``None`` if the process did not run long enough.
    """
    samples = [s for s in generation.samples if s.at >= generation.began + warm_up]
    quarter = len(samples) // 4
    if quarter < 2:
        return None
    first, last = samples[:quarter], samples[-quarter:]
    return Steady(
        seconds=generation.seconds,
        warm_mb=_megabytes(first),
        end_mb=_megabytes(last),
        slope_mb_per_hour=_slope(samples),
        warm_descriptors=min(s.descriptors for s in first),
        end_descriptors=min(s.descriptors for s in last),
        warm_threads=min(s.threads for s in first),
        end_threads=min(s.threads for s in last),
    )


def _megabytes(samples: Sequence[Sample]) -> float:
    return statistics.median(s.rss for s in samples) / _MEGABYTE


def _slope(samples: Sequence[Sample]) -> float:
    line = statistics.linear_regression(
        [s.at / 3600 for s in samples], [s.rss / _MEGABYTE for s in samples]
    )
    return line.slope
