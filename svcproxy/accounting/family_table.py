"""Maintains the accounting table of one IP family in the kernel."""

from collections.abc import Mapping

from svcproxy.accounting.core.planner import AccountingPlanner
from svcproxy.accounting.core.table import TABLE, Accounting, chains
from svcproxy.backends.base import BackendError
from svcproxy.backends.nftables.table import KernelTable
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.errors import NetlinkError

_SKIPPED_CHECKS = 9
"""How many checks in a row may trust the cheap comparison; the next one compares everything."""


class FamilyTable:
    """The accounting table of one family; for one thread.

    Args:
        family: the IP family.
        accounting: what is counted.
    """

    def __init__(self, family: IPFamily, accounting: Accounting) -> None:
        self.family = family
        self.ports: dict[ServicePortName, ServicePort] = {}
        self._accounting = accounting
        self._planner: AccountingPlanner | None = None
        self._kernel: KernelTable | None = None
        self._in_force = False
        self._skipped = 0

    def close(self) -> None:
        """Close the socket; the table stays."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def update(
        self,
        changed: Mapping[ServicePortName, ServicePort | None],
        settings: Settings | None,
        *,
        everything: bool,
    ) -> bool:
        """Bring changed Service ports into force; after a failure, everything.

        Args:
            changed: the changed Service ports; ``None`` for a removed one.
            settings: changed settings; ``None`` if they did not change.
            everything: ``changed`` has all Service ports.

        Returns:
            Whether anything was written.

        Raises:
            BackendError: the kernel refused; the next call compares the whole table.
        """
        if everything:
            self.ports = {name: port for name, port in changed.items() if port is not None}
            self._in_force = False
        else:
            for name, port in changed.items():
                if port is None:
                    self.ports.pop(name, None)
                else:
                    self.ports[name] = port
        if settings is not None and (self._planner is None or settings != self._planner.settings):
            self._planner = AccountingPlanner(self._accounting, settings)
            self._in_force = False
        if not self._in_force:
            return self._compare()
        assert self._planner is not None
        self._in_force = False
        plan = self._planner.plan_changes(changed)
        if plan:
            self._table().commit(plan, self._planner.sets)
        self._in_force = True
        return bool(plan)

    def check(self) -> bool:
        """Compare the table with what it should be, and repair it; return whether it differed.

        Raises:
            BackendError: the kernel refused.
        """
        if self._planner is None:
            return False
        if self._in_force and self._skipped < _SKIPPED_CHECKS and self._looks_unchanged():
            self._skipped += 1
            return False
        self._skipped = 0
        return self._compare()

    def _looks_unchanged(self) -> bool:
        """Whether nothing can have changed, or sets, chains and numbers of elements are right."""
        if self._table().is_unchanged():
            return True
        assert self._planner is not None
        wanted = chains(self._accounting, self._planner.settings)
        rules = {name: len(chain.rules) for name, chain in wanted.items()}
        try:
            return self._table().shape() == (self._planner.sizes, rules)
        except BackendError:
            return False  # for example, there is no table; reading it all says what is wrong

    def _compare(self) -> bool:
        """Compare everything, and write what differs; return whether anything did."""
        self._in_force = False
        if self._planner is None:
            return False
        table = self._table()
        plan = self._planner.plan(self.ports, table.read())
        if plan:
            table.commit(plan, self._planner.sets)
        self._in_force = True
        return bool(plan)

    def _table(self) -> KernelTable:
        if self._kernel is None:
            try:
                self._kernel = KernelTable(self.family, TABLE)
            except NetlinkError as error:
                raise BackendError(f"no netfilter netlink: {error}") from error
        return self._kernel
