"""Reads the iptables rules and ipsets of a family, without any change to the kernel."""

from pathlib import Path

import msgspec

from svcproxy import sysctl
from svcproxy.backends.base import BackendError, BackendUnavailable
from svcproxy.backends.iptables.core.naming import ENDPOINT_PREFIX
from svcproxy.backends.iptables.core.plan import Observed
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.core.rule_text import TABLES
from svcproxy.backends.xtables.core.savefile import parse
from svcproxy.backends.xtables.variant import detect, legacy_tables
from svcproxy.explain.mode_explainer import KernelUnreadableError
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.families import FAMILY_NUMBERS
from svcproxy.netlink.core.kernel_objects import SetKind
from svcproxy.netlink.errors import NetlinkError
from svcproxy.netlink.ipset import IpsetSocket

_CLIENTS = SetKind("hash:ip")
_MODULE = Path("/sys/module/ip_set")


class IptablesKernel(msgspec.Struct, frozen=True):
    """What the kernel holds of iptables mode.

    Attributes:
        observed: the tables, and the names of the ipsets.
        clients: the addresses in each ipset.
        drop_invalid: whether rules may drop packets in conntrack state INVALID, as a resync of the
            daemon would find now.
    """

    observed: Observed
    clients: dict[str, frozenset[str]]
    drop_invalid: bool


class ReadingIptables(Iptables):
    """The programs of a variant, for a reader.

    Legacy tables that do not exist are left out: iptables-legacy-save would create them.
    """

    def save(self, *tables: str) -> str:
        """See ``Iptables.save``."""
        if self.variant is Variant.LEGACY:
            existing = legacy_tables(self.family)
            tables = tuple(table for table in tables or existing if table in existing)
            if not tables:
                return ""
        return super().save(*tables)


def programs(variant: str, family: IPFamily) -> Iptables:
    """Return the programs of a variant; if it is empty, of the one that is in use.

    Raises:
        KernelUnreadableError: they are not installed.
    """
    try:
        return ReadingIptables(Variant(variant) if variant else detect(), family)
    except BackendUnavailable as error:
        raise KernelUnreadableError(str(error)) from error


def read(family: IPFamily, variant: str, *, with_sets: bool) -> IptablesKernel:
    """Read both tables, and the ipsets that hold clients.

    Args:
        family: the IP family.
        variant: the variant of iptables; empty for the one that is in use.
        with_sets: list ipsets even if no rule names one.

    Raises:
        KernelUnreadableError: not permitted, or a program is missing.
    """
    tools = programs(variant, family)
    try:
        text = tools.save(*TABLES)
    except BackendError as error:
        raise KernelUnreadableError(explained(str(error))) from error
    named = "--match-set " in text
    clients: dict[str, frozenset[str]] = {}
    # A request to ipset would load its module.
    if named or (with_sets and _MODULE.exists()):
        clients = _clients(family)
    observed = Observed(parse(text), frozenset(clients))
    return IptablesKernel(observed, clients, not sysctl.conntrack_is_liberal())


def _clients(family: IPFamily) -> dict[str, frozenset[str]]:
    """Return the addresses in each ipset of iptables mode."""
    try:
        sets = IpsetSocket(family)
        try:
            return {
                name: frozenset(
                    entry.address
                    for entry in (sets.entries(name, _CLIENTS) if header.elements else ())
                )
                for name, header in sets.headers().items()
                if name.startswith(ENDPOINT_PREFIX) and header.family == FAMILY_NUMBERS[family]
            }
        finally:
            sets.close()
    except NetlinkError as error:
        raise KernelUnreadableError(explained(str(error))) from error


def explained(message: str) -> str:
    """Return an error of a program or of the kernel with its remedy."""
    words = message.lower()
    if "permi" in words or "must be root" in words:
        return f"{message}: run as root or with CAP_NET_ADMIN and CAP_NET_RAW"
    return message
