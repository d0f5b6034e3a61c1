"""Service ports that the kernel refused, and what stays in the kernel until it accepts them."""

from collections.abc import Iterable, Mapping
from enum import IntEnum

from msgspec import structs

from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.port_index import PortIndex
from svcproxy.backends.settings import Settings
from svcproxy.model.names import Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.ruleset import ElementsBySet


class _Fallback(IntEnum):
    """What is planned for a refused Service port. If the kernel refuses that too, the next follows.

    ``ACCEPTED``: the state that the kernel last accepted. ``INHERITED``: the elements that the kernel
    holds at its keys, unchanged; used after a restart, when no accepted state is known.
    ``ABSENT``: no elements.
    """

    ACCEPTED = 1
    INHERITED = 2
    ABSENT = 3


FrontendOwners = Mapping[tuple[Protocol, str, int], ServicePortName]
"""The Service port that has a frontend, by protocol, address (empty for node ports) and port."""


def frontend_owners(ports: Iterable[ServicePort]) -> FrontendOwners:
    """Index Service ports by their frontends."""
    return {
        (port.name.protocol, f.address, f.port): port.name for port in ports for f in port.frontends
    }


def without_taken_frontends(port: ServicePort, taken: FrontendOwners) -> ServicePort:
    """Return a former Service port without the frontends that other ports have taken since."""
    name, protocol = port.name, port.name.protocol
    kept = tuple(
        f for f in port.frontends if taken.get((protocol, f.address, f.port), name) == name
    )
    return port if kept == port.frontends else structs.replace(port, frontends=kept)


class Fallbacks:
    """Remembers the state that the kernel last accepted, until it accepts the next one.

    Attributes:
        undo: the accepted states of the Service ports that changed since, ``None`` for new ones.
        inherited: Service ports at whose keys unknown elements were kept in the kernel (``INHERITED``).
    """

    def __init__(self) -> None:
        self.undo: dict[ServicePortName, ServicePort | None] = {}
        self.inherited: dict[ServicePortName, ServicePort] = {}
        self._accepted: dict[ServicePortName, ServicePort] | None = None
        self._wanted: Mapping[ServicePortName, ServicePort] | None = None
        self._chosen: dict[ServicePortName, _Fallback] = {}

    def begin_comparison(
        self,
        present: Mapping[ServicePortName, ServicePort],
        wanted: Mapping[ServicePortName, ServicePort] | None = None,
    ) -> None:
        """Prepare a comparison.

        Args:
            present: the planner's Service ports: those in the kernel, or those of the last plan.
            wanted: the desired state; if ``None``, that of the last plan.
        """
        if self._accepted is None:
            self._accepted = dict(present)
            for name, port in self.undo.items():
                if port is None:
                    self._accepted.pop(name, None)
                else:
                    self._accepted[name] = port
        if wanted is not None:
            self._wanted = wanted
            self._chosen, self.inherited = {}, {}
        elif self._wanted is None:
            self._wanted = present
            for name in self.undo:
                self.inherited.pop(name, None)
        self.undo = {}

    def mark_applied(self) -> None:
        """Note that the kernel accepted the plan."""
        self.undo.clear()
        self._accepted = self._wanted = None
        self._chosen.clear()

    def fall_back(self, names: Iterable[ServicePortName]) -> bool:
        """Plan less for some Service ports; return whether that was possible."""
        before, wanted = self._accepted or {}, self._wanted or {}
        for name in names:
            fallback = self._chosen.get(name)
            if fallback is _Fallback.ABSENT:
                return False
            if fallback is not None:
                self._chosen[name] = _Fallback(fallback + 1)
            elif name in before and before[name] != wanted.get(name):
                self._chosen[name] = _Fallback.ACCEPTED
            else:
                self._chosen[name] = _Fallback.INHERITED
        return True

    def affects_inherited(self, changed: Mapping[ServicePortName, ServicePort | None]) -> bool:
        """Whether changes concern a stray, or take one of its frontends.

        Only a full comparison can replace the unknown elements there.
        """
        if not self.inherited:
            return False
        taken = frontend_owners(port for port in changed.values() if port is not None)
        return not changed.keys().isdisjoint(self.inherited) or any(
            without_taken_frontends(port, taken) is not port for port in self.inherited.values()
        )

    def port_index(
        self, present: Mapping[ServicePortName, ServicePort], settings: Settings
    ) -> PortIndex:
        """Return the owners of the last plan's objects; ``present`` are the planned ports."""
        if self._wanted is not None:
            return PortIndex(self._wanted.values(), settings, (self._accepted or {}).values())
        changed = (present[name] for name in self.undo if name in present)
        return PortIndex(changed, settings, filter(None, self.undo.values()))

    def ports(
        self, settings: Settings, observed: TableDump
    ) -> tuple[Mapping[ServicePortName, ServicePort], ElementsBySet]:
        """Return the Service ports to render, and the unknown elements to keep in addition."""
        wanted, before = self._wanted or {}, self._accepted or {}
        if not self._chosen and not self.inherited:
            return wanted, {}
        ports, taken = dict(wanted), frontend_owners(wanted.values())
        found = {
            name: without_taken_frontends(port, taken) for name, port in self.inherited.items()
        }
        for name, fallback in self._chosen.items():
            port = ports.pop(name, None)
            if fallback is _Fallback.ACCEPTED:
                ports[name] = without_taken_frontends(before[name], taken)
            elif fallback is _Fallback.INHERITED and port is not None:
                found[name] = port
        return ports, self._kept(found, settings, observed)

    def _kept(
        self, found: Mapping[ServicePortName, ServicePort], settings: Settings, observed: TableDump
    ) -> ElementsBySet:
        """Return the elements that the kernel holds at the keys of some Service ports."""
        owners, kept = PortIndex(found.values(), settings), ElementsBySet()
        self.inherited = {}
        for name, tails in observed.elements.items():
            for key, tail in tails.items():
                names = owners.of_element(name, key)
                # The former endpoints are unknown: keep the hairpins of all of them.
                if names or (found and name == table_sets.HAIRPINS):
                    kept.setdefault(name, {})[key] = tail
                if name not in {table_sets.HAIRPINS, table_sets.CLUSTER_ADDRESSES}:
                    self.inherited.update({owner: found[owner] for owner in names})
        return kept if self.inherited else ElementsBySet()
