"""The Service ports of the last plan, with an index by Service. Pure."""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from svcproxy.backends.ipvs.layout import NOTHING, PortState, layout, ports_taken
from svcproxy.backends.ipvs.settings import IpvsSettings
from svcproxy.model.names import NamespacedName, Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort

_FEW = 8
"""For a Service with more ports than this, the set of its ports is cached: it may have 20,000."""


class Ports:
    """Service ports by name, with the other ports of the same Service."""

    def __init__(self) -> None:
        self._ports: dict[ServicePortName, ServicePort] = {}
        self._names: dict[NamespacedName, set[ServicePortName]] = {}
        self._taken_by: dict[NamespacedName, Mapping[Protocol, AbstractSet[int]]] = {}

    @property
    def names(self) -> AbstractSet[ServicePortName]:
        """The names of all Service ports."""
        return self._ports.keys()

    def get(self, names: Iterable[ServicePortName]) -> list[ServicePort]:
        """Return the Service ports with these names; unknown names are skipped."""
        return [self._ports[name] for name in names if name in self._ports]

    def put(self, name: ServicePortName, port: ServicePort | None) -> None:
        """Set the present state of a Service port; ``None`` if it is gone."""
        self._taken_by.pop(name.service, None)
        if port is not None:
            self._ports[name] = port
            self._names.setdefault(name.service, set()).add(name)
            return
        self._ports.pop(name, None)
        names = self._names.get(name.service, set())
        names.discard(name)
        if not names:
            self._names.pop(name.service, None)

    def concerned(
        self, changed: Mapping[ServicePortName, ServicePort | None]
    ) -> list[ServicePortName]:
        """Return the changed ports and their Services' other ports, whose hidden ports may change."""
        found = dict.fromkeys(changed)
        for service in {name.service for name in changed}:
            found.update(dict.fromkeys(self._names.get(service, ())))
        return list(found)

    def layout(self, name: ServicePortName, settings: IpvsSettings) -> PortState:
        """Return the objects that a port needs in the kernel; none if there is no such port."""
        port = self._ports.get(name)
        return layout(port, settings, self._taken(name)) if port else NOTHING

    def _taken(self, name: ServicePortName) -> AbstractSet[int]:
        siblings = self._names.get(name.service, set())
        if len(siblings) < 2:
            return frozenset()
        taken = self._taken_by.get(name.service)
        if taken is None:
            taken = ports_taken(self._ports[n] for n in siblings)
            if len(siblings) > _FEW:
                self._taken_by[name.service] = taken
        return taken[name.protocol]
