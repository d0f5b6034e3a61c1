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
            ended. Its own is exact; its children's the kernel tells in steps of 10 ms.
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
        cpu=_own_seconds(pid)
        + child_seconds((process / "stat").read_text(encoding="utf-8", errors="replace")),
        rss=status_bytes(status, "VmRSS"),
        peak=status_bytes(status, "VmHWM"),
    )


def _own_seconds(pid: int) -> float:
    """The CPU time of a process and all of its threads, those that have ended as well."""
    # The clock of another process, as clock_getcpuclockid(3) computes its number.
    return time.clock_gettime((~pid << 3) | 2)


def child_seconds(stat: str) -> float:
    """The CPU time of a process's children that it has waited for, from ``/proc/PID/stat``."""
    # The second field is the program's name in parentheses and may hold anything.
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[13:15])) / _TICKS


def status_bytes(status: str, name: str) -> int:
    """A size in the text of ``/proc/PID/status``; 0 if it is not there."""
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
