"""The rules and virtual servers that IPVS mode programs for some Service ports.

The only module of this package that depends on IPVS mode's planner.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import ip_address

from svcproxy.backends.base import Desired
from svcproxy.backends.ipvs.core.difference import Observed, restore_input
from svcproxy.backends.ipvs.core.planner import Planner
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.explain.core.iptables_rules import Sets, Tables, parse_tables
from svcproxy.explain.core.ipvs_rules import IpvsRuleset, RealServer, VirtualServer
from svcproxy.explain.core.packet import target_text
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    ServerFlag,
    SetEntry,
    VirtualServerKey,
    without_zero_prefix,
)
from svcproxy.netlink.core.kernel_objects import VirtualServer as PlannedServer
from svcproxy.netlink.core.operations import AddRealServer, AddVirtualServer

_NAMED_FLAGS = (
    (ServerFlag.SCHEDULER_1, "fallback", "flag-1"),
    (ServerFlag.SCHEDULER_2, "port", "flag-2"),
    (ServerFlag.SCHEDULER_3, "", "flag-3"),
)


def rendered(ports: Mapping[ServicePortName, ServicePort], settings: IpvsSettings) -> IpvsRuleset:
    """Return everything that IPVS mode programs into an empty kernel."""
    plan = Planner(settings).plan(
        Desired(ports, settings), settings, Observed({}, {}, {}, {}, frozenset())
    )
    servers: dict[VirtualServerKey, PlannedServer] = {}
    real: dict[VirtualServerKey, dict[RealServerKey, int]] = {}
    for operation in (*plan.serve, *plan.node_ports):
        if isinstance(operation, AddVirtualServer):
            servers[operation.key] = operation.server
        elif isinstance(operation, AddRealServer):
            real.setdefault(operation.virtual, {})[operation.key] = operation.weight
    entries: dict[str, set[SetEntry]] = {}
    for name, entry in plan.add_entries:
        entries.setdefault(name, set()).update(without_zero_prefix(entry))
    tables = {**plan.tables, **plan.hand_over}
    return ruleset(parse_tables(restore_input(tables)), entries, servers, real, bound=plan.bind)


def ruleset(
    tables: Tables,
    entries: Mapping[str, AbstractSet[SetEntry]],
    servers: Mapping[VirtualServerKey, PlannedServer],
    real: Mapping[VirtualServerKey, Mapping[RealServerKey, int]],
    *,
    bound: Iterable[str],
) -> IpvsRuleset:
    """Convert IPVS mode's own values, planned or read from a kernel."""
    return IpvsRuleset(
        tables,
        _sets(entries),
        {
            (key.protocol.keyword, server_target(key.address, key.port)): printed_server(
                server, real.get(key, {})
            )
            for key, server in servers.items()
        },
        frozenset(ip_address(address).packed for address in bound),
    )


def _sets(entries: Mapping[str, AbstractSet[SetEntry]]) -> Sets:
    return {name: frozenset(map(entry_text, found)) for name, found in entries.items()}


def entry_text(entry: SetEntry) -> str:
    """Return an entry of an ipset as ``ipset list`` prints it: ``10.96.0.1,tcp:80``."""
    port = str(entry.port) if entry.port else ""
    if entry.protocol is not None:
        port = f"{entry.protocol.keyword}:{entry.port}"
    return ",".join(filter(None, (entry.address, port, entry.other)))


def server_target(address: str, port: int) -> str:
    """Return ``address:port`` as ipvsadm prints it."""
    return target_text(ip_address(address).packed, port)


def printed_server(server: PlannedServer, real: Mapping[RealServerKey, int]) -> VirtualServer:
    """Return a virtual server with the weights of its real servers in the form of a ruleset."""
    return VirtualServer(
        server.scheduler,
        tuple(RealServer(server_target(*key), weight) for key, weight in sorted(real.items())),
        tuple(
            f"{server.scheduler}-{name}" if name and server.scheduler in {"sh", "mh"} else number
            for flag, name, number in _NAMED_FLAGS
            if server.flags & flag
        ),
        server.timeout,
    )
