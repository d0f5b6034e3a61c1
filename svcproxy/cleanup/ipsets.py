"""Destroying ipsets that no rule uses any longer."""

import errno
from collections.abc import Callable

from svcproxy.backends.base import BackendError
from svcproxy.backends.ipvs.ipset import Sets
from svcproxy.backends.ipvs.operations import DestroySet
from svcproxy.model.names import IPFamily

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
        sets = Sets(family)
        try:
            stale = [name for name in sorted(sets.headers()) if is_stale(name)]
            failures = sets.execute([DestroySet(name) for name in stale])
        except BackendError as error:
            if getattr(error.__cause__, "errno", 0) in _NO_IPSET:
                return 0
            raise
        finally:
            sets.close()
        destroyed += len(stale) - len(failures)
        for failure in failures:
            assert isinstance(failure.operation, DestroySet)
            problems.append(f"{failure.operation.name} ({failure.reason})")
    if problems:
        raise BackendError(f"cannot destroy the ipset {', '.join(problems)}")
    return destroyed
