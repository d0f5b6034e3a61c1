"""What the sync loop calls after it has programmed a change."""

from collections.abc import Mapping
from functools import cache

from svcproxy.conntrack.core.stale import Flow, Frontends, Key, queries
from svcproxy.conntrack.netlink import filters_by_address
from svcproxy.conntrack.table import Table
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes


class StaleFlows:
    """Deletes the flows of one family that a change left on the wrong endpoint.

    All methods belong to the family's sync thread. What could not be cleaned because of an
    error stays noted, and the next call tries again.
    """

    def __init__(self, family: IPFamily, table: Table | None = None) -> None:
        self._table = Table(family) if table is None else table
        self._by_address = filters_by_address(family)
        self._frontends = Frontends()
        self._suspects: set[Key] = set()

    def note(self, changes: Changes) -> None:
        """Take in changes that the kernel could not be given; a later call cleans up."""
        self._suspects |= self._frontends.update(changes)

    def clean(self, changes: Changes) -> int:
        """Delete what became stale by ``changes``, which the kernel's rules have by now.

        Changes that concern neither UDP nor SCTP, or mislead no flow, cost no system call.

        Returns:
            The number of entries deleted.

        Raises:
            ConntrackError: the kernel would not list or delete them.
        """
        self.note(changes)
        return self._sweep()

    def clean_all(self, ports: Mapping[ServicePortName, ServicePort]) -> int:
        """Check the flows of all ``ports``, for when nobody knows what they meant before.

        Returns:
            The number of entries deleted.

        Raises:
            ConntrackError: the kernel would not list or delete them.
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
                # That was the whole table; also the next answers would be, for nothing.
                return stale
        return stale
