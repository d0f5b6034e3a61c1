"""Comparing the desired Service ports with the recorded ones."""

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from svcproxy.backends.settings import Settings
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort

Ports = Mapping[ServicePortName, ServicePort]


class Operation(msgspec.Struct, frozen=True):
    """A change of one Service port.

    Attributes:
        name: the Service port.
        before: what is recorded; ``None`` if it is new.
        after: what to record; ``None`` to remove it.
    """

    name: ServicePortName
    before: ServicePort | None
    after: ServicePort | None

    @property
    def kind(self) -> str:
        """The kind of operation, as in metrics and logs."""
        if self.before is None:
            return "service_port_added"
        return "service_port_removed" if self.after is None else "service_port_changed"


class Plan(msgspec.Struct, frozen=True):
    """The operations of one sync, and the settings that they are based on."""

    operations: tuple[Operation, ...]
    settings: Settings

    def counts(self) -> dict[str, int]:
        """Return the number of operations by kind."""
        return dict(Counter(operation.kind for operation in self.operations))


def resync(desired: Ports, recorded: Ports, settings: Settings) -> Plan:
    """Plan what makes all ``recorded`` ports equal to the ``desired`` ones."""
    wanted = {**dict.fromkeys(recorded.keys() - desired.keys()), **desired}
    return changes(wanted, recorded, settings)


def changes(
    changed: Mapping[ServicePortName, ServicePort | None], recorded: Ports, settings: Settings
) -> Plan:
    """Plan the changed ports only; ``None`` stands for a removed one."""
    return Plan(tuple(_operations(changed, recorded)), settings)


def _operations(
    changed: Mapping[ServicePortName, ServicePort | None], recorded: Ports
) -> Iterator[Operation]:
    for name, after in changed.items():
        before = recorded.get(name)
        if before != after:
            yield Operation(name, before, after)
