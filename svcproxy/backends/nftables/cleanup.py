"""Removing kube-proxy's table, and svcproxy's while another mode is active."""

import errno
from collections.abc import Collection, Iterator, Mapping
from functools import partial

from svcproxy.backends.mode_spec import ActiveMode, Cleanup, CleanupStep
from svcproxy.backends.nftables.client import RefusedError
from svcproxy.backends.nftables.table import KernelTable
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables.ruleset import ACCOUNTING_TABLE, TABLE

_KUBE_PROXY_TABLE = "kube-proxy"
"""kube-proxy's table, in the families ``ip`` and ``ip6``."""
_NO_NFTABLES = frozenset({errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL})


def delete_tables(
    family: IPFamily, *, keep_own: bool, keep_accounting: bool = False
) -> Mapping[str, int]:
    """Delete the tables of kube-proxy and of svcproxy.

    Args:
        family: the IP family of the tables.
        keep_own: keep svcproxy's table, because nftables mode is active.
        keep_accounting: keep the table that counts connections.

    Returns:
        How many tables were deleted, by kind of operation.

    Raises:
        BackendError: the kernel refused to delete a table.
    """
    kept = {TABLE: keep_own, ACCOUNTING_TABLE: keep_accounting}
    names = [_KUBE_PROXY_TABLE, *(name for name, keep in kept.items() if not keep)]
    return {"table_deleted": sum(_delete_table(family, name) for name in names)}


def _delete_table(family: IPFamily, name: str) -> bool:
    try:
        table = KernelTable(family, name)
    except OSError:
        return False  # Without netfilter netlink, there are no tables.
    try:
        return table.delete()
    except RefusedError as error:
        if error.number in _NO_NFTABLES:
            return False
        raise
    finally:
        table.close()


def _steps(active: ActiveMode, family: IPFamily, _keep: Collection[str]) -> Iterator[CleanupStep]:
    keep_own = active.mode == "nftables"
    yield partial(delete_tables, family, keep_own=keep_own, keep_accounting=active.accounting)


CLEANUP = Cleanup(rules=_steps)
