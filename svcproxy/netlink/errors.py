"""Errors of netlink requests.

All are ``OSError`` with an error number. Backends translate them to their own errors.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class NetlinkError(OSError):
    """A netlink request failed: ``errno`` and ``strerror`` say why, ``str()`` gives ``strerror``.

    Args:
        number: the error number.
        reason: the reason; the system's text for ``number`` by default.
    """

    def __init__(self, number: int, reason: str = "") -> None:
        super().__init__(number, reason or os.strerror(number))

    def __str__(self) -> str:
        return self.strerror or ""

    def add_context(self, what: str) -> None:
        """Put the name of the failed operation before the reason."""
        self.strerror = f"{what}: {self.strerror}"


class TimedOutError(NetlinkError):
    """The kernel did not answer in time (ETIMEDOUT)."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT)


class BufferOverrunError(NetlinkError):
    """The kernel dropped messages that did not fit into the receive buffer (ENOBUFS)."""

    def __init__(self) -> None:
        super().__init__(errno.ENOBUFS)


class MalformedError(NetlinkError, ValueError):
    """A message or attribute has a length that does not fit its surroundings (EBADMSG)."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EBADMSG, reason)


class InterruptedDumpError(NetlinkError):
    """The listed objects changed during a dump, so the dump may be inconsistent (EINTR)."""

    def __init__(self, reason: str = "the dump was interrupted by changes") -> None:
        super().__init__(errno.EINTR, reason)


class RequestRefusedError(NetlinkError):
    """The kernel answered a request with an error number."""


@contextmanager
def doing(action: str) -> Iterator[None]:
    """Name an action in the text of its errors: ``cannot list ipsets: Operation not permitted``.

    Other ``OSError`` become ``NetlinkError``.

    Args:
        action: the action, as an infinitive without ``to``.
    """
    try:
        yield
    except NetlinkError as error:
        error.add_context(f"cannot {action}")
        raise
    except OSError as error:
        raise NetlinkError(error.errno or 0, f"cannot {action}: {error.strerror}") from error
