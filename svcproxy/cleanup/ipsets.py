"""Destroying ipsets that no rule uses any longer."""

import errno
from collections.abc import Callable

from svcproxy.backends.base import BackendError
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.operations import DestroySet, Failure
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.ipset import IpsetSocket

_NO_IPSET = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


def destroy_ipsets(is_stale: Callable[[str], bool]) -> int:
    """Destroy the ipsets of both families whose names are stale.

    Returns:
        How many were destroyed.

    Raises:
        BackendError: an ipset is still in use, or the kernel refused; the others are destroyed.
    """
    destroyed = 0
    problems: list[str] = []
    for family in IPFamily:
        try:
            stale, failures = _destroy(family, is_stale)
        except NetlinkError as error:
            if error.errno in _NO_IPSET:
                return 0
            raise BackendError(str(error)) from error
        destroyed += stale - len(failures)
        for failure in failures:
            assert isinstance(failure.operation, DestroySet)
            problems.append(f"{failure.operation.name} ({failure.reason})")
    if problems:
        raise BackendError(f"cannot destroy the ipset {', '.join(problems)}")
    return destroyed


def _destroy(family: IPFamily, is_stale: Callable[[str], bool]) -> tuple[int, list[Failure]]:
    """Destroy the stale ipsets of a family; return how many there are, and the failures."""
    sets = IpsetSocket(family)
    try:
        stale = [DestroySet(name) for name in sorted(sets.headers()) if is_stale(name)]
        return len(stale), sets.execute(stale)
    finally:
        sets.close()
