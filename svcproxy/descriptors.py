"""The limit of open file descriptors, and how it is divided among their uses.

Like every Go program, kube-proxy included, svcproxy raises its soft limit to the hard limit at
startup and restores the original limit in child processes (os/rlimit.go and syscall/rlimit.go of
Go 1.26). The soft limit is often 1,024 to protect programs that call ``select``; svcproxy calls
``select`` only on low descriptors.
"""

import resource
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

from svcproxy import limits

_PAGE_PORTS = 2
_FAMILIES = 2
_EIGHTH = 8


class DescriptorLimit:
    """The descriptor limit of this process: the original one and the current one."""

    def __init__(self) -> None:
        self._original: tuple[int, int] | None = None

    def raise_soft(self) -> int:
        """Raise the soft limit to the hard limit if permitted; return the effective soft limit."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                self._original = soft, hard
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def restore_in(self, pid: int) -> None:
        """Restore the original limit in a child process that was just started.

        Some programs close every possible descriptor up to the limit, which may be a billion.

        Args:
            pid: the child's process ID.
        """
        if self._original is not None:
            with suppress(OSError):  # it may have exited
                resource.prlimit(pid, resource.RLIMIT_NOFILE, self._original)


DESCRIPTOR_LIMIT = DescriptorLimit()
"""The limit of this process; the only instance outside tests."""


class DescriptorAllocation(NamedTuple):
    """How many descriptors each use gets.

    ``pages`` is the number of connections of each of the metrics and health ports,
    ``health_checks`` that of each family's health-check node ports, ``listeners`` the number of
    listening sockets of all health-check node ports together.
    """

    pages: int
    health_checks: int
    listeners: float


def allocate(limit: int) -> DescriptorAllocation:
    """Divide the descriptors, so that many health-check node ports cannot exhaust them.

    Args:
        limit: the soft limit; ``resource.RLIM_INFINITY`` for none.

    Returns:
        The number of descriptors for each use.
    """
    if limit == resource.RLIM_INFINITY:
        limit = 2**31
    pages = min(limits.HTTP_CONNECTIONS, limit // _EIGHTH)
    checks = min(limits.HEALTH_CHECK_CONNECTIONS, limit // _EIGHTH)
    taken = limits.DESCRIPTORS_RESERVED + _PAGE_PORTS * pages + _FAMILIES * checks
    return DescriptorAllocation(pages, checks, max(0, limit - taken))


class DescriptorBudget:
    """A fixed number of descriptors from which several threads acquire.

    Args:
        size: how many there are.
        limit: the process's limit, for the error text in ``reason``.
    """

    def __init__(self, size: float, limit: int = 0) -> None:
        self.reason = (
            f"no file descriptor is left for it: all {size:g} for health-check node ports are in"
            f" use; raise RLIMIT_NOFILE of svcproxy, which is {limit}"
        )
        self._left = size
        self._lock = Lock()

    def acquire(self, number: int) -> bool:
        """Acquire ``number`` descriptors or none; return whether there were enough."""
        with self._lock:
            enough = number <= self._left
            if enough:
                self._left -= number
            return enough

    def release(self, number: int) -> None:
        """Return ``number`` descriptors to the budget."""
        with self._lock:
            self._left += number
