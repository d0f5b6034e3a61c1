"""Chooses the state that a refused Service port has in the kernel until the kernel accepts it."""

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
    """The fallback of a refused Service port; if the kernel refuses it too, the next one is used.

    ``ACCEPTED``: the state that the kernel accepted last. ``INHERITED``: the elements that the
    kernel holds at the port's keys stay as they are; used after a restart, when no accepted state
    is known. ``ABSENT``: no elements.
    """

    ACCEPTED = 1
    INHERITED = 2
    ABSENT = 3


FrontendOwners = Mapping[tuple[Protocol, str, int], ServicePortName]
"""The Service port of each frontend, by protocol, address (empty for node ports) and port."""


def frontend_owners(ports: Iterable[ServicePort]) -> FrontendOwners:
    """Index Service ports by their frontends."""
    return {
        (port.name.protocol, f.address, f.port): port.name for port in ports for f in port.frontends
    }


def without_taken_frontends(port: ServicePort, owners: FrontendOwners) -> ServicePort:
    """Return an earlier state of a Service port without the frontends that other ports own now."""
    name, protocol = port.name, port.name.protocol
    kept = tuple(
        f for f in port.frontends if owners.get((protocol, f.address, f.port), name) == name
    )
    return port if kept == port.frontends else structs.replace(port, frontends=kept)


class Fallbacks:
    """Remembers what the kernel accepted last, and chooses fallbacks for refused Service ports.

    Attributes:
        undo: the accepted state of each Service port that incremental plans changed since the last
            ``mark_applied``; ``None`` for new ones.
        inherited: the Service ports at whose keys elements of unknown content stay in the kernel.
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
        """Prepare a full comparison.

        Args:
            present: the planner's Service ports, as of its last plan.
            wanted: the desired state; ``None`` for that of the last plan.
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
        """Record that the kernel accepted the plan."""
        self.undo.clear()
        self._accepted = self._wanted = None
        self._chosen.clear()

    def fall_back(self, names: Iterable[ServicePortName]) -> bool:
        """Choose the next fallback of refused Service ports; return whether all had one."""
        accepted, wanted = self._accepted or {}, self._wanted or {}
        for name in names:
            fallback = self._chosen.get(name)
            if fallback is _Fallback.ABSENT:
                return False
            if fallback is not None:
                self._chosen[name] = _Fallback(fallback + 1)
            elif name in accepted and accepted[name] != wanted.get(name):
                self._chosen[name] = _Fallback.ACCEPTED
            else:
                self._chosen[name] = _Fallback.INHERITED
        return True

    def affects_inherited(self, changed: Mapping[ServicePortName, ServicePort | None]) -> bool:
        """Whether changes concern a port with inherited elements, or take one of its frontends.

        Only a full comparison can replace inherited elements.
        """
        if not self.inherited:
            return False
        owners = frontend_owners(port for port in changed.values() if port is not None)
        return not changed.keys().isdisjoint(self.inherited) or any(
            without_taken_frontends(port, owners) is not port for port in self.inherited.values()
        )

    def port_index(
        self, present: Mapping[ServicePortName, ServicePort], settings: Settings
    ) -> PortIndex:
        """Return the index from the last plan's messages to Service ports.

        Args:
            present: the planner's Service ports, as of its last plan.
            settings: the settings that they are rendered with.
        """
        if self._wanted is not None:
            return PortIndex(self._wanted.values(), settings, (self._accepted or {}).values())
        changed = (present[name] for name in self.undo if name in present)
        return PortIndex(changed, settings, filter(None, self.undo.values()))

    def resolve(
        self, settings: Settings, table: TableDump
    ) -> tuple[Mapping[ServicePortName, ServicePort], ElementsBySet]:
        """Return the Service ports to render, and the inherited elements to keep besides."""
        wanted, accepted = self._wanted or {}, self._accepted or {}
        if not self._chosen and not self.inherited:
            return wanted, {}
        ports, owners = dict(wanted), frontend_owners(wanted.values())
        inheriting = {
            name: without_taken_frontends(port, owners) for name, port in self.inherited.items()
        }
        for name, fallback in self._chosen.items():
            port = ports.pop(name, None)
            if fallback is _Fallback.ACCEPTED:
                ports[name] = without_taken_frontends(accepted[name], owners)
            elif fallback is _Fallback.INHERITED and port is not None:
                inheriting[name] = port
        return ports, self._inherit(inheriting, settings, table)

    def _inherit(
        self,
        ports: Mapping[ServicePortName, ServicePort],
        settings: Settings,
        table: TableDump,
    ) -> ElementsBySet:
        """Return the elements that the kernel holds at the keys of some Service ports."""
        index, kept = PortIndex(ports.values(), settings), ElementsBySet()
        self.inherited = {}
        for name, elements in table.elements.items():
            for key, encoded in elements.items():
                names = index.ports_of_element(name, key)
                # The ports' former endpoints are unknown, so all hairpins stay.
                if names or (ports and name == table_sets.HAIRPINS):
                    kept.setdefault(name, {})[key] = encoded
                if name not in {table_sets.HAIRPINS, table_sets.CLUSTER_ADDRESSES}:
                    self.inherited.update({found: ports[found] for found in names})
        return kept if self.inherited else ElementsBySet()
