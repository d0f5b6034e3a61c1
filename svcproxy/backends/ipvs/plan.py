"""What was read from the kernel, and what is to be done to it."""

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet

import msgspec

from svcproxy.backends.xtables.core.restoretext import join_lines
from svcproxy.backends.xtables.core.rule_text import TABLES
from svcproxy.backends.xtables.core.savefile import Saved
from svcproxy.backends.xtables.core.tableplan import TablePlan
from svcproxy.model.names import ServicePortName
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    RealServers,
    SetEntry,
    SetKind,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import ServerOperation, SetOperation

Entry = tuple[str, SetEntry]
Leaving = dict[VirtualServerKey, list[RealServerKey]]


class Observed(msgspec.Struct, frozen=True):
    """What the kernel holds.

    That is rules, virtual servers with the weights of their real servers, ipsets by name, and
    the addresses on ``kube-ipvs0``.
    """

    tables: Saved
    servers: Mapping[VirtualServerKey, VirtualServer]
    real: Mapping[VirtualServerKey, RealServers]
    sets: Mapping[str, tuple[SetKind, AbstractSet[SetEntry]]]
    bound: AbstractSet[str]

    def holds(self, entry: Entry) -> bool:
        """Whether there is such a set and it has the entry."""
        name, member = entry
        return name in self.sets and member in self.sets[name][1]


class Plan(msgspec.Struct):
    """What is to be done, in parts that are carried out in the order of the fields.

    ``create_sets`` makes sets, and substitutes for those that do not serve. ``serve`` makes
    virtual servers and gives real ones; ``node_ports`` does so at the node's own addresses, where
    they serve at once and therefore need the rules first. ``hand_over`` are rules that take the
    place of iptables mode's, which lead connections past IPVS until then. ``quiesce`` sets
    weights to 0; ``leaving`` are the real servers of which that makes draining ones, or which
    were found draining. ``delete`` removes what has no connections to finish.

    ``ports`` are the Service ports that the plan concerns and ``former`` the virtual servers that
    they had before, unless everything was ``compared``.
    """

    create_sets: list[SetOperation] = []
    enter: list[Entry] = []
    serve: list[ServerOperation] = []
    tables: dict[str, TablePlan] = {}
    node_ports: list[ServerOperation] = []
    bind: list[str] = []
    hand_over: dict[str, TablePlan] = {}
    quiesce: list[ServerOperation] = []
    leaving: Leaving = {}
    delete: list[ServerOperation] = []
    unbind: list[str] = []
    leave: list[Entry] = []
    compared: bool = False
    ports: Collection[ServicePortName] = ()
    former: Collection[VirtualServerKey] = ()

    def __bool__(self) -> bool:
        return bool(
            self.create_sets
            or self.enter
            or self.serve
            or any(self.tables.values())
            or self.node_ports
            or self.bind
            or any(self.hand_over.values())
            or self.quiesce
            or self.delete
            or self.unbind
            or self.leave
        )


def restore_input(tables: Mapping[str, TablePlan]) -> str:
    """The restore input, or the empty text when no rule changes."""
    lines = [line for table in TABLES if tables.get(table) for line in tables[table].lines(table)]
    return join_lines(lines)
