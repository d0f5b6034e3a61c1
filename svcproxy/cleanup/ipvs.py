"""What IPVS mode leaves: virtual servers, the interface with their addresses, ipsets.

Rules may name the sets, so those have to go first. Modules of the kernel are not loaded for this:
where one is missing, there is nothing of it.
"""

import errno
import socket
from collections.abc import Callable, Collection
from ipaddress import ip_address, ip_network
from pathlib import Path

from svcproxy import sysctl
from svcproxy.backends.base import BackendError
from svcproxy.backends.ipvs.connection import Ipvs
from svcproxy.backends.ipvs.ipset import Sets
from svcproxy.backends.ipvs.links import Links
from svcproxy.backends.ipvs.operations import DeleteVirtualServer, DestroySet, Failure
from svcproxy.backends.ipvs.values import DUMMY_INTERFACE
from svcproxy.model.names import IPFamily
from svcproxy.model.sysctl import Sysctl

_SERVERS = Path("/proc/thread-self/net/ip_vs")
_CONNECTIONS = Path("/proc/thread-self/net/ip_vs_conn")
_OVER = frozenset({"NONE", "TIME_WAIT", "CLOSE", "ERR!", "SYN_SENT"})
"""A client's connection through IPVS begins with SYN_RECV. SYN_SENT is what becomes of one in
TIME_WAIT when rules of ours lead a new connection from the same client's port to the same endpoint:
IPVS sees the answer only. On a busy node that never ends."""
_KEEP_ENTRIES = Sysctl(
    "net/ipv4/vs/expire_nodest_conn",
    0,
    "connections through new rules break when they reuse a client port that IPVS remembers",
)
"""IPVS must not delete the connection entries of a virtual server together with it.

With an entry, also of a connection closed long ago, IPVS deletes the conntrack entry of the client
port and the virtual server (``ip_vs_conn_drop_conntrack``). By then it may belong to a new
connection, which rules have sent to an endpoint; that connection would break.
"""
_NO_IPSET = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


def destroy_sets(wanted: Callable[[str], bool]) -> int:
    """Destroy the ipsets, of both families, whose names are wanted; return how many.

    Raises:
        BackendError: one is still in use, or the kernel does not let us; the others are gone.
    """
    destroyed = 0
    failures: list[Failure] = []
    for family in IPFamily:
        sets = Sets(family)
        try:
            doomed = [DestroySet(name) for name in sorted(sets.headers()) if wanted(name)]
            refused = sets.execute(doomed)
        except BackendError as error:
            if getattr(error.__cause__, "errno", 0) in _NO_IPSET:
                return 0
            raise
        finally:
            sets.close()
        destroyed += len(doomed) - len(refused)
        failures += refused
    _raise(failures, "destroy the ipset")
    return destroyed


def remove_servers(spared: Collection[str], *, now: bool) -> dict[str, int]:
    """Remove all virtual servers, and the interface that holds their addresses.

    Virtual servers carry no mark of who made them. Where that interface is, kube-proxy's or our
    IPVS mode has run, which takes every virtual server for its own but those in spared ranges;
    where it is not, none is touched.

    Args:
        spared: CIDRs whose virtual servers stay (``--ipvs-exclude-cidrs``).
        now: even if connections still go through IPVS: without the addresses, their packets are
            not for this machine.

    Raises:
        BackendError: the kernel refused, or there are such connections.
    """
    if not _has_interface():
        return {}
    if not now and has_connections():
        raise BackendError(f"{DUMMY_INTERFACE} stays: connections still go through IPVS")
    deleted = 0
    if _SERVERS.exists():
        sysctl.ensure(_KEEP_ENTRIES)
        deleted = sum(_remove_servers(family, spared) for family in IPFamily)
    links = Links(IPFamily.IPV4)
    try:
        return {"virtual_server_deleted": deleted, "link_deleted": int(links.remove())}
    finally:
        links.close()


def _has_interface() -> bool:
    try:
        socket.if_nametoindex(DUMMY_INTERFACE)
    except OSError:
        return False
    return True


def _remove_servers(family: IPFamily, spared: Collection[str]) -> int:
    networks = [ip_network(cidr, strict=False) for cidr in spared]
    ipvs = Ipvs(family)
    try:
        doomed = [
            DeleteVirtualServer(key)
            for key in ipvs.virtual_servers()
            if not any(ip_address(key.address) in network for network in networks)
        ]
        failures = ipvs.execute(doomed)
    finally:
        ipvs.close()
    _raise(failures, "delete the virtual server")
    return len(doomed)


def _raise(failures: Collection[Failure], what: str) -> None:
    if failures:
        told = ", ".join(f"{_named(failure)} ({failure.reason})" for failure in failures)
        raise BackendError(f"cannot {what} {told}")


def _named(failure: Failure) -> str:
    match failure.operation:
        case DestroySet(name):
            return name
        case DeleteVirtualServer(key):
            return f"{key.address} {key.port}/{key.protocol.keyword}"
        case operation:
            return str(operation)


def has_connections() -> bool:
    """Whether TCP connections still go through virtual servers at addresses that are ours."""
    if not _has_interface():
        return False
    try:
        lines = _CONNECTIONS.read_text(encoding="ascii", errors="replace").splitlines()[1:]
    except OSError:
        return False
    return any(
        fields[0] == "TCP" and fields[7] not in _OVER
        for line in lines
        if len(fields := line.split()) > 7
    )
