"""What happens after a successful sync: hooks get the changes that are now in force."""

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec
import structlog

from svcproxy.conntrack.table import ConntrackError
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.objects import Node
from svcproxy.model.serviceport import ServicePort
from svcproxy.state.desired import Changes, DesiredState
from svcproxy.sync.report import Reporter

log = structlog.get_logger()


class SyncResult(msgspec.Struct, frozen=True):
    """What a successful sync has brought into force.

    Attributes:
        changes: all changes since the last successful sync, except those of Service ports that are
            held back.
        ports: all Service ports of the family.
        node: the Node object, if it is known.
        first: whether this is the first successful sync of the process. What the kernel held before
            is unknown.
    """

    changes: Changes
    ports: Mapping[ServicePortName, ServicePort]
    node: Node | None
    first: bool


SyncHook = Callable[[SyncResult], None]
"""Something to do after each successful sync, in the loop's thread.

It is called even if nothing changed, so that it can retry what failed before."""


class SyncHooks:
    """Calls the hooks of one family.

    Args:
        hooks: what to call, in this order.
        family: the IP family, for the log.
        reporter: reports unexpected exceptions of hooks.
    """

    def __init__(self, hooks: Sequence[SyncHook], family: IPFamily, reporter: Reporter) -> None:
        self._hooks = hooks
        self._family = family
        self._reporter = reporter
        self._pending = Changes({})
        self._withheld = Changes({})
        self._first = True

    @property
    def first(self) -> bool:
        """Whether no sync has succeeded yet."""
        return self._first

    @property
    def pending(self) -> Changes:
        """The changes that hooks have not got yet."""
        return self._pending

    def add(self, changes: Changes) -> None:
        """Add changes that the next sync is to bring into force."""
        self._pending = self._pending.then(changes)

    def prepare(self, state: DesiredState, held: Collection[ServicePortName]) -> SyncResult:
        """Return what a successful sync brought into force; ``held`` ports are not in force."""
        in_force, self._withheld = self._pending.split(held)
        return SyncResult(in_force, state.ports, state.node, self._first)

    def run(self, result: SyncResult) -> None:
        """Call the hooks with the result of ``prepare``; their failures are logged."""
        self._pending, self._first = self._withheld, False
        for hook in self._hooks:
            try:
                hook(result)
            except (OSError, ConntrackError) as error:
                log.warning("after_sync.failed", family=self._family, error=str(error))
            except Exception as error:  # noqa: BLE001 - reported; the other hooks are still called
                self._reporter.defect("after_sync", error)
