"""Whether this kernel can run IPVS mode, and which of its modules are missing if not.

The kernel loads the modules by itself when they are first asked for, so that asking is all it takes,
unless they are not installed or ``kernel.modprobe`` is switched off.
"""

import errno
from collections.abc import Iterator

from svcproxy.backends.base import BackendError, BackendUnavailable
from svcproxy.backends.ipvs.naming import DUMMY_INTERFACE
from svcproxy.backends.xtables.commands import Iptables
from svcproxy.backends.xtables.core.rule_text import FILTER
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core.ipset import REVISIONS, module_of
from svcproxy.netlink.core.kernel_objects import SetKind, VirtualServer, VirtualServerKey
from svcproxy.netlink.core.operations import (
    AddVirtualServer,
    CreateSet,
    DeleteVirtualServer,
    DestroySet,
)
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.ipset import IpsetSocket
from svcproxy.netlink.ipvs import IpvsSocket
from svcproxy.netlink.rtnetlink import RouteSocket

_PROBE_TYPE = "hash:ip"
_PROBE_SETS = {IPFamily.IPV4: "KUBE-PROBE-IPVS", IPFamily.IPV6: "KUBE-6-PROBE-IPVS"}
_DOCUMENTATION = {IPFamily.IPV4: "198.51.100.0", IPFamily.IPV6: "2001:db8::"}
"""Addresses that nobody has (RFC 5737, RFC 3849); kube-proxy tries the first one, too."""
_PROBE_PORT = 20000


def probe(programs: Iptables) -> None:
    """Check that all is there, and have the kernel load what it has not yet.

    It leaves nothing behind but ``kube-ipvs0``.

    Raises:
        BackendUnavailable: something is missing; the message names the modules.
    """
    family = programs.family
    try:
        missing = list(_missing(programs))
    except (BackendError, NetlinkError) as error:
        raise BackendUnavailable(
            f"cannot use {family} IPVS: {error} (svcproxy needs root or CAP_NET_ADMIN and CAP_NET_RAW)"
        ) from error
    if missing:
        names = " ".join(missing)
        raise BackendUnavailable(
            f"cannot use {family} IPVS: kernel modules are missing: {names}; load them"
            f" (modprobe -a {names}) or install them, or choose --proxy-mode=nftables"
        )


def scheduler_is_missing(ipvs: IpvsSocket, scheduler: str) -> bool:
    """Whether the kernel does not have a scheduler, tried with a virtual server that nobody uses.

    Raises:
        BackendError: the kernel did not answer, or refused for another reason.
    """
    key = VirtualServerKey(Protocol.TCP, _DOCUMENTATION[ipvs.family], _PROBE_PORT)
    failures = ipvs.execute([AddVirtualServer(key, VirtualServer(scheduler))])
    ipvs.execute([DeleteVirtualServer(key)])
    for failure in failures:
        if failure.number == errno.ENOENT:
            return True
        if failure.number == errno.EAFNOSUPPORT:
            raise BackendError("the kernel's ip_vs is built without CONFIG_IP_VS_IPV6")
        raise BackendError(f"the kernel refuses virtual servers: {failure.reason}")
    return False


def _missing(programs: Iptables) -> Iterator[str]:
    """The names of missing modules."""
    yield from _missing_for_servers(programs.family)
    yield from _missing_for_addresses(programs.family)
    sets = IpsetSocket(programs.family)
    try:
        types = [module_of(kind) for kind in sets.missing_types(REVISIONS)]
        yield from types
        yield from _missing_for_matching(programs, sets, by_set=module_of(_PROBE_TYPE) not in types)
    finally:
        sets.close()


def _missing_for_matching(programs: Iptables, sets: IpsetSocket, *, by_set: bool) -> Iterator[str]:
    """What rules lack; by sets they can only be tried if there are any."""
    matches = {}
    name = _PROBE_SETS[programs.family]
    if by_set:
        for failure in sets.execute([CreateSet(name, SetKind(_PROBE_TYPE))]):
            raise BackendError(f"cannot make the ipset {name}: {failure.reason}")
        matches["xt_set"] = f"-m set --match-set {name} dst"
    matches["xt_ipvs"] = "-m ipvs --ipvs"
    # All at once first: each attempt is a program to start.
    if not programs.accepts(FILTER, *matches.values()):
        yield from (m for m, match in matches.items() if not programs.accepts(FILTER, match))
    if by_set:
        sets.execute([DestroySet(name)])


def _missing_for_servers(family: IPFamily) -> Iterator[str]:
    try:
        ipvs = IpvsSocket(family)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        yield "ip_vs"
        return
    try:
        if scheduler_is_missing(ipvs, "rr"):
            yield "ip_vs_rr"
    finally:
        ipvs.close()


def _missing_for_addresses(family: IPFamily) -> Iterator[str]:
    links = RouteSocket(family, DUMMY_INTERFACE)
    try:
        links.read()
    except NetlinkError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        yield "dummy"
    finally:
        links.close()
