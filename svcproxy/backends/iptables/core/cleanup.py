"""Which chains are stale once another mode, another iptables variant or kube-proxy has taken over.

This module knows the chains of iptables mode and of IPVS mode, both svcproxy's and kube-proxy's
(``pkg/proxy/{iptables,ipvs}/proxier.go``, Kubernetes 1.36). The two modes share some names.
Kubelet's chains are never touched: KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT and
KUBE-MARK-DROP.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum

from svcproxy.backends.iptables.core import naming
from svcproxy.backends.iptables.core.restore_inputs import CHUNK_CHAINS, deletion_inputs
from svcproxy.backends.iptables.core.static import JUMPS, SHARED_CHAINS
from svcproxy.backends.xtables.core.restoretext import join_lines
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, Rules
from svcproxy.backends.xtables.core.savefile import Saved, unquoted
from svcproxy.backends.xtables.core.tableplan import TablePlan

MANGLE = "mangle"
SEARCHED = (NAT, FILTER, MANGLE)
"""The tables that may hold chains of svcproxy or kube-proxy; nat first, it affects traffic most."""

_JUMP = re.compile(r"(?:^| )-[jg] (\S+)")
_IPVS_CHAINS = "KUBE-IPVS-"
"""The prefix of the chains that svcproxy's IPVS mode adds; two of kube-proxy's have it as well."""
_BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_COMMENT = '--comment "kube'


class ChainOwner(StrEnum):
    """A mode, of svcproxy or kube-proxy, that has chains in iptables tables."""

    IPTABLES = "iptables"
    IPVS = "ipvs"


_CHAINS: Mapping[ChainOwner, Mapping[str, frozenset[str]]] = {
    ChainOwner.IPTABLES: {
        NAT: frozenset(
            (naming.SERVICES, naming.NODE_PORTS, naming.POSTROUTING, naming.MARK_MASQ),
        ),
        FILTER: frozenset((*SHARED_CHAINS, naming.FORWARD)),
    },
    ChainOwner.IPVS: {
        NAT: frozenset(
            (
                naming.SERVICES,
                naming.POSTROUTING,
                naming.MARK_MASQ,
                "KUBE-NODE-PORT",
                "KUBE-LOAD-BALANCER",
            )
        ),
        FILTER: frozenset(
            (
                naming.FORWARD,
                naming.PROXY_FIREWALL,
                "KUBE-NODE-PORT",
                "KUBE-SOURCE-RANGES-FIREWALL",
            )
        ),
    },
}
_IPVS_FIREWALL = f'-m comment --comment "kube-proxy firewall rules" -j {naming.PROXY_FIREWALL}'
# Jumps to chains that both modes have. All other jumps are removed together with their chains.
_OWN_JUMPS: Mapping[ChainOwner, frozenset[tuple[str, str, str]]] = {
    ChainOwner.IPTABLES: frozenset(
        (j.table, j.source, j.text) for j in JUMPS if j.text.endswith(naming.PROXY_FIREWALL)
    ),
    ChainOwner.IPVS: frozenset((FILTER, source, _IPVS_FIREWALL) for source in ("INPUT", "FORWARD")),
}


def stale_chains(
    tables: Saved, owner: ChainOwner | None = None, keep: Collection[str] = ()
) -> dict[str, TablePlan]:
    """Return plans, by table, that remove the chains that are not in use.

    A stale chain that a rule of another program jumps to is flushed, not deleted. KUBE-MARK-MASQ
    even keeps its rule in that case, because CNI plug-ins use it to mark packets. A rule counts as
    kube-proxy's or svcproxy's only if it is in a built-in chain and has a comment of theirs.

    Args:
        tables: the parsed output of iptables-save, for one variant and family.
        owner: the mode that uses these tables now; ``None`` if no mode does.
        keep: further chains to keep, with the jumps to them.
    """
    return {
        table: _plan(table, tables[table], owner, keep) for table in SEARCHED if table in tables
    }


def _plan(
    table: str, found: Mapping[str, Rules], owner: ChainOwner | None, keep: Collection[str]
) -> TablePlan:
    stale = {c for c in found if c not in keep and _is_stale(table, c, owner)}
    remove: list[tuple[str, str]] = []
    referenced: set[str] = set()
    for chain, rules in found.items():
        if chain in stale:
            continue
        for text in rules:
            target = _target(text)
            if _is_stale_jump(table, chain, text, owner):
                remove.append((chain, text))
            elif target in stale:
                # A restore input cannot hold a newline, so kube-proxy has not written such a rule.
                if chain in _BUILT_IN and _COMMENT in text and "\n" not in text:
                    remove.append((chain, text))
                else:
                    referenced.add(target)
    flush = {c: () for c in sorted(referenced) if c != naming.MARK_MASQ and found[c]}
    return TablePlan(write=dict(flush), remove=remove, delete=sorted(stale - referenced))


def _is_stale(table: str, chain: str, owner: ChainOwner | None) -> bool:
    if chain == naming.CANARY:
        return True
    if table == NAT and naming.is_service_chain(chain):
        return owner is not ChainOwner.IPTABLES
    if chain.startswith(_IPVS_CHAINS) and naming.is_plain(chain):
        return owner is not ChainOwner.IPVS
    if not any(chain in chains.get(table, ()) for chains in _CHAINS.values()):
        return False
    return owner is None or chain not in _CHAINS[owner].get(table, ())


def _is_stale_jump(table: str, chain: str, text: str, owner: ChainOwner | None) -> bool:
    """Whether a rule is the other mode's jump to a chain that both modes have."""
    return owner is not None and any(
        (table, chain, text) in jumps for other, jumps in _OWN_JUMPS.items() if other is not owner
    )


def _target(text: str) -> str:
    found = _JUMP.search(unquoted(text))
    return found[1] if found else ""


def removal_inputs(plan: TablePlan, table: str, *, in_chunks: bool) -> Iterator[str]:
    """Yield the restore inputs that execute a plan of ``stale_chains``.

    Args:
        plan: the plan.
        table: its table.
        in_chunks: remove a large number of chains in several inputs: first the jumps to them, then
            their rules, then the chains. No packet reaches them after the first step.
    """
    if not plan:
        return
    if not in_chunks or len(plan.delete) <= 2 * CHUNK_CHAINS:
        yield join_lines(plan.lines(table))
        return
    if plan.write or plan.remove:
        yield join_lines(TablePlan(write=plan.write, remove=plan.remove).lines(table))
    yield from deletion_inputs(plan.delete, table)
