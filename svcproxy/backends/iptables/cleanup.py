"""Removing from iptables' tables what another mode, variant or kube-proxy has left there.

Legacy tables are looked at only if they exist: looking would create them.
"""

from collections.abc import Collection

from svcproxy.backends.base import BackendError, BackendUnavailable
from svcproxy.backends.iptables.core.cleanup import (
    SEARCHED,
    ChainOwner,
    removal_inputs,
    stale_chains,
)
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.core.savefile import parse
from svcproxy.backends.xtables.generation import generation
from svcproxy.backends.xtables.variant import legacy_tables
from svcproxy.model.names import IPFamily


def remove_stale_chains(
    variant: Variant,
    family: IPFamily,
    present: ChainOwner | None = None,
    spared: Collection[str] = (),
) -> dict[str, int]:
    """Remove what nobody uses from one variant's tables of one family.

    Args:
        variant: whose tables.
        family: of which family.
        present: who uses them from now on, ``None`` for nobody.
        spared: chains that stay for the time being.

    Returns:
        How many chains and jumps went, by kind; empty if there was nothing.

    Raises:
        BackendError: something could not be read or removed.
    """
    tables = _existing(variant, family)
    if not tables:
        return {}
    try:
        programs = Iptables(variant, family)
    except BackendUnavailable as error:
        if variant is Variant.NFT:
            return {}  # without the program nobody has made rules that only it can remove
        raise BackendError(str(error)) from error
    found = parse(programs.save(*tables))
    removed = {"chain_deleted": 0, "jump_deleted": 0}
    for table, plan in stale_chains(found, present, spared).items():
        for text in removal_inputs(plan, table, pieces=variant is Variant.NFT):
            programs.restore(text)
        removed["chain_deleted"] += len(plan.delete)
        removed["jump_deleted"] += len(plan.remove)
    return {kind: count for kind, count in removed.items() if count}


def _existing(variant: Variant, family: IPFamily) -> tuple[str, ...]:
    """The tables that are there; of the nft variant all, for reading creates none."""
    if variant is Variant.NFT:
        return SEARCHED if generation() is not None else ()
    existing = legacy_tables(family)
    return tuple(table for table in SEARCHED if table in existing)
