"""Removing what is not in use any more, step by step; what fails is told, the rest goes on."""

import errno
from collections import Counter
from collections.abc import Callable, Mapping

from svcproxy.backends.base import BackendError
from svcproxy.backends.iptables import cleanup as iptables
from svcproxy.backends.iptables.core.cleanup import ChainOwner
from svcproxy.backends.ipvs.naming import IPVS_FILTER
from svcproxy.backends.nftables.connection import RefusedError
from svcproxy.backends.nftables.table import KernelTable
from svcproxy.backends.xtables.commands import Variant
from svcproxy.cleanup.active_mode import ActiveMode, Swept
from svcproxy.cleanup.ipvs import destroy_sets, has_connections, remove_servers
from svcproxy.cleanup.names import IPVS_SETS, KUBE_PROXY_TABLE, is_affinity_set
from svcproxy.config import ProxyMode
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables.ruleset import TABLE

_NO_NFTABLES = frozenset({errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL})


Step = Callable[[ActiveMode], Mapping[str, int]]


def sweep_family(present: ActiveMode, family: IPFamily) -> Swept:
    """Remove what others have left for one family: rules first, they carry traffic."""
    spared = _spared(present)

    def wait(_present: ActiveMode) -> Mapping[str, int]:
        if spared:
            raise BackendError(f"{', '.join(spared)} stays: connections still go through IPVS")
        return {}

    return _run(
        present,
        [
            *(_iptables(variant, family, spared) for variant in Variant),
            lambda kept: _nftables(kept, family),
            wait,
        ],
    )


def sweep_common(present: ActiveMode) -> Swept:
    """Remove what belongs to both families; rules may use it and must have gone before."""
    return _run(present, [_ipsets, _virtual_servers])


def sweep_all(spared: tuple[str, ...] = ()) -> Swept:
    """Remove everything of every mode, of svcproxy and of kube-proxy, in both families."""
    nothing = ActiveMode(spared=spared)
    parts = [*(sweep_family(nothing, family) for family in IPFamily), sweep_common(nothing)]
    removed: Counter[str] = Counter()
    for part in parts:
        removed.update(part.removed)
    return Swept(dict(removed), tuple(problem for part in parts for problem in part.problems))


def _run(present: ActiveMode, steps: list[Step]) -> Swept:
    removed: Counter[str] = Counter()
    problems: list[str] = []
    for step in steps:
        try:
            removed.update(step(present))
        except BackendError as error:
            problems.append(str(error))
    return Swept(dict(removed), tuple(problems))


def _iptables(variant: Variant, family: IPFamily, spared: tuple[str, ...]) -> Step:
    return lambda present: iptables.remove_stale_chains(
        variant, family, _user_of(present, variant), spared
    )


def _spared(present: ActiveMode) -> tuple[str, ...]:
    """The chain that keeps the node's own ports from being reached at addresses of Services.

    It has to stay, with the ipsets that it names, as long as the node has those addresses.
    """
    leaving = present.mode not in {None, ProxyMode.IPVS}
    return (IPVS_FILTER,) if leaving and has_connections() else ()


def _user_of(present: ActiveMode, variant: Variant) -> ChainOwner | None:
    """Who uses the tables of a variant of iptables."""
    if present.variant != variant or present.mode is ProxyMode.NFTABLES or present.mode is None:
        return None
    return ChainOwner.IPVS if present.mode is ProxyMode.IPVS else ChainOwner.IPTABLES


def _nftables(present: ActiveMode, family: IPFamily) -> Mapping[str, int]:
    names = [KUBE_PROXY_TABLE]
    if present.mode is not ProxyMode.NFTABLES:
        names.append(TABLE)
    return {"table_deleted": sum(_delete_table(family, name) for name in names)}


def _delete_table(family: IPFamily, name: str) -> bool:
    try:
        table = KernelTable(family, name)
    except OSError:
        return False  # no netfilter netlink, no tables
    try:
        return table.delete()
    except RefusedError as error:
        if error.number in _NO_NFTABLES:
            return False
        raise
    finally:
        table.close()


def _ipsets(present: ActiveMode) -> Mapping[str, int]:
    waiting = bool(_spared(present))

    def is_doomed(name: str) -> bool:
        if name in IPVS_SETS:
            return present.mode is not ProxyMode.IPVS and not waiting
        return present.mode is not ProxyMode.IPTABLES and is_affinity_set(name)

    return {"set_destroyed": destroy_sets(is_doomed)}


def _virtual_servers(present: ActiveMode) -> Mapping[str, int]:
    if present.mode is ProxyMode.IPVS:
        return {}
    return remove_servers(present.spared, now=present.mode is None)
