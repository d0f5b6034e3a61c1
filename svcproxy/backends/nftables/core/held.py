"""Service ports that the kernel refused, and what stays in the kernel until it accepts them."""

from collections.abc import Iterable, Mapping
from enum import IntEnum

from msgspec import structs

from svcproxy.backends.nftables.core import sets
from svcproxy.backends.nftables.core.owners import Owners
from svcproxy.backends.settings import Settings
from svcproxy.model.names import Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.nf_tables.dump import Observed
from svcproxy.netlink.core.nf_tables.ruleset import Elements


class _Hold(IntEnum):
    """What is planned for a refused Service port. If the kernel refuses that too, the next follows.

    ``PREVIOUS``: the state that the kernel last accepted. ``FOUND``: the elements that the kernel
    holds at its keys, unchanged; used after a restart, when no accepted state is known.
    ``ABSENT``: no elements.
    """

    PREVIOUS = 1
    FOUND = 2
    ABSENT = 3


Takers = Mapping[tuple[Protocol, str, int], ServicePortName]
"""The Service port that has a frontend, by protocol, address (empty for node ports) and port."""


def takers(ports: Iterable[ServicePort]) -> Takers:
    """Index Service ports by their frontends."""
    return {
        (port.name.protocol, f.address, f.port): port.name for port in ports for f in port.frontends
    }


def yielding(port: ServicePort, taken: Takers) -> ServicePort:
    """Return a former Service port without the frontends that other ports have taken since."""
    name, protocol = port.name, port.name.protocol
    kept = tuple(
        f for f in port.frontends if taken.get((protocol, f.address, f.port), name) == name
    )
    return port if kept == port.frontends else structs.replace(port, frontends=kept)


class Held:
    """Remembers the state that the kernel last accepted, until it accepts the next one.

    Attributes:
        undo: the accepted states of the Service ports that changed since, ``None`` for new ones.
        strays: Service ports at whose keys unknown elements were kept in the kernel (``FOUND``).
    """

    def __init__(self) -> None:
        self.undo: dict[ServicePortName, ServicePort | None] = {}
        self.strays: dict[ServicePortName, ServicePort] = {}
        self._before: dict[ServicePortName, ServicePort] | None = None
        self._wanted: Mapping[ServicePortName, ServicePort] | None = None
        self._holds: dict[ServicePortName, _Hold] = {}

    def begin(
        self,
        present: Mapping[ServicePortName, ServicePort],
        wanted: Mapping[ServicePortName, ServicePort] | None = None,
    ) -> None:
        """Prepare a comparison.

        Args:
            present: the planner's Service ports: those in the kernel, or those of the last plan.
            wanted: the desired state; if ``None``, that of the last plan.
        """
        if self._before is None:
            self._before = dict(present)
            for name, port in self.undo.items():
                if port is None:
                    self._before.pop(name, None)
                else:
                    self._before[name] = port
        if wanted is not None:
            self._wanted = wanted
            self._holds, self.strays = {}, {}
        elif self._wanted is None:
            self._wanted = present
            for name in self.undo:
                self.strays.pop(name, None)
        self.undo = {}

    def settle(self) -> None:
        """Note that the kernel accepted the plan."""
        self.undo.clear()
        self._before = self._wanted = None
        self._holds.clear()

    def hold(self, names: Iterable[ServicePortName]) -> bool:
        """Plan less for some Service ports; return whether that was possible."""
        before, wanted = self._before or {}, self._wanted or {}
        for name in names:
            hold = self._holds.get(name)
            if hold is _Hold.ABSENT:
                return False
            if hold is not None:
                self._holds[name] = _Hold(hold + 1)
            elif name in before and before[name] != wanted.get(name):
                self._holds[name] = _Hold.PREVIOUS
            else:
                self._holds[name] = _Hold.FOUND
        return True

    def concerns_strays(self, changed: Mapping[ServicePortName, ServicePort | None]) -> bool:
        """Whether changes concern a stray, or take one of its frontends.

        Only a full comparison can replace the unknown elements there.
        """
        if not self.strays:
            return False
        taken = takers(port for port in changed.values() if port is not None)
        return not changed.keys().isdisjoint(self.strays) or any(
            yielding(port, taken) is not port for port in self.strays.values()
        )

    def owners(self, present: Mapping[ServicePortName, ServicePort], settings: Settings) -> Owners:
        """Return the owners of the last plan's objects; ``present`` are the planned ports."""
        if self._wanted is not None:
            return Owners(self._wanted.values(), settings, (self._before or {}).values())
        changed = (present[name] for name in self.undo if name in present)
        return Owners(changed, settings, filter(None, self.undo.values()))

    def ports(
        self, settings: Settings, observed: Observed
    ) -> tuple[Mapping[ServicePortName, ServicePort], Elements]:
        """Return the Service ports to render, and the unknown elements to keep in addition."""
        wanted, before = self._wanted or {}, self._before or {}
        if not self._holds and not self.strays:
            return wanted, {}
        ports, taken = dict(wanted), takers(wanted.values())
        found = {name: yielding(port, taken) for name, port in self.strays.items()}
        for name, hold in self._holds.items():
            port = ports.pop(name, None)
            if hold is _Hold.PREVIOUS:
                ports[name] = yielding(before[name], taken)
            elif hold is _Hold.FOUND and port is not None:
                found[name] = port
        return ports, self._kept(found, settings, observed)

    def _kept(
        self, found: Mapping[ServicePortName, ServicePort], settings: Settings, observed: Observed
    ) -> Elements:
        """Return the elements that the kernel holds at the keys of some Service ports."""
        owners, kept = Owners(found.values(), settings), Elements()
        self.strays = {}
        for name, tails in observed.elements.items():
            for key, tail in tails.items():
                names = owners.of_element(name, key)
                # The former endpoints are unknown: keep the hairpins of all of them.
                if names or (found and name == sets.HAIRPINS):
                    kept.setdefault(name, {})[key] = tail
                if name not in {sets.HAIRPINS, sets.CLUSTER_ADDRESSES}:
                    self.strays.update({owner: found[owner] for owner in names})
        return kept if self.strays else Elements()
