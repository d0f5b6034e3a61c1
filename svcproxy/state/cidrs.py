"""The cluster's ranges of cluster IPs."""

from collections.abc import Mapping

from svcproxy.model.names import IPFamily, NamespacedName
from svcproxy.model.objects import ServiceCIDR


class ServiceRanges:
    """The ranges of one family in all ServiceCIDRs; tracks whether they changed."""

    def __init__(self, family: IPFamily) -> None:
        self._family = family
        self._objects: dict[NamespacedName, ServiceCIDR] = {}
        self._ranges: tuple[str, ...] = ()
        self._checked_out: tuple[str, ...] = ()

    @property
    def current(self) -> tuple[str, ...]:
        """The distinct ranges, sorted."""
        return self._ranges

    @property
    def objects(self) -> Mapping[NamespacedName, ServiceCIDR]:
        """The stored objects, which may have ranges of both families."""
        return self._objects

    @property
    def changed(self) -> bool:
        """Whether the ranges changed since the last ``check_out``."""
        return self._ranges != self._checked_out

    def update(self, found: ServiceCIDR) -> None:
        """Store the new state of a ServiceCIDR."""
        self._objects[found.name] = found
        self._update_ranges()

    def delete(self, name: NamespacedName) -> None:
        """Remove a ServiceCIDR."""
        self._objects.pop(name, None)
        self._update_ranges()

    def check_out(self) -> bool:
        """Return whether the ranges changed since the last call, and mark them unchanged."""
        changed = self.changed
        self._checked_out = self._ranges
        return changed

    def _update_ranges(self) -> None:
        is_ipv6 = self._family is IPFamily.IPV6
        self._ranges = tuple(
            sorted({c for o in self._objects.values() for c in o.cidrs if (":" in c) is is_ipv6})
        )
