"""The scheduling of processes that answer questions: they must not delay the daemon.

With the policy SCHED_IDLE, the kernel preempts the process as soon as any other one has work. A nice
value alone lets it finish its time slice first, up to 3 ms, which is as long as a change takes
(ADR 18). Two cases need the normal policy, with the nice value:

1. While the process reads rules of iptables or IPVS, the kernel holds a lock that the daemon needs,
   and a process that gets no time would keep it. Dumps of nf_tables take no such lock.
2. On processors that are busy all the time, SCHED_IDLE leaves almost no time. A process that mostly
   waits for a processor returns to the normal policy and stays there.

Without CAP_SYS_NICE there is no way back from SCHED_IDLE, so then only the nice value is set.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NICE = 10
"""The nice value, which is kept when the policy is normal."""

_CHECK_SECONDS = 3.0
_STARVING = 0.5
"""The share of the time since the last check that was spent waiting for a processor."""
_CAP_SYS_NICE = 1 << 23
_PROCESS = Path("/proc/self")


def yield_to_others(check_seconds: float = _CHECK_SECONDS) -> None:
    """Lower the priority of this process, its later threads and its children.

    Args:
        check_seconds: how often to check whether the process gets time.
    """
    os.nice(NICE)
    with suppress(OSError):  # a container may forbid it; then only the nice value remains
        if _may_return():
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            # Not a timer with a signal: one that comes while the interpreter ends kills the process.
            threading.Thread(target=_watch, args=(check_seconds,), daemon=True).start()


def take_part() -> None:
    """Return all threads of this process to the normal policy; the nice value remains."""
    with suppress(OSError):
        for task in (_PROCESS / "task").iterdir():
            os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))


@contextmanager
def reading_the_kernel() -> Iterator[None]:
    """Run a block of this thread at the normal policy; programs that it starts have it as well."""
    idle = os.sched_getscheduler(0) == os.SCHED_IDLE
    if idle:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    try:
        yield
    finally:
        if idle:
            with suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _watch(seconds: float) -> None:
    """Take part as soon as the process has mostly waited for a processor; in a thread of its own."""
    waited = _waited_seconds()
    while True:
        time.sleep(seconds)
        before, waited = waited, _waited_seconds()
        if waited - before > _STARVING * seconds:
            take_part()
            return


def _may_return() -> bool:
    """Return whether this process has CAP_SYS_NICE."""
    for line in (_PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & _CAP_SYS_NICE)
    return False


def _waited_seconds() -> float:
    """Return how long the main thread has waited for a processor; 0 if the kernel does not count."""
    try:
        return int((_PROCESS / "schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
