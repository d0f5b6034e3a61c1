"""The finished Service ports that the kernel was last told of, with their siblings.

Pure.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from svcproxy.backends.ipvs.layout import NOTHING, PortState, layout, ports_taken
from svcproxy.backends.ipvs.settings import IpvsSettings
from svcproxy.model.names import NamespacedName, Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort

_FEW = 8
"""Of a Service with more ports it is remembered which these are: a Service may have 20,000."""


class Ports:
    """Service ports by name; each knows which others its Service has."""

    def __init__(self) -> None:
        self._ports: dict[ServicePortName, ServicePort] = {}
        self._names: dict[NamespacedName, set[ServicePortName]] = {}
        self._taken_by: dict[NamespacedName, Mapping[Protocol, AbstractSet[int]]] = {}

    @property
    def names(self) -> AbstractSet[ServicePortName]:
        """The names of all of them."""
        return self._ports.keys()

    def get(self, names: Iterable[ServicePortName]) -> list[ServicePort]:
        """Those of these names that there are."""
        return [self._ports[name] for name in names if name in self._ports]

    def put(self, name: ServicePortName, port: ServicePort | None) -> None:
        """Take the present meaning of a Service port; ``None`` if it is gone."""
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
        """The changed ports, and those of the same Services: hidden ports keep clear of them."""
        found = dict.fromkeys(changed)
        for service in {name.service for name in changed}:
            found.update(dict.fromkeys(self._names.get(service, ())))
        return list(found)

    def layout(self, name: ServicePortName, settings: IpvsSettings) -> PortState:
        """What a port needs in the kernel; nothing if there is no such port."""
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
