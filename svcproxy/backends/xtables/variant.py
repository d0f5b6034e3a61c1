"""Which variant of iptables this node uses: rules written to the other one would be lost.

kubelet leaves a hint chain in the mangle table for exactly this purpose (KEP-3178). Legacy tables
are looked at only if they exist: reading one with iptables-legacy-save would create it.
"""

from pathlib import Path

import structlog

from svcproxy.backends.base import BackendError, BackendUnavailable
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.generation import has_tables
from svcproxy.config import Config, IptablesVariant
from svcproxy.model.names import IPFamily

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
    """Find the variant in use: by kubelet's hint, else by who holds more rules, else nft.

    The nft variant can be used only where the kernel has nf_tables.

    Only the mangle table is read where that decides: on a busy node, saving everything takes
    seconds.

    Raises:
        BackendUnavailable: there is no usable iptables at all.
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
    """What a variant holds in both families; ``None`` if it cannot be used at all."""
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
            # Not a sign of the other variant: that one would be refused as well.
            raise BackendUnavailable(_with_remedy(str(error))) from error
        return None


def legacy_tables(family: IPFamily) -> tuple[str, ...]:
    """The legacy tables that exist in this network namespace."""
    try:
        return tuple(_LEGACY_TABLES[family].read_text().split())
    except OSError:
        return ()


def _rules(text: str) -> int:
    return sum(1 for line in text.splitlines() if line.startswith("-A "))


def _remedy() -> str:
    """Say why no variant works, in the words of the last one tried."""
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
