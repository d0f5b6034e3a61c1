"""The difference that changed Service ports make to the elements of the table."""

from collections import Counter

from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.render import (
    EndpointList,
    ListKey,
    PortElements,
    endpoint_elements,
    hairpin_key,
)
from svcproxy.model.serviceport import Endpoint
from svcproxy.netlink.core.nf_tables.ruleset import ElementsBySet
from svcproxy.netlink.core.nf_tables.transaction import Plan

_NO_LIST = EndpointList(())


class ElementDelta:
    """The elements of all changed Service ports, before and after the change.

    Elements may move from one Service port to another, so all ports are collected before the
    difference is taken.

    Attributes:
        shared: for elements that several Service ports may need, by how much the number of such
            ports changes, by set and key.
    """

    def __init__(self) -> None:
        self._old: ElementsBySet = {}
        self._new: ElementsBySet = {}
        self.shared: dict[str, Counter[bytes]] = {
            table_sets.CLUSTER_ADDRESSES: Counter(),
            table_sets.HAIRPINS: Counter(),
        }

    def add(self, old: PortElements, new: PortElements) -> None:
        """Add one Service port.

        Args:
            old: its elements before the change.
            new: its elements after the change.
        """
        for elements, rendered in ((self._old, old), (self._new, new)):
            for name, found in rendered.elements.items():
                elements.setdefault(name, {}).update(found)
        for where in {**old.lists, **new.lists}:
            self._add_list(where, old.lists.get(where, _NO_LIST), new.lists.get(where, _NO_LIST))
        addresses = self.shared[table_sets.CLUSTER_ADDRESSES]
        addresses.subtract(old.cluster_addresses)
        addresses.update(new.cluster_addresses)
        hairpins = self.shared[table_sets.HAIRPINS]
        hairpins.subtract(map(hairpin_key, old.hairpins))
        hairpins.update(map(hairpin_key, new.hairpins))

    def _add_list(self, where: ListKey, old: EndpointList, new: EndpointList) -> None:
        """Add the endpoints of one list, without those that keep their number."""
        before, after = old.endpoints, new.endpoints
        keep: set[int] = set()
        if old.affinity_key == new.affinity_key:
            keep = {n for n, equal in enumerate(map(_same_target, before, after)) if equal}
        for elements, found in ((self._old, old), (self._new, new)):
            numbers = (n for n in range(len(found.endpoints)) if n not in keep)
            elements.setdefault(where[0], {}).update(endpoint_elements(where, found, numbers))

    def write_to(self, plan: Plan) -> None:
        """Add the difference to a plan; ``shared`` elements are up to the caller."""
        for name in self._old.keys() | self._new.keys():
            old, new = self._old.get(name, {}), self._new.get(name, {})
            remove = [key for key, encoded in old.items() if new.get(key) != encoded]
            add = {key: encoded for key, encoded in new.items() if old.get(key) != encoded}
            if remove:
                plan.remove[name] = remove
            if add:
                plan.add[name] = add


def _same_target(one: Endpoint, other: Endpoint) -> bool:
    return one.address == other.address and one.port == other.port
