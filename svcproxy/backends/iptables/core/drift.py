"""Which changes of others to iptables' tables (of the nft variant) can concern us."""

from svcproxy.backends.iptables.core import naming
from svcproxy.backends.iptables.core.static import JUMPS, LISTS
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT

_OURS = {
    NAT: frozenset((naming.SERVICES, naming.NODE_PORTS, naming.POSTROUTING, naming.MARK_MASQ)),
    FILTER: frozenset((*LISTS, naming.FORWARD, naming.KUBELET_FIREWALL)),
}
_SOURCES = {
    table: frozenset(jump.source for jump in JUMPS if jump.table == table) for table in _OURS
}


def classify_change(table: str, chain: str, *, deletion: bool) -> bool | None:
    """Judge one change: ``True`` for ours for sure, ``False`` for perhaps, ``None`` for no concern.

    What others add to built-in chains is their business; what they delete there may have been
    one of our jumps, which the kernel does not tell (since 6.4 not even the rule's contents).

    Args:
        table: the table.
        chain: the chain that was changed, or whose rule was; empty if it was the table itself.
        deletion: whether something was deleted.
    """
    if table not in _OURS:
        return None
    if not chain:
        return True if deletion else None
    if chain in _OURS[table] or (table == NAT and naming.is_service_chain(chain)):
        return True
    return False if deletion and chain in _SOURCES[table] else None
