"""Deletes stale flows after each sync."""

from collections.abc import Mapping
from functools import cache

from svcproxy.conntrack.core.stale import FrontendEndpoints, queries
from svcproxy.conntrack.table import Table
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.conntrack import Destination, Flow, filters_by_address
from svcproxy.state.desired import Changes


class StaleFlows:
    """Deletes the UDP and SCTP flows of one family that a change left on the wrong endpoint.

    All methods run in the family's sync thread. Frontends whose clean-up failed are remembered, and
    the next call retries them.

    Args:
        family: the IP family.
        table: the kernel's table; the calling thread's network namespace has it by default.
    """

    def __init__(self, family: IPFamily, table: Table | None = None) -> None:
        self._table = Table(family) if table is None else table
        self._by_address = filters_by_address(family)
        self._frontends = FrontendEndpoints()
        self._suspects: set[Destination] = set()

    def note(self, changes: Changes) -> None:
        """Remember changes of a failed sync; a later call deletes the flows."""
        self._suspects |= self._frontends.update(changes)

    def clean(self, changes: Changes) -> int:
        """Delete the flows that became stale by ``changes``, which the kernel's rules include.

        No system call is made for changes that affect neither UDP nor SCTP, or cannot leave stale
        flows.

        Returns:
            The number of deleted entries.

        Raises:
            ConntrackError: listing or deleting flows failed.
        """
        self.note(changes)
        return self._sweep()

    def clean_all(self, ports: Mapping[ServicePortName, ServicePort]) -> int:
        """Check the flows of all ``ports``, when their previous endpoints are unknown.

        Returns:
            The number of deleted entries.

        Raises:
            ConntrackError: listing or deleting flows failed.
        """
        self._suspects |= self._frontends.replace(ports)
        return self._sweep()

    def _sweep(self) -> int:
        stale = self._stale_flows() if self._suspects else []
        deleted = self._table.delete(stale) if stale else 0
        self._suspects = set()
        return deleted

    def _stale_flows(self) -> list[Flow]:
        is_local = cache(self._table.is_local)

        def wanted(flow: Flow) -> bool:
            return self._frontends.is_stale(flow, self._suspects, is_local)

        stale: list[Flow] = []
        for query in queries(self._suspects, by_address=self._by_address):
            stale += self._table.find(query, wanted)
            if not self._table.filtering:
                # The kernel ignores filters: this was the whole table already.
                return stale
        return stale
