"""Which changes by other processes to iptables tables (nft variant) may affect svcproxy's rules."""

from svcproxy.backends.iptables.core import naming
from svcproxy.backends.iptables.core.static import JUMPS, SHARED_CHAINS
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT

_OWN_CHAINS = {
    NAT: frozenset((naming.SERVICES, naming.NODE_PORTS, naming.POSTROUTING, naming.MARK_MASQ)),
    FILTER: frozenset((*SHARED_CHAINS, naming.FORWARD, naming.KUBELET_FIREWALL)),
}
_JUMP_CHAINS = {
    table: frozenset(jump.source for jump in JUMPS if jump.table == table) for table in _OWN_CHAINS
}


def classify_change(table: str, chain: str, *, deletion: bool) -> bool | None:
    """Classify one change by another process.

    Rules that others add to built-in chains do not affect svcproxy. A rule deleted from a built-in
    chain may have been one of svcproxy's jumps: the kernel's event does not say which rule it was
    (since Linux 6.4 it does not even hold the rule's expressions).

    Args:
        table: the table.
        chain: the chain that was changed, or that holds the changed rule; empty if the table itself
            was created or deleted.
        deletion: whether the change deleted something.

    Returns:
        ``True`` if the change affects svcproxy's rules, ``False`` if it may, ``None`` if it cannot.
    """
    if table not in _OWN_CHAINS:
        return None
    if not chain:
        return True if deletion else None
    if chain in _OWN_CHAINS[table] or (table == NAT and naming.is_service_chain(chain)):
        return True
    return False if deletion and chain in _JUMP_CHAINS[table] else None
