"""Removes stale chains of another mode, another iptables variant, or kube-proxy.

Legacy tables are read only if they exist, because reading one creates it.
"""

from collections.abc import Collection, Iterator
from functools import partial

from svcproxy.backends.base import BackendError, BackendUnavailable
from svcproxy.backends.iptables.core.cleanup import (
    SEARCHED,
    ChainOwner,
    removal_inputs,
    stale_chains,
)
from svcproxy.backends.iptables.core.naming import ENDPOINT_PREFIX
from svcproxy.backends.mode_spec import ActiveMode, Cleanup, CleanupStep
from svcproxy.backends.xtables.commands import Iptables, Variant
from svcproxy.backends.xtables.core.savefile import parse
from svcproxy.backends.xtables.variant import legacy_tables
from svcproxy.model.names import IPFamily
from svcproxy.netlink.generation import generation


def remove_stale_chains(
    variant: Variant,
    family: IPFamily,
    owner: ChainOwner | None = None,
    keep: Collection[str] = (),
) -> dict[str, int]:
    """Remove the chains and jumps that are not in use, from one variant's tables of one family.

    Args:
        variant: the variant whose tables to clean.
        family: the IP family.
        owner: the mode that uses these tables now; ``None`` if no mode does.
        keep: further chains to keep.

    Returns:
        The number of removed chains and jumps, by kind; empty if there were none.

    Raises:
        BackendError: the tables could not be read, or something could not be removed.
    """
    tables = _existing_tables(variant, family)
    if not tables:
        return {}
    try:
        programs = Iptables(variant, family)
    except BackendUnavailable as error:
        if variant is Variant.NFT:
            # Without iptables-nft on this node, there are no chains that only it can remove.
            return {}
        raise BackendError(str(error)) from error
    found = parse(programs.save(*tables))
    removed = {"chain_deleted": 0, "jump_deleted": 0}
    for table, plan in stale_chains(found, owner, keep).items():
        for text in removal_inputs(plan, table, in_chunks=variant is Variant.NFT):
            programs.restore(text)
        removed["chain_deleted"] += len(plan.delete)
        removed["jump_deleted"] += len(plan.remove)
    return {kind: count for kind, count in removed.items() if count}


def _existing_tables(variant: Variant, family: IPFamily) -> tuple[str, ...]:
    """Return the tables to search; with the nft variant all, since reading does not create them."""
    if variant is Variant.NFT:
        return SEARCHED if generation() is not None else ()
    existing = legacy_tables(family)
    return tuple(table for table in SEARCHED if table in existing)


def _steps(active: ActiveMode, family: IPFamily, keep: Collection[str]) -> Iterator[CleanupStep]:
    for variant in Variant:
        owner = ChainOwner(active.mode) if active.mode and active.variant == variant else None
        yield partial(remove_stale_chains, variant, family, owner, keep)


CLEANUP = Cleanup(rules=_steps, owns_ipset=lambda name: name.startswith(ENDPOINT_PREFIX))
