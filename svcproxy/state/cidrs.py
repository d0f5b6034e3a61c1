"""The ranges that cluster IPs are taken from."""

from svcproxy.model.names import IPFamily, NamespacedName
from svcproxy.model.objects import ServiceCIDR


class ServiceRanges:
    """The ranges of one family in all ServiceCIDRs, and whether they have changed."""

    def __init__(self, family: IPFamily) -> None:
        self._family = family
        self._objects: dict[NamespacedName, ServiceCIDR] = {}
        self._present: tuple[str, ...] = ()
        self._checked_out: tuple[str, ...] = ()

    @property
    def present(self) -> tuple[str, ...]:
        """The ranges, in an order that depends on nothing but them; none twice."""
        return self._present

    @property
    def changed(self) -> bool:
        """Whether the ranges are others than at the last ``check_out``."""
        return self._present != self._checked_out

    def update(self, found: ServiceCIDR) -> None:
        """Take the present state of a ServiceCIDR."""
        self._objects[found.name] = found
        self._collect()

    def delete(self, name: NamespacedName) -> None:
        """Forget a ServiceCIDR."""
        self._objects.pop(name, None)
        self._collect()

    def check_out(self) -> bool:
        """Whether the ranges have changed, and from now on they have not."""
        changed = self.changed
        self._checked_out = self._present
        return changed

    def _collect(self) -> None:
        wanted = self._family is IPFamily.IPV6
        self._present = tuple(
            sorted({c for o in self._objects.values() for c in o.cidrs if (":" in c) is wanted})
        )
