"""How the errors of netlink sockets are told."""

import os

from svcproxy.backends.base import BackendError


def failed(what: str, error: OSError) -> BackendError:
    """The error that says that this could not be done, and why."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return BackendError(f"cannot {what}: {reason}")
