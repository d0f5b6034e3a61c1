"""The iptables backend: the pure plan joined with the programs that carry it out."""

from collections.abc import Callable, Collection, Iterable

import structlog
from msgspec import structs

from svcproxy import sysctl
from svcproxy.backends.base import BackendError, BackendUnavailable, Desired, Maintenance, Outcome
from svcproxy.backends.iptables.affinity_sets import AffinitySets
from svcproxy.backends.iptables.cleanup import remove_stale_chains
from svcproxy.backends.iptables.core.isolation import Isolation, Kernel
from svcproxy.backends.iptables.core.naming import FORWARD, POSTROUTING
from svcproxy.backends.iptables.core.plan import Observed, Plan
from svcproxy.backends.iptables.core.planner import Planner
from svcproxy.backends.iptables.core.restore_inputs import restore_inputs
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.iptables.core.static import hairpin_match, nfacct_match
from svcproxy.backends.settings import Settings
from svcproxy.backends.xtables.change_tracker import GenerationTracker, TableSizeTracker
from svcproxy.backends.xtables.commands import Iptables, TrackProcess, Variant
from svcproxy.backends.xtables.core.restoretext import RestoreRefused
from svcproxy.backends.xtables.core.rule_text import FILTER, NAT, TABLES
from svcproxy.backends.xtables.core.savefile import parse
from svcproxy.model.counters import COUNTERS, INVALID_DROPPED
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink import accounting
from svcproxy.state.desired import Changes

_PROBE_SET = "KUBE-SEP-PROBE"
_PROBE_COMMITS = 2
"""Transactions that ``Iptables.accepts`` needs."""

log = structlog.get_logger()


class IptablesBackend:
    """Programs one family with iptables.

    Args:
        programs: iptables-save and iptables-restore of the family.
        settings: the settings before the Node object is known; a change leads to a resync.
    """

    max_skipped_resyncs = 9

    def __init__(self, programs: Iptables, settings: Settings) -> None:
        self._programs = programs
        self._settings = settings
        self._hairpin_match = True
        self._accounting = False
        self._drop_invalid = True
        self._sets = AffinitySets(programs.family)
        self._affinity_sets: bool | None = None
        nft = programs.variant is Variant.NFT
        self._tracker = GenerationTracker() if nft else TableSizeTracker(programs.family)
        self._planner = Planner(self._extended(settings))
        self._asked: Desired | Changes = Changes({})
        self._kept_sets: list[str] = []

    @property
    def family(self) -> IPFamily:
        """The family that this backend programs."""
        return self._programs.family

    def track_processes(self, track_process: TrackProcess) -> None:
        """Have somebody told of each process that changes tables for us, before it does."""
        self._programs.track_process = track_process

    def probe(self) -> None:
        """Check that both tables can be read and written, and what the kernel's matches allow.

        Raises:
            BackendUnavailable: the programs are missing or may not touch the kernel.
        """
        try:
            self._probe_matches()
        except BackendError as error:
            raise BackendUnavailable(
                f"cannot use the {self.family} tables: {error}"
                " (svcproxy needs root or CAP_NET_ADMIN and CAP_NET_RAW)"
            ) from error
        settings = self._settings
        if not self._hairpin_match:
            log.info("iptables.no_bpf_match", family=self.family, effect="a chain per endpoint")
        if settings.family is IPFamily.IPV4 and settings.localhost_node_ports:
            sysctl.ensure(sysctl.ROUTE_LOCALNET)

    def _probe_matches(self) -> None:
        """Find out which matches there are.

        A rule of a former run proves it without touching the table.

        Raises:
            BackendError: the table cannot be written.
        """
        accepts, chain = self._programs.accepts, self._programs.chain
        own, count = hairpin_match(self.family), nfacct_match(INVALID_DROPPED)
        accountable = self._make_counters()
        if "-m bpf " in chain(NAT, POSTROUTING):
            self._hairpin_match = True
        elif accountable and accepts(NAT, f"{own} {count}"):
            self._hairpin_match = self._accounting = True
            return
        else:
            self._hairpin_match = accepts(NAT, own)
        self._accounting = accountable and (
            "-m nfacct " in chain(FILTER, FORWARD) or accepts(FILTER, count)
        )

    def _make_counters(self) -> bool:
        """Make the accounting objects that rules count in; whether they are there."""
        try:
            accounting.ensure(COUNTERS)
        except OSError:
            return False
        return True

    def is_unchanged(self) -> bool:
        """Whether nobody else has changed the tables since they were found to be right.

        The nft variant has the kernel's generation number for that, legacy tables their sizes.
        """
        return self._tracker.is_unchanged()

    def read(self) -> Observed:
        """Read both tables, and the ipsets if any rule may name one."""
        self._tracker.before_read()
        text = self._programs.save(*TABLES)
        # Without a rule that names a set there is none but by an accident of ours in between.
        with_sets = self._affinity_sets or "--match-set " in text
        return Observed(parse(text), self._sets.names() if with_sets else frozenset())

    def plan(self, desired: Desired, observed: Observed) -> Plan:
        """Compare everything."""
        self._drop_invalid = not sysctl.conntrack_is_liberal()
        self._accounting = self._accounting and self._make_counters()
        self._consider_affinity(desired.ports.values())
        self._asked = desired
        return self._planner.plan(desired, self._extended(desired.settings), observed)

    def plan_changes(self, changes: Changes, settings: Settings) -> Plan | None:
        """Compute what changed Service ports mean; other settings need a full comparison."""
        self._consider_affinity(port for port in changes.ports.values() if port is not None)
        if self._extended(settings) != self._planner.settings:
            return None
        self._asked = changes
        return self._planner.plan_changes(changes.ports)

    def apply(self, plan: Plan) -> Outcome:
        """Send the plan in one iptables-restore, one transaction per table.

        With the nft variant, very many new chains are sent ahead in pieces, see ``staging``. Service
        ports that the kernel refuses are left as they were, see ``isolation``.
        """
        try:
            return self._carry_out(plan)
        except RestoreRefused as error:
            # Another program changed the tables: the changes may be valid after a comparison.
            if isinstance(self._asked, Changes) and not self._tracker.is_unchanged():
                return self._compare_instead(self._asked)
            return self._isolate(error)
        except BackendError:
            self._planner.undo()
            raise

    def _compare_instead(self, changes: Changes) -> Outcome:
        """Apply changes by a full comparison, because another program changed the tables."""
        self._planner.undo()
        ports = self._planner.wanted
        for name, port in changes.ports.items():
            if port is None:
                ports.pop(name, None)
            else:
                ports[name] = port
        self._asked = Desired(ports, self._settings)
        plan = self._planner.plan(self._asked, self._planner.settings, self.read())
        return self.apply(plan)

    def _isolate(self, error: RestoreRefused) -> Outcome:
        """Apply the desired state or changes without the Service ports that are refused."""
        kernel = Kernel(self._carry_out, self.read, self._check_tables)
        isolation = Isolation(self._planner, kernel, error)
        asked = self._asked
        try:
            if isinstance(asked, Changes):
                outcome = isolation.apply_changes(asked.ports)
            else:
                outcome = isolation.apply_all(asked, self._planner.settings)
        except BackendError:
            self._planner.undo()
            raise
        self._planner.note_refused(asked.ports, outcome.refused)
        return outcome

    def _check_tables(self) -> None:
        """Raise ``BackendError`` if a table takes no input at all."""
        self._tracker.before_write()
        for table in TABLES:
            self._programs.accepts(table)
        self._tracker.after_write(_PROBE_COMMITS * len(TABLES))

    def _carry_out(self, plan: Plan) -> Outcome:
        nft = self._programs.variant is Variant.NFT
        texts = list(restore_inputs(plan)) if nft else [text for text in (plan.text(),) if text]
        self._tracker.before_write()
        if plan.create_sets:
            self._sets.create(plan.create_sets)
        commits = 0
        for text in texts:
            try:
                self._programs.restore(text)
            except RestoreRefused as error:
                self._tracker.after_write(commits + error.partial)
                if plan.create_sets:
                    self._sets.destroy(plan.create_sets)
                if not _changes_rules(text):
                    raise BackendError(str(error)) from error
                raise
            commits += text.count("\nCOMMIT")
        destroyed = self._destroy(plan.destroy_sets) if plan.destroy_sets else 0
        self._tracker.after_write(commits)
        return _outcome(plan, len(texts), destroyed)

    def _destroy(self, sets: Collection[str]) -> int:
        """Destroy sets; return how many are gone. Each full comparison retries the others."""
        kept = self._sets.destroy(sets)
        if kept and kept != self._kept_sets:
            log.warning("iptables.set_kept", family=self.family, sets=len(kept), first=kept[0])
        self._kept_sets = kept
        return len(sets) - len(kept)

    def maintain(self, _should_yield: Callable[[], bool]) -> Maintenance:
        """Do nothing: rules do not depend on time."""
        return Maintenance()

    def clean_up(self) -> None:
        """Remove our chains, jumps and ipsets, and what kube-proxy may have left."""
        remove_stale_chains(self._programs.variant, self.family)
        if (names := self._sets.names()) and (kept := self._sets.destroy(names)):
            raise BackendError(f"{kept[0]}; {len(kept)} ipsets stay")

    def _extended(self, settings: Settings) -> IptablesSettings:
        return IptablesSettings(
            **structs.asdict(settings),
            drop_invalid=self._drop_invalid,
            hairpin_match=self._hairpin_match,
            accounting=self._accounting,
            affinity_sets=self._affinity_sets is not False,
        )

    def _consider_affinity(self, ports: Iterable[ServicePort]) -> None:
        """Find out, when the first Service with affinity comes, whether ipset can serve it."""
        if self._affinity_sets is not None or not any(p.affinity_seconds for p in ports):
            return
        self._affinity_sets = self._has_affinity_sets()
        if not self._affinity_sets:
            log.warning(
                "iptables.no_ipset",
                family=self.family,
                effect="session affinity remembers the last 100 clients of an endpoint",
                remedy="load the kernel modules ip_set_hash_ip and xt_set",
            )

    def _has_affinity_sets(self) -> bool:
        """Write a rule that names a set to a chain that nothing refers to, and remove both."""
        name = f"{_PROBE_SET}-{self.family}"
        try:
            self._sets.create([name])
        except BackendError:
            return False
        match = f"-m set --match-set {name} src"
        self._tracker.before_write()
        works = self._programs.accepts(NAT, match)
        self._tracker.after_write(_PROBE_COMMITS)
        self._sets.destroy([name])
        return works


def _changes_rules(text: str) -> bool:
    """Whether a restore input adds, inserts or deletes rules, not only flushes and deletes chains.

    Chains are deleted by the last input: if it is refused, everything before it is in the kernel.
    """
    return any(f"\n-{command} " in text for command in "AID")


def _outcome(plan: Plan, restores: int, destroyed: int) -> Outcome:
    tables = plan.tables
    counts = {
        "restore": restores,
        "chain_written": sum(len(t.write) for t in tables.values()),
        "chain_deleted": sum(len(t.delete) for t in tables.values()),
        "rule_written": sum(t.rules for t in tables.values()),
        "rule_deleted": sum(len(t.remove) for t in tables.values()),
        "set_created": len(plan.create_sets),
        "set_destroyed": destroyed,
    }
    return Outcome(
        operations={kind: count for kind, count in counts.items() if count},
        sizes=plan.sizes,
        written={table: t.rules for table, t in tables.items()},
        refused=plan.refused,
    )
