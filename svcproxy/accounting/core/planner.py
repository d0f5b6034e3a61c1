"""Plans what the accounting table needs, from scratch or for changed Service ports."""

from collections.abc import Mapping

from svcproxy.accounting.core.table import Accounting, chains, port_elements, sets
from svcproxy.backends.nftables.core.compare import compare
from svcproxy.backends.settings import Settings
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.ruleset import ElementsBySet, SetSpec
from svcproxy.netlink.core.nf_tables.transaction import Plan


class AccountingPlanner:
    """Knows the elements of the table of one family.

    ``plan`` compares the table with all Service ports. ``plan_changes`` then yields the difference
    that changed ports make; the counters of all other elements keep counting. Both record that the
    plan is carried out: after a failure, call ``plan``.

    Args:
        accounting: what is counted.
        settings: what the rules depend on besides Service ports.
    """

    def __init__(self, accounting: Accounting, settings: Settings) -> None:
        self._accounting = accounting
        self._elements: ElementsBySet = {}
        self._ports: dict[ServicePortName, ServicePort] = {}
        self.settings = settings

    @property
    def sets(self) -> dict[str, SetSpec]:
        """The sets of the table."""
        return sets(self._accounting, self.settings.family)

    @property
    def sizes(self) -> dict[str, int]:
        """How many elements each set has."""
        return {name: len(self._elements.get(name, {})) for name in self.sets}

    def plan(self, ports: Mapping[ServicePortName, ServicePort], observed: TableDump) -> Plan:
        """Compare the whole table with all Service ports."""
        self._ports = dict(ports)
        self._elements = {}
        for port in ports.values():
            for name, found in port_elements(self._accounting, port).items():
                self._elements.setdefault(name, {}).update(found)
        return compare(self.sets, chains(self._accounting, self.settings), self._elements, observed)

    def plan_changes(self, changed: Mapping[ServicePortName, ServicePort | None]) -> Plan:
        """Return the difference that changed Service ports make; ``None`` for a removed one.

        A frontend may move from one Service port to another, in the same or in two changes and in
        either order: an element is removed only if its comment still names the former port.
        """
        old: ElementsBySet = {}
        new: ElementsBySet = {}
        for port_name, port in changed.items():
            before = self._ports.pop(port_name, None)
            if before is not None:
                _merge(old, port_elements(self._accounting, before))
            if port is not None:
                self._ports[port_name] = port
                _merge(new, port_elements(self._accounting, port))
        plan = Plan()
        for name in sorted(old.keys() | new.keys()):
            self._difference(plan, name, old.get(name, {}), new.get(name, {}))
        return plan

    def _difference(
        self, plan: Plan, name: str, old: Mapping[bytes, bytes], new: Mapping[bytes, bytes]
    ) -> None:
        present = self._elements.setdefault(name, {})
        add = {key: encoded for key, encoded in new.items() if present.get(key) != encoded}
        gone = (
            key for key, encoded in old.items() if key not in new and present.get(key) == encoded
        )
        remove = [*(key for key in add if key in present), *gone]
        for key in remove:
            del present[key]
        present.update(add)
        if remove:
            plan.remove[name] = remove
        if add:
            plan.add[name] = add


def _merge(into: ElementsBySet, found: ElementsBySet) -> None:
    for name, elements in found.items():
        into.setdefault(name, {}).update(elements)
