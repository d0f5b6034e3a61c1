"""Reads what the kernel holds of IPVS mode, without any change to it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from svcproxy import sysctl
from svcproxy.backends.base import BackendError
from svcproxy.backends.ipvs.core.difference import Observed
from svcproxy.backends.ipvs.core.settings import IpvsSettings, KernelFacts
from svcproxy.backends.ipvs.kernel import IpvsKernel as KernelSockets
from svcproxy.explain.core.ipvs_templates import templates
from svcproxy.explain.iptables_reader import explained, programs
from svcproxy.explain.mode_explainer import KernelUnreadableError
from svcproxy.limits import IP_VS_CONNECTIONS_BYTES
from svcproxy.netlink.errors import NetlinkError

_CONNECTIONS = Path("/proc/thread-self/net/ip_vs_conn")


class IpvsKernel(msgspec.Struct, frozen=True):
    """What the kernel holds of IPVS mode.

    Attributes:
        observed: virtual servers, ipsets, rules, and the addresses on ``kube-ipvs0``.
        facts: the node's own addresses, and what else a resync of the daemon would find now.
        persistent: the real server of each client with persistence.
    """

    observed: Observed
    facts: KernelFacts
    persistent: Mapping[bytes, str]


def read(settings: IpvsSettings, variant: str) -> IpvsKernel:
    """Read everything that belongs to IPVS mode.

    Args:
        settings: the settings of the daemon.
        variant: the variant of iptables; empty for the one that is in use.

    Raises:
        KernelUnreadableError: not permitted, or a program or module is missing.
    """
    family = settings.family
    tools = programs(variant, family)
    try:
        kernel = KernelSockets(tools)
        try:
            observed, addresses, _ = kernel.read()
        finally:
            for opened in (kernel.ipvs, kernel.sets, kernel.links):
                opened.close()
    except (BackendError, NetlinkError) as error:
        raise KernelUnreadableError(_with_remedy(str(error))) from error
    facts = msgspec.structs.replace(
        settings.facts,
        addresses=addresses.node,
        subnets=addresses.networks,
        drop_invalid=not sysctl.conntrack_is_liberal(),
    )
    persistent: Mapping[bytes, str] = {}
    if any(server.timeout for server in observed.servers.values()):
        persistent = templates(_connections(), family)
    return IpvsKernel(observed, facts, persistent)


def _connections() -> Iterator[str]:
    """Yield the lines of the kernel's list of connections, up to a limit; none without the list."""
    size = 0
    try:
        with _CONNECTIONS.open(encoding="ascii", errors="replace") as listing:
            for line in listing:
                size += len(line)
                if size > IP_VS_CONNECTIONS_BYTES:
                    return
                yield line
    except OSError:
        return


def _with_remedy(message: str) -> str:
    if "ipvs" in message.lower() and "ermi" not in message and "ermitted" not in message:
        return f"{message}: load the kernel module ip_vs"
    return explained(message)
