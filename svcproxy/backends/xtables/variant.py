"""Detects which variant of iptables this node uses.

kubelet creates a hint chain in the mangle table for this purpose (KEP-3178). Legacy tables are read
only if they exist, because iptables-legacy-save creates a table when it reads it.
"""

from pathlib import Path

import structlog

from svcproxy.backends.base import BackendError, BackendUnavailable
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.config import Config, IptablesVariant
from svcproxy.model.names import IPFamily
from svcproxy.netlink.generation import has_tables

_HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
_LEGACY_TABLES = {
    IPFamily.IPV4: Path("/proc/thread-self/net/ip_tables_names"),
    IPFamily.IPV6: Path("/proc/thread-self/net/ip6_tables_names"),
}

log = structlog.get_logger()


def chosen_variant(config: Config) -> Variant:
    """Return the variant that the flags choose, or the one in use on this node.

    Raises:
        BackendUnavailable: there is no usable iptables at all.
    """
    auto = config.iptables_variant is IptablesVariant.AUTO
    variant = detect() if auto else Variant(config.iptables_variant.value)
    log.info("iptables.variant", variant=variant, chosen=config.iptables_variant)
    return variant


def detect() -> Variant:
    """Return the variant in use: the one with kubelet's hint, else with more rules, else nft.

    The nft variant is usable only if the kernel has nf_tables. All tables are read only if the
    mangle table does not decide, because that takes seconds on a busy node.

    Raises:
        BackendUnavailable: no variant is usable.
    """
    mangle = {variant: _saved(variant, "mangle") for variant in Variant}
    usable = [variant for variant, text in mangle.items() if text is not None]
    if not usable:
        raise BackendUnavailable(_remedy())
    for variant in usable:
        if any(hint in (mangle[variant] or "") for hint in _HINTS):
            return variant
    if len(usable) == 1 or not any(legacy_tables(family) for family in IPFamily):
        return usable[0]
    return max(usable, key=lambda variant: _rules(_saved(variant) or ""))


def _saved(variant: Variant, *tables: str) -> str | None:
    """Return the rules of a variant in both families; ``None`` if neither family is usable."""
    texts = [
        text for family in IPFamily if (text := _saved_family(variant, family, tables)) is not None
    ]
    return "".join(texts) if texts else None


def _saved_family(variant: Variant, family: IPFamily, tables: tuple[str, ...]) -> str | None:
    try:
        programs = Iptables(variant, family)
        if variant is Variant.NFT:
            return programs.save(*tables) if has_tables(family) else None
        existing = legacy_tables(family)
        wanted = [table for table in existing if not tables or table in tables]
        return programs.save(*wanted) if wanted else ""
    except BackendUnavailable:
        return None
    except BackendError as error:
        if _forbidden(str(error)):
            # The other variant would fail for the same reason.
            raise BackendUnavailable(_with_remedy(str(error))) from error
        return None


def legacy_tables(family: IPFamily) -> tuple[str, ...]:
    """Return the names of the legacy tables that exist in this network namespace."""
    try:
        return tuple(_LEGACY_TABLES[family].read_text().split())
    except OSError:
        return ()


def _rules(text: str) -> int:
    return sum(1 for line in text.splitlines() if line.startswith("-A "))


def _remedy() -> str:
    """Return why no variant is usable, as the error message of the last one tried."""
    reason = "no usable iptables found: install the iptables package"
    for variant in Variant:
        try:
            Iptables(variant, IPFamily.IPV4).save("nat")
        except (BackendError, BackendUnavailable) as error:
            reason = str(error)
    return reason


def _forbidden(message: str) -> bool:
    return "ermission denied" in message or "must be root" in message


def _with_remedy(message: str) -> str:
    return f"{message}: run as root or with CAP_NET_ADMIN and CAP_NET_RAW"
