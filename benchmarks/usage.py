"""What a process costs, as the kernel counts it."""

import os
import time
from pathlib import Path

import msgspec

_TICKS = os.sysconf("SC_CLK_TCK")


class Usage(msgspec.Struct, frozen=True):
    """What a process has used up to a moment.

    Attributes:
        at: ``time.monotonic()`` of that moment.
        cpu: seconds of CPU time, user and system, its own and that of its children that have
            ended (the kernel counts in steps of 10 ms).
        rss: resident memory in bytes.
        peak: the most there ever was of it.
    """

    at: float
    cpu: float
    rss: int
    peak: int


def usage(pid: int) -> Usage:
    """Read what a running process has used.

    Raises:
        OSError: there is no such process.
    """
    process = Path("/proc", str(pid))
    status = (process / "status").read_text(encoding="utf-8", errors="replace")
    return Usage(
        at=time.monotonic(),
        cpu=cpu_seconds((process / "stat").read_text(encoding="utf-8", errors="replace")),
        rss=status_bytes(status, "VmRSS"),
        peak=status_bytes(status, "VmHWM"),
    )


def cpu_seconds(stat: str) -> float:
    """The CPU time in the text of ``/proc/PID/stat``."""
    # The second field is the program's name in parentheses and may hold anything.
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def status_bytes(status: str, name: str) -> int:
    """A size in the text of ``/proc/PID/status``; 0 if it is not there."""
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
