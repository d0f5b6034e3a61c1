"""The hooks that run after a successful sync: conntrack clean-up and health-check node ports."""

import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import structlog

from svcproxy.backends.core.node_settings import node_address
from svcproxy.config import Config
from svcproxy.conntrack.cleaner import StaleFlows
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.objects import Node
from svcproxy.model.serviceport import ServicePort
from svcproxy.observe.metrics import Metrics
from svcproxy.observe.service_health import ServiceHealthServers
from svcproxy.sync.after_sync import SyncHook, SyncResult

log = structlog.get_logger()


def flow_cleaner(flows: StaleFlows, family: IPFamily, metrics: Metrics) -> SyncHook:
    """Return the hook that deletes stale conntrack entries.

    It runs after the sync, because the former rules would create the entries again. The first time
    it checks all Service ports: entries may have become stale while no proxy ran.
    """

    def clean(result: SyncResult) -> None:
        begin = time.monotonic()
        deleted = flows.clean_all(result.ports) if result.first else flows.clean(result.changes)
        metrics.conntrack_duration.labels(family).observe(time.monotonic() - begin)
        if deleted:
            metrics.conntrack_deleted.labels(family).inc(deleted)
            log.info("conntrack.cleaned", family=family, flows=deleted)

    return clean


def health_checks(
    servers: ServiceHealthServers, addresses: Callable[[Node | None], tuple[str, ...]]
) -> SyncHook:
    """Return the hook that opens, closes and updates health-check node ports.

    Args:
        servers: the servers of the family.
        addresses: returns the addresses to listen on for a Node object.
    """
    addresses_outdated = True
    unapplied: dict[ServicePortName, ServicePort | None] = {}

    def apply(result: SyncResult) -> None:
        nonlocal addresses_outdated
        # Each change is passed once: keep it until it is applied, also after an exception.
        addresses_outdated |= result.changes.node_changed
        unapplied.update(result.changes.ports)
        if addresses_outdated:
            servers.set_addresses(addresses(result.node))
            addresses_outdated = False
        servers.apply(unapplied)
        unapplied.clear()

    return apply


def health_check_addresses(config: Config, family: IPFamily, node: Node | None) -> tuple[str, ...]:
    """Return the addresses that serve node ports, which serve health checks too; empty means all."""
    if config.nodeport_primary:
        address = node_address(config, family, node)
        return (address,) if address else ()
    ranges = config.nodeport_cidrs(family)
    if any(cidr.endswith("/0") for cidr in ranges):
        return ()
    return local_addresses(family, ranges) if ranges else ()


def local_addresses(family: IPFamily, ranges: tuple[str, ...]) -> tuple[str, ...]:
    """Return the node's addresses within ``ranges`` (CIDRs), as the kernel lists them in /proc."""
    networks = [ip_network(cidr) for cidr in ranges]
    found = _local_ipv6() if family is IPFamily.IPV6 else _local_ipv4()
    return tuple(sorted(a for a in found if any(ip_address(a) in n for n in networks)))


def _local_ipv4() -> set[str]:
    found: set[str] = set()
    last = ""
    for line in Path("/proc/net/fib_trie").read_text().splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            last = words[1]
        elif words[:3] == ["/32", "host", "LOCAL"]:
            found.add(last)
    return found


_LINK_LOCAL = "20"
"""The scope of an address in /proc/net/if_inet6 (``IPV6_ADDR_LINKLOCAL``)."""


def _local_ipv6() -> set[str]:
    fields = map(str.split, Path("/proc/net/if_inet6").read_text().splitlines())
    # Listening on a link-local address needs the index of its link.
    return {str(ip_address(bytes.fromhex(f[0]))) for f in fields if f[3] != _LINK_LOCAL}
