"""CPU time and memory of a process, as counted by the kernel."""

import os
import time
from pathlib import Path

import msgspec

_TICKS = os.sysconf("SC_CLK_TCK")


class Usage(msgspec.Struct, frozen=True):
    """The resources that a process has used up to a point in time.

    Attributes:
        at: ``time.monotonic()`` of that time.
        cpu: seconds of CPU time, user and system, of the process and its exited children. That of
            the process is exact, that of children has a resolution of 10 ms.
        rss: resident memory in bytes.
        peak: the maximum of the resident memory.
    """

    at: float
    cpu: float
    rss: int
    peak: int


def usage(pid: int) -> Usage:
    """Read the resources that a running process has used.

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
    """Return the CPU time of a process and all its threads, including exited ones."""
    # The number of another process's CPU clock, as computed by clock_getcpuclockid(3).
    return time.clock_gettime((~pid << 3) | 2)


def child_seconds(stat: str) -> float:
    """Return the CPU time of a process's reaped children, from ``/proc/PID/stat``."""
    # The second field is the program's name in parentheses and may contain any character.
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[13:15])) / _TICKS


def status_bytes(status: str, name: str) -> int:
    """Return a size in the text of ``/proc/PID/status``; 0 if it is missing."""
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
