"""Removing what is not in use any more, step by step; what fails is told, the rest goes on."""

import errno
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec
import structlog

from svcproxy.backends.base import BackendError
from svcproxy.backends.iptables import sweep as iptables
from svcproxy.backends.iptables.cleanup import User
from svcproxy.backends.nftables.connection import RefusedError
from svcproxy.backends.nftables.ruleset import TABLE
from svcproxy.backends.nftables.table import KernelTable
from svcproxy.backends.xtables.commands import Variant
from svcproxy.config import ProxyMode
from svcproxy.leftovers.ipsets import Ipsets
from svcproxy.leftovers.links import delete_link, has_ipvs_connections
from svcproxy.leftovers.names import (
    DUMMY_DEVICE,
    IPVS_SETS,
    KUBE_PROXY_TABLE,
    is_affinity_set,
)
from svcproxy.model.names import IPFamily

log = structlog.get_logger()

_NO_NFTABLES = frozenset({errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL})


class Present(msgspec.Struct, frozen=True):
    """What carries the Services from now on and has to stay.

    ``mode`` is ``None`` for nobody (``--cleanup``); ``variant`` is that of iptables in which the
    mode's rules are, ``None`` for a mode without any.
    """

    mode: ProxyMode | None = None
    variant: Variant | None = None

    def user_of(self, variant: Variant) -> User | None:
        """Who uses the tables of a variant of iptables."""
        if self.variant is not variant or self.mode is ProxyMode.NFTABLES or self.mode is None:
            return None
        return User.IPVS if self.mode is ProxyMode.IPVS else User.IPTABLES


class Swept(msgspec.Struct, frozen=True):
    """What a sweep did: how many things it removed by kind, and one line for each failure."""

    removed: Mapping[str, int]
    problems: tuple[str, ...]


Step = Callable[[Present], Mapping[str, int]]


def sweep_family(present: Present, family: IPFamily) -> Swept:
    """Remove what others have left for one family: rules first, they carry traffic."""
    return _run(
        present,
        [
            *(_iptables(variant, family) for variant in Variant),
            lambda kept: _nftables(kept, family),
        ],
    )


def sweep_common(present: Present) -> Swept:
    """Remove what belongs to both families; rules may use it and must have gone before."""
    return _run(present, [_ipsets, _dummy_device])


def sweep_all() -> Swept:
    """Remove everything of every mode, of svcproxy and of kube-proxy, in both families."""
    nothing = Present()
    parts = [*(sweep_family(nothing, family) for family in IPFamily), sweep_common(nothing)]
    removed: Counter[str] = Counter()
    for part in parts:
        removed.update(part.removed)
    return Swept(dict(removed), tuple(problem for part in parts for problem in part.problems))


def _run(present: Present, steps: list[Step]) -> Swept:
    removed: Counter[str] = Counter()
    problems: list[str] = []
    for step in steps:
        try:
            removed.update(step(present))
        except BackendError as error:
            problems.append(str(error))
    return Swept(dict(removed), tuple(problems))


def _iptables(variant: Variant, family: IPFamily) -> Step:
    return lambda present: iptables.sweep(variant, family, present.user_of(variant))


def _nftables(present: Present, family: IPFamily) -> Mapping[str, int]:
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


def _ipsets(present: Present) -> Mapping[str, int]:
    sets = Ipsets()
    try:
        doomed = {
            name
            for name in sets.names()
            if (present.mode is not ProxyMode.IPVS and name in IPVS_SETS)
            or (present.mode is not ProxyMode.IPTABLES and is_affinity_set(name))
        }
        return {"set_destroyed": sets.destroy(doomed)}
    finally:
        sets.close()


def _dummy_device(present: Present) -> Mapping[str, int]:
    if present.mode is ProxyMode.IPVS:
        return {}
    if present.mode is not None and has_ipvs_connections():
        raise BackendError(f"the link {DUMMY_DEVICE} stays: connections still go through IPVS")
    return {"link_deleted": int(delete_link(DUMMY_DEVICE))}


def report(swept: Swept, remedy: str) -> None:
    """Say in the log what a sweep did, and what to do about what it could not."""
    removed = {kind: count for kind, count in swept.removed.items() if count}
    if removed:
        log.info("leftovers.removed", **removed)
    for problem in swept.problems:
        log.warning("leftovers.not_removed", error=problem, remedy=remedy)
