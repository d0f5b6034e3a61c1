"""Finding out which features the kernel and the installed iptables extensions have."""

from msgspec import structs

from svcproxy.backends.base import BackendError
from svcproxy.backends.iptables.affinity_sets import AffinitySets
from svcproxy.backends.iptables.core.naming import FORWARD, POSTROUTING
from svcproxy.backends.iptables.core.settings import KernelFeatures
from svcproxy.backends.iptables.core.static import hairpin_match, nfacct_match
from svcproxy.backends.xtables.change_tracker import ChangeTracker
from svcproxy.backends.xtables.commands import Iptables
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, TABLES
from svcproxy.model.counters import COUNTERS, INVALID_DROPPED
from svcproxy.netlink import nfacct
from svcproxy.sysctl import conntrack_is_liberal

_PROBE_SET = "KUBE-SEP-PROBE"
_PROBE_COMMITS = 2
"""How many transactions ``Iptables.accepts`` commits."""


class FeatureProbe:
    """Probes the kernel for one family."""

    def __init__(self, programs: Iptables, sets: AffinitySets, tracker: ChangeTracker) -> None:
        self._programs = programs
        self._sets = sets
        self._tracker = tracker

    def matches(self) -> KernelFeatures:
        """Find out which matches work, at startup.

        A rule that an earlier run has left proves that its match works; nothing is written then.

        Raises:
            BackendError: the tables cannot be written.
        """
        accepts, list_chain = self._programs.accepts, self._programs.list_chain
        hairpin, count = hairpin_match(self._programs.family), nfacct_match(INVALID_DROPPED)
        has_counters = _create_counters()
        if "-m bpf " in list_chain(NAT, POSTROUTING):
            has_bpf = True
        elif has_counters and accepts(NAT, f"{hairpin} {count}"):
            return KernelFeatures(hairpin_match=True, accounting=True)
        else:
            has_bpf = accepts(NAT, hairpin)
        has_nfacct = has_counters and (
            "-m nfacct " in list_chain(FILTER, FORWARD) or accepts(FILTER, count)
        )
        return KernelFeatures(hairpin_match=has_bpf, accounting=has_nfacct)

    def refresh(self, known: KernelFeatures) -> KernelFeatures:
        """Return ``known`` with the facts that may change at any time, before each resync."""
        return structs.replace(
            known,
            accounting=known.accounting and _create_counters(),
            drop_invalid=not conntrack_is_liberal(),
        )

    def affinity_sets(self) -> bool:
        """Whether rules can use ipsets.

        The probe writes a rule that names a set to a chain that no other chain jumps to, and
        removes both.

        Raises:
            BackendError: the nat table cannot be written.
        """
        name = f"{_PROBE_SET}-{self._programs.family}"
        try:
            self._sets.create([name])
        except BackendError:
            return False
        self._tracker.before_write()
        works = self._programs.accepts(NAT, f"-m set --match-set {name} src")
        self._tracker.after_write(_PROBE_COMMITS)
        self._sets.destroy([name])
        return works

    def check_tables(self) -> None:
        """Check that both tables accept an input at all.

        Raises:
            BackendError: one of them does not.
        """
        self._tracker.before_write()
        for table in TABLES:
            self._programs.accepts(table)
        self._tracker.after_write(_PROBE_COMMITS * len(TABLES))


def _create_counters() -> bool:
    """Create the nfacct objects that do not exist yet; return whether all of them exist now."""
    try:
        nfacct.ensure(COUNTERS)
    except OSError:
        return False
    return True
