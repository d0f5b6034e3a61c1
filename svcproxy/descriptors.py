"""File descriptors: as many as the process may have, and who may use how many of them.

Go programs, kube-proxy among them, raise their soft limit to the hard one at start, and give the
original one back to the programs that they run (os/rlimit.go and syscall/rlimit.go of Go 1.26).
So does svcproxy. The soft limit is 1,024 in many places for the sake of ``select``, which is not
used here on descriptors that may be many.
"""

import resource
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

from svcproxy import limits

_PAGE_PORTS = 2
_FAMILIES = 2
_EIGHTH = 8


class Limit:
    """The limit of this process: what it was at the start, and what it is now."""

    def __init__(self) -> None:
        self._original: tuple[int, int] | None = None

    def raise_soft(self) -> int:
        """Raise the soft limit to the hard one where that is allowed; return what is in force."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                self._original = soft, hard
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def restore_in(self, pid: int) -> None:
        """Give a child process, just started, the soft limit that this process was given.

        Some programs close every descriptor up to the limit, which may be a billion.
        """
        if self._original is not None:
            with suppress(OSError):  # it may have ended
                resource.prlimit(pid, resource.RLIMIT_NOFILE, self._original)


LIMIT = Limit()
"""The limit of this process."""


class Shares(NamedTuple):
    """How many descriptors each use gets: connections of a port, listening sockets in all."""

    pages: int
    health_checks: int
    listeners: float


def shares(limit: int) -> Shares:
    """Divide the descriptors, so that the health-check ports of many Services leave the rest alone.

    Args:
        limit: the soft limit; ``resource.RLIM_INFINITY`` for none.
    """
    if limit == resource.RLIM_INFINITY:
        limit = 2**31
    pages = min(limits.HTTP_CONNECTIONS, limit // _EIGHTH)
    checks = min(limits.HEALTH_CHECK_CONNECTIONS, limit // _EIGHTH)
    taken = limits.DESCRIPTORS_RESERVED + _PAGE_PORTS * pages + _FAMILIES * checks
    return Shares(pages, checks, max(0, limit - taken))


class Share:
    """A number of descriptors that several threads take from.

    Args:
        size: how many there are.
        limit: the limit of the process, for the message.
    """

    def __init__(self, size: float, limit: int = 0) -> None:
        self.reason = (
            f"no file descriptor is left for it: all {size:g} for health-check node ports are in"
            f" use; raise RLIMIT_NOFILE of svcproxy, which is {limit}"
        )
        self._left = size
        self._lock = Lock()

    def take(self, number: int) -> bool:
        """Take so many, or none; whether there were enough."""
        with self._lock:
            enough = number <= self._left
            if enough:
                self._left -= number
            return enough

    def give(self, number: int) -> None:
        """Give so many back."""
        with self._lock:
            self._left += number
