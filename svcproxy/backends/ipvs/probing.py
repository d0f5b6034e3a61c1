"""What IPVS mode needs of the kernel: modules, schedulers, and kernel parameters.

The kernel loads a module when its feature is first used, so probing a feature also loads it. This
fails if the module is not installed or if ``kernel.modprobe`` is disabled.
"""

import errno
from collections.abc import Iterator

from svcproxy.backends.base import BackendError, BackendUnavailable
from svcproxy.backends.ipvs.core.chains_and_sets import DUMMY_INTERFACE
from svcproxy.backends.xtables.commands import Iptables
from svcproxy.backends.xtables.core.rule_text import FILTER
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.model.sysctl import Sysctl
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
_PROBE_ADDRESSES = {IPFamily.IPV4: "198.51.100.0", IPFamily.IPV6: "2001:db8::"}
"""Documentation addresses (RFC 5737, RFC 3849); kube-proxy probes with the IPv4 one, too."""
_PROBE_PORT = 20000
_REUSE = "net/ipv4/vs/conn_reuse_mode"
_REUSE_FIXED = (5, 9)
"""Since Linux 5.9 a connection from a reused port is not delayed by a second (35dfb013149f).
kube-proxy leaves the parameter alone from that version on."""


def probe(programs: Iptables) -> None:
    """Check that the kernel has all features, and make it load their modules.

    The probe leaves nothing behind but ``kube-ipvs0``.

    Raises:
        BackendUnavailable: a feature is missing; the message names the modules.
    """
    family = programs.family
    try:
        missing = list(_missing_modules(programs))
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


def lacks_scheduler(ipvs: IpvsSocket, scheduler: str) -> bool:
    """Whether the kernel lacks a scheduler, probed with a temporary virtual server.

    Raises:
        BackendError: the kernel refused the virtual server for another reason.
        NetlinkError: the kernel did not answer.
    """
    key = VirtualServerKey(Protocol.TCP, _PROBE_ADDRESSES[ipvs.family], _PROBE_PORT)
    failures = ipvs.execute([AddVirtualServer(key, VirtualServer(scheduler))])
    ipvs.execute([DeleteVirtualServer(key)])
    for failure in failures:
        if failure.number == errno.ENOENT:
            return True
        if failure.number == errno.EAFNOSUPPORT:
            raise BackendError("the kernel's ip_vs is built without CONFIG_IP_VS_IPV6")
        raise BackendError(f"the kernel refuses virtual servers: {failure.reason}")
    return False


def _missing_modules(programs: Iptables) -> Iterator[str]:
    yield from _missing_for_servers(programs.family)
    yield from _missing_for_addresses(programs.family)
    sets = IpsetSocket(programs.family)
    try:
        types = [module_of(name) for name in sets.missing_types(REVISIONS)]
        yield from types
        yield from _missing_for_rules(programs, sets, has_sets=module_of(_PROBE_TYPE) not in types)
    finally:
        sets.close()


def _missing_for_rules(programs: Iptables, sets: IpsetSocket, *, has_sets: bool) -> Iterator[str]:
    """Yield the missing modules of iptables matches; matching a set needs an existing set."""
    matches = {}
    name = _PROBE_SETS[programs.family]
    if has_sets:
        for failure in sets.execute([CreateSet(name, SetKind(_PROBE_TYPE))]):
            raise BackendError(f"cannot create the ipset {name}: {failure.reason}")
        matches["xt_set"] = f"-m set --match-set {name} dst"
    matches["xt_ipvs"] = "-m ipvs --ipvs"
    yield from (m for m, match in matches.items() if not programs.accepts(FILTER, match))
    if has_sets:
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
        if lacks_scheduler(ipvs, "rr"):
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


def required_sysctls(release: str, *, strict_arp: bool) -> Iterator[Sysctl]:
    """Yield the kernel parameters to set.

    Those below ``net/ipv4/vs`` exist once the module ``ip_vs`` is loaded. kube-proxy 1.36 sets the
    same ones (``NewProxier`` in ``pkg/proxy/ipvs``).

    Args:
        release: the kernel's release, such as ``5.15.0-91-generic``.
        strict_arp: do not answer ARP requests for addresses of ``kube-ipvs0``
            (``--ipvs-strict-arp``).
    """
    yield Sysctl("net/ipv4/vs/conntrack", 1, "masquerading and source checks do not work")
    if kernel_version(release) < _REUSE_FIXED:
        effect = (
            "connections from a port just used before wait a second, or go to a removed endpoint"
        )
        yield Sysctl(_REUSE, 0, effect)
    effect = "clients stay on removed endpoints"
    yield Sysctl("net/ipv4/vs/expire_nodest_conn", 1, effect)
    effect = "clients with session affinity stay on terminating endpoints"
    yield Sysctl("net/ipv4/vs/expire_quiescent_template", 1, effect)
    yield Sysctl("net/ipv4/ip_forward", 1, "pods on other nodes cannot be reached")
    if strict_arp:
        effect = "this node answers ARP requests for virtual addresses on all of its interfaces"
        yield Sysctl("net/ipv4/conf/all/arp_ignore", 1, effect)
        yield Sysctl("net/ipv4/conf/all/arp_announce", 2, effect)


def kernel_version(release: str) -> tuple[int, int]:
    """Return the first two numbers of a kernel release; (0, 0) if it has none."""
    major, _, rest = release.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)
