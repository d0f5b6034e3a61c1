"""Removing the virtual servers of IPVS mode, and the interface with their addresses.

Rules may use the ipsets of IPVS mode, so the rules are removed first. Kernel modules are not loaded
for this: an object cannot exist without its module.
"""

import socket
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path

from svcproxy import sysctl
from svcproxy.backends.base import BackendError
from svcproxy.backends.ipvs.core.chains_and_sets import (
    DUMMY_INTERFACE,
    IPVS_FILTER,
    SETS,
    SUBSTITUTES,
)
from svcproxy.backends.ipvs.kernel import kernel_errors
from svcproxy.backends.mode_spec import ActiveMode, Cleanup, CleanupStep
from svcproxy.model.names import IPFamily
from svcproxy.model.sysctl import Sysctl
from svcproxy.netlink.core.operations import DeleteVirtualServer, Failure
from svcproxy.netlink.ipvs import IpvsSocket
from svcproxy.netlink.rtnetlink import RouteSocket

IPSETS = frozenset(name for names in (*SETS.values(), SUBSTITUTES.values()) for name in names)
"""The ipsets of IPVS mode, svcproxy's and kube-proxy's, of both families."""

_SERVERS = Path("/proc/thread-self/net/ip_vs")
_CONNECTIONS = Path("/proc/thread-self/net/ip_vs_conn")
_ENDED = frozenset({"NONE", "TIME_WAIT", "CLOSE", "ERR!", "SYN_SENT"})
"""The states of connections that IPVS no longer carries.

A client's connection through IPVS begins with SYN_RECV. An entry in TIME_WAIT changes to SYN_SENT
when svcproxy's rules send a new connection from the same client port to the same endpoint, because
IPVS sees the reply only. On a busy node there are always some."""
_KEEP_ENTRIES = Sysctl(
    "net/ipv4/vs/expire_nodest_conn",
    0,
    "connections through new rules break when they reuse a client port that IPVS remembers",
)
"""IPVS must not delete the connection entries of a virtual server together with it.

With an entry, also of a connection closed long ago, IPVS deletes the conntrack entry of the client
port and the virtual server (``ip_vs_conn_drop_conntrack``). By then it may belong to a new
connection, which rules have sent to an endpoint; that connection would break."""


def chains_in_use() -> tuple[str, ...]:
    """Return the chains that must stay as long as connections go through IPVS.

    The chain rejects packets to the node's own ports at addresses of Services. It is needed as long
    as the node has these addresses.
    """
    return (IPVS_FILTER,) if has_connections() else ()


@kernel_errors()
def remove_virtual_servers(keep: Collection[str], *, now: bool) -> dict[str, int]:
    """Remove all virtual servers, and the interface that has their addresses.

    A virtual server does not say which program created it. If the interface exists, IPVS mode of
    svcproxy or kube-proxy has run, which owns every virtual server outside ``keep``. Without the
    interface, no virtual server is removed.

    Args:
        keep: CIDRs whose virtual servers stay (``--ipvs-exclude-cidrs``).
        now: remove them even if connections still go through IPVS. Without the addresses, the
            packets of these connections are no longer delivered to this node.

    Raises:
        BackendError: the kernel refused, or connections still go through IPVS.
    """
    if not _has_interface():
        return {}
    if not now and has_connections():
        raise BackendError(f"{DUMMY_INTERFACE} stays: connections still go through IPVS")
    deleted = 0
    if _SERVERS.exists():
        sysctl.ensure(_KEEP_ENTRIES)
        deleted = sum(_remove_servers(family, keep) for family in IPFamily)
    links = RouteSocket(IPFamily.IPV4, DUMMY_INTERFACE)
    try:
        return {"virtual_server_deleted": deleted, "link_deleted": int(links.remove())}
    finally:
        links.close()


def has_connections() -> bool:
    """Whether TCP connections still go through virtual servers at addresses of the interface."""
    if not _has_interface():
        return False
    try:
        lines = _CONNECTIONS.read_text(encoding="ascii", errors="replace").splitlines()[1:]
    except OSError:
        return False
    return any(
        fields[0] == "TCP" and fields[7] not in _ENDED
        for line in lines
        if len(fields := line.split()) > 7
    )


def _has_interface() -> bool:
    try:
        socket.if_nametoindex(DUMMY_INTERFACE)
    except OSError:
        return False
    return True


def _remove_servers(family: IPFamily, keep: Collection[str]) -> int:
    networks = [ip_network(cidr, strict=False) for cidr in keep]
    ipvs = IpvsSocket(family)
    try:
        deletions = [
            DeleteVirtualServer(key)
            for key in ipvs.virtual_servers()
            if not any(ip_address(key.address) in network for network in networks)
        ]
        failures = ipvs.execute(deletions)
    finally:
        ipvs.close()
    if failures:
        raise BackendError(f"cannot delete the virtual server {', '.join(map(_text, failures))}")
    return len(deletions)


def _text(failure: Failure) -> str:
    match failure.operation:
        case DeleteVirtualServer(key):
            return f"{key.address} {key.port}/{key.protocol.keyword} ({failure.reason})"
        case operation:
            return f"{operation} ({failure.reason})"


def _rules(_active: ActiveMode, _family: IPFamily, keep: Collection[str]) -> Iterator[CleanupStep]:
    """Yield a step that fails while chains are in use, so that the clean-up is retried."""

    def report_chains_in_use() -> Mapping[str, int]:
        raise BackendError(f"{', '.join(keep)} stays: connections still go through IPVS")

    if keep:
        yield report_chains_in_use


def _shared(active: ActiveMode) -> Iterator[CleanupStep]:
    if active.mode != "ipvs":
        yield partial(remove_virtual_servers, active.keep, now=active.mode is None)


CLEANUP = Cleanup(_rules, _shared, IPSETS.__contains__, chains_in_use)
