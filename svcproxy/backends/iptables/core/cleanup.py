"""What to remove from iptables' tables when another way to carry Services has taken over.

It knows the chains of iptables mode, ours and kube-proxy's, and those of IPVS mode, which share
some names (``pkg/proxy/{iptables,ipvs}/proxier.go``, Kubernetes 1.36). Kubelet's chains are never
touched: KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT and KUBE-MARK-DROP.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum

from svcproxy.backends.iptables.core import naming
from svcproxy.backends.iptables.core.restore_inputs import CHUNK_CHAINS, deletion_inputs
from svcproxy.backends.iptables.core.static import JUMPS, LISTS
from svcproxy.backends.xtables.core.restoretext import joined
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, Rules
from svcproxy.backends.xtables.core.savefile import Saved, unquoted
from svcproxy.backends.xtables.core.tableplan import TablePlan

MANGLE = "mangle"
SEARCHED = (NAT, FILTER, MANGLE)
"""The tables that hold something of ours or of kube-proxy's; nat first: it carries traffic."""

_JUMP = re.compile(r"(?:^| )-[jg] (\S+)")
_IPVS_CHAINS = "KUBE-IPVS-"
"""Chains that our IPVS mode adds to kube-proxy's begin so, as do two of kube-proxy's."""
_BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_OUR_NOTE = '--comment "kube'


class ChainOwner(StrEnum):
    """What uses iptables: a mode of svcproxy or of kube-proxy."""

    IPTABLES = "iptables"
    IPVS = "ipvs"


_CHAINS: Mapping[ChainOwner, Mapping[str, frozenset[str]]] = {
    ChainOwner.IPTABLES: {
        NAT: frozenset(
            (naming.SERVICES, naming.NODE_PORTS, naming.POSTROUTING, naming.MARK_MASQ),
        ),
        FILTER: frozenset((*LISTS, naming.FORWARD)),
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
# Jumps to chains that both modes have; all others go with their chains.
_OWN_JUMPS: Mapping[ChainOwner, frozenset[tuple[str, str, str]]] = {
    ChainOwner.IPTABLES: frozenset(
        (j.table, j.source, j.text) for j in JUMPS if j.text.endswith(naming.PROXY_FIREWALL)
    ),
    ChainOwner.IPVS: frozenset((FILTER, source, _IPVS_FIREWALL) for source in ("INPUT", "FORWARD")),
}


def stale_chains(
    tables: Saved, present: ChainOwner | None = None, spared: Collection[str] = ()
) -> dict[str, TablePlan]:
    """The plans, by table, that remove what nobody uses any more.

    A chain that a foreign rule leads to is emptied, not deleted; KUBE-MARK-MASQ keeps its rule
    then, because CNI plug-ins mark packets with it. Foreign is a rule outside the built-in
    chains, or one without a comment of kube-proxy's.

    Args:
        tables: what iptables-save gave for one variant and family.
        present: who uses this variant from now on, ``None`` for nobody.
        spared: chains that stay for the time being, and what leads to them.
    """
    return {
        table: _plan(table, tables[table], present, spared) for table in SEARCHED if table in tables
    }


def _plan(
    table: str, found: Mapping[str, Rules], present: ChainOwner | None, spared: Collection[str]
) -> TablePlan:
    doomed = {c for c in found if c not in spared and _is_doomed(table, c, present)}
    remove: list[tuple[str, str]] = []
    held: set[str] = set()
    for chain, rules in found.items():
        if chain in doomed:
            continue
        for text in rules:
            target = _target(text)
            if _is_others_jump(table, chain, text, present):
                remove.append((chain, text))
            elif target in doomed:
                # No restore input can hold a newline: such a rule is not kube-proxy's either.
                if chain in _BUILT_IN and _OUR_NOTE in text and "\n" not in text:
                    remove.append((chain, text))
                else:
                    held.add(target)
    emptied = {c: () for c in sorted(held) if c != naming.MARK_MASQ and found[c]}
    return TablePlan(write=dict(emptied), remove=remove, delete=sorted(doomed - held))


def _is_doomed(table: str, chain: str, present: ChainOwner | None) -> bool:
    if chain == naming.CANARY:
        return True
    if table == NAT and naming.is_service_chain(chain):
        return present is not ChainOwner.IPTABLES
    if chain.startswith(_IPVS_CHAINS) and naming.is_plain(chain):
        return present is not ChainOwner.IPVS
    if not any(chain in chains.get(table, ()) for chains in _CHAINS.values()):
        return False
    return present is None or chain not in _CHAINS[present].get(table, ())


def _is_others_jump(table: str, chain: str, text: str, present: ChainOwner | None) -> bool:
    """Whether a rule is the other mode's jump to a chain that stays."""
    return present is not None and any(
        (table, chain, text) in jumps for user, jumps in _OWN_JUMPS.items() if user is not present
    )


def _target(text: str) -> str:
    found = _JUMP.search(unquoted(text))
    return found[1] if found else ""


def removal_inputs(plan: TablePlan, table: str, *, pieces: bool) -> Iterator[str]:
    """The restore inputs that carry out a plan.

    With ``pieces``, very many chains go bit by bit: first what leads to them, then their rules,
    then they themselves. No packet passes them any more, so nobody sees the steps in between.
    """
    if not plan:
        return
    if not pieces or len(plan.delete) <= 2 * CHUNK_CHAINS:
        yield _input(plan, table)
        return
    if plan.write or plan.remove:
        yield _input(TablePlan(write=plan.write, remove=plan.remove), table)
    yield from deletion_inputs(plan.delete, table)


def _input(plan: TablePlan, table: str) -> str:
    return joined(plan.lines(table))
