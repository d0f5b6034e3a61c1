"""The limit of open file descriptors, and how it is divided.

Like Go programs, kube-proxy among them, svcproxy raises its soft limit to the hard limit at the
start, and restores the original limit in the programs that it runs (os/rlimit.go and
syscall/rlimit.go of Go 1.26). The soft limit is often 1,024 for programs that use ``select``;
svcproxy uses ``select`` only on low descriptors.
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
    """The descriptor limit of this process: the original one and the present one."""

    def __init__(self) -> None:
        self._original: tuple[int, int] | None = None

    def raise_soft(self) -> int:
        """Raise the soft limit to the hard limit if allowed; return the limit in force."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                self._original = soft, hard
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def restore_in(self, pid: int) -> None:
        """Give a child process that was just started the original limit.

        Some programs close every descriptor up to the limit, which may be a billion.
        """
        if self._original is not None:
            with suppress(OSError):  # it may have ended
                resource.prlimit(pid, resource.RLIMIT_NOFILE, self._original)


LIMIT = Limit()
"""The limit of this process."""


class Shares(NamedTuple):
    """How many descriptors each use gets: connections per port, and listening sockets in all."""

    pages: int
    health_checks: int
    listeners: float


def shares(limit: int) -> Shares:
    """Divide the descriptors, so that many health-check node ports do not use up all of them.

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
    """A number of descriptors that several threads share.

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
        """Take ``number``, or none; return whether there were enough."""
        with self._lock:
            enough = number <= self._left
            if enough:
                self._left -= number
            return enough

    def give(self, number: int) -> None:
        """Give ``number`` back."""
        with self._lock:
            self._left += number
