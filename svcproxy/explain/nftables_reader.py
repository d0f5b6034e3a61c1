"""Reads the nftables table of a family, without any change to the kernel."""

import errno
import os
import time

import msgspec

from svcproxy import sysctl
from svcproxy.backends.base import BackendError
from svcproxy.backends.nftables.client import RefusedError
from svcproxy.backends.nftables.core.table_sets import AFFINITY
from svcproxy.backends.nftables.table import KernelTable
from svcproxy.explain.core.nft_table import NftTable
from svcproxy.explain.core.rendered_nftables import FAMILIES, observed_table
from svcproxy.explain.mode_explainer import KernelUnreadableError
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.ruleset import TABLE, EncodedElements

_ATTEMPTS = 5
_PAUSE = 0.1
"""Seconds between two attempts to read a table that changes. The kernel interrupts a dump if the
table changes meanwhile; ``KernelTable.read`` repeats it at once, for a bounded number of times."""


class NftKernel(msgspec.Struct, frozen=True):
    """What the kernel holds of nftables mode.

    Attributes:
        family: the IP family.
        table: the table; without a handle if there is none.
        clients: the elements of the affinity map, with their remaining times.
        drop_invalid: whether rules may drop packets in conntrack state INVALID, as a resync of the
            daemon would find now.
    """

    family: IPFamily
    table: TableDump
    clients: EncodedElements
    drop_invalid: bool

    def contents(self) -> NftTable:
        """Return the table with all elements."""
        found = observed_table(self.table, FAMILIES[self.family])
        if not self.clients:
            return found
        elements = {**found.elements, AFFINITY: self.clients}
        return msgspec.structs.replace(found, elements=elements)


def read(family: IPFamily) -> NftKernel:
    """Read the table.

    Raises:
        KernelUnreadableError: not permitted, no nf_tables, or the table changes all the time.
    """
    try:
        table = KernelTable(family, TABLE)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise KernelUnreadableError(
            f"the kernel has no netfilter netlink ({reason}): load the module nfnetlink"
        ) from error
    try:
        return _consistent(table)
    except RefusedError as error:
        raise KernelUnreadableError(_explained(error)) from error
    except BackendError as error:
        raise KernelUnreadableError(str(error)) from error
    finally:
        table.close()


def _consistent(table: KernelTable) -> NftKernel:
    """Read the table until nothing changes meanwhile; after some attempts, as it is.

    Raises:
        BackendError: the kernel refused, or each attempt failed.
    """
    found: NftKernel | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE)
        try:
            found = _read(table)
        except BackendError as error:
            # A set that the daemon has deleted since it was listed no longer exists.
            transient = not isinstance(error, RefusedError) or error.number == errno.ENOENT
            if not transient or (found is None and attempt == _ATTEMPTS - 1):
                raise
            continue
        if table.generation() == found.table.generation:
            break
    assert found is not None
    return found


def _read(table: KernelTable) -> NftKernel:
    observed = table.read()
    clients = table.read_clients(observed)
    return NftKernel(table.family, observed, clients, not sysctl.conntrack_is_liberal())


def _explained(error: RefusedError) -> str:
    if error.number == errno.EPERM:
        return "nf_tables may not be read: run as root or with CAP_NET_ADMIN"
    if error.number in {errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT}:
        return f"the kernel has no nf_tables ({error}): load the module nf_tables"
    return f"nf_tables cannot be read ({error}): retry"
