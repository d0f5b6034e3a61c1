"""Removing everything of ours, and of kube-proxy's iptables mode, from the two tables."""

from svcproxy.backends.iptables import naming
from svcproxy.backends.iptables.plan import Observed, Plan, TablePlan
from svcproxy.backends.iptables.static import JUMPS, LISTS
from svcproxy.backends.xtables.ruleset import FILTER, NAT, TABLES

_OWN = {
    FILTER: frozenset((*LISTS, naming.FORWARD, naming.CANARY)),
    NAT: frozenset(
        (
            naming.SERVICES,
            naming.NODE_PORTS,
            naming.POSTROUTING,
            naming.MARK_MASQ,
            naming.CANARY,
        )
    ),
}


def clean_up_plan(observed: Observed) -> Plan:
    """The plan that leaves no rule of ours; KUBE-FIREWALL stays, it is kubelet's as well."""
    plans: dict[str, TablePlan] = {}
    for table in TABLES:
        found = observed.tables.get(table, {})
        chains = [c for c in found if c in _OWN[table]]
        if table == NAT:
            chains.extend(c for c in found if naming.is_service_chain(c))
        plans[table] = TablePlan(
            remove=[
                (jump.source, jump.text)
                for jump in JUMPS
                if jump.table == table and jump.text in found.get(jump.source, ())
            ],
            delete=sorted(chains),
        )
    return Plan(plans, {}, destroy_sets=tuple(sorted(observed.sets)))
