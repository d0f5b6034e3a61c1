"""The iptables backend: plans changes with the pure planner and executes them with iptables."""

from collections.abc import Callable, Collection

import structlog
from msgspec import structs

from svcproxy import sysctl
from svcproxy.backends.base import BackendError, BackendUnavailable, Desired, Maintenance, Outcome
from svcproxy.backends.iptables.affinity_sets import AffinitySets
from svcproxy.backends.iptables.bisection import Bisection, KernelAccess
from svcproxy.backends.iptables.core.plan import Observed, Plan
from svcproxy.backends.iptables.core.planner import Planner
from svcproxy.backends.iptables.core.restore_inputs import restore_inputs
from svcproxy.backends.iptables.core.settings import IptablesSettings, KernelFeatures, extend
from svcproxy.backends.iptables.probing import FeatureProbe
from svcproxy.backends.settings import Settings
from svcproxy.backends.xtables.change_tracker import (
    ChangeTracker,
    GenerationTracker,
    TableSizeTracker,
)
from svcproxy.backends.xtables.commands import Iptables, TrackProcess, Variant
from svcproxy.backends.xtables.core.restoretext import RestoreRefused
from svcproxy.backends.xtables.core.rule_text import TABLES
from svcproxy.backends.xtables.core.savefile import parse
from svcproxy.model.names import IPFamily
from svcproxy.state.desired import Changes

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
        self._sets = AffinitySets(programs.family)
        self._tracker: ChangeTracker = (
            GenerationTracker()
            if programs.variant is Variant.NFT
            else TableSizeTracker(programs.family)
        )
        self._features_probe = FeatureProbe(programs, self._sets, self._tracker)
        self._features = KernelFeatures()
        self._settings = settings
        self._extended_settings = extend(settings, self._features)
        self._planner = Planner(self._extended_settings)
        self._requested: Desired | Changes = Changes({})
        self._kept_sets: list[str] = []

    @property
    def family(self) -> IPFamily:
        """The family that this backend programs."""
        return self._programs.family

    @property
    def settings(self) -> IptablesSettings:
        """The settings of the last plan, with what is known about the kernel."""
        return self._planner.settings

    def track_processes(self, track_process: TrackProcess) -> None:
        """Run each program that changes tables inside a context made by ``track_process``."""
        self._programs.track_process = track_process

    def probe(self) -> None:
        """Check that both tables can be read and written, and find out which matches work.

        Raises:
            BackendUnavailable: iptables is missing, or svcproxy lacks the privileges.
        """
        try:
            self._set_features(self._features_probe.matches())
        except BackendError as error:
            raise BackendUnavailable(
                f"cannot use the {self.family} tables: {error}"
                " (svcproxy needs root or CAP_NET_ADMIN and CAP_NET_RAW)"
            ) from error
        if not self._features.hairpin_match:
            log.info("iptables.no_bpf_match", family=self.family, effect="a chain per endpoint")
        if self.family is IPFamily.IPV4 and self._settings.localhost_node_ports:
            sysctl.ensure(sysctl.ROUTE_LOCALNET)

    def is_unchanged(self) -> bool:
        """Whether no other process has changed the tables since they were read or written."""
        return self._tracker.is_unchanged()

    def read(self) -> Observed:
        """Read both tables, the family's ipsets, and the kernel features that may change."""
        self._set_features(self._features_probe.refresh(self._features))
        return self._read_tables()

    def plan(self, desired: Desired, observed: Observed) -> Plan:
        """Compute the difference between the desired state and the tables."""
        self._requested = desired
        return self._planner.plan(desired, self._extend(desired.settings), observed)

    def plan_changes(self, changes: Changes, settings: Settings) -> Plan | None:
        """Compute what the changed Service ports mean; ``None`` if settings or features changed."""
        extended = self._extend(settings)
        if extended is not self._planner.settings and extended != self._planner.settings:
            return None
        self._requested = changes
        return self._planner.plan_changes(changes.ports)

    def apply(self, plan: Plan) -> Outcome:
        """Execute a plan with iptables-restore, in one transaction per table.

        With the nft variant, a large number of new chains is loaded ahead in several inputs, see
        ``restore_inputs``. Service ports that the kernel refuses keep their former rules, see
        ``bisection``.
        """
        try:
            return self._apply(plan)
        except BackendError:
            self._planner.undo()
            raise

    def maintain(self, _should_yield: Callable[[], bool]) -> Maintenance:
        """Do nothing: the rules do not depend on time."""
        return Maintenance()

    def _extend(self, settings: Settings) -> IptablesSettings:
        """Return ``settings`` with the kernel's features; computed once per settings object."""
        if settings is not self._settings:
            self._settings = settings
            self._extended_settings = extend(settings, self._features)
        return self._extended_settings

    def _set_features(self, features: KernelFeatures) -> None:
        if features != self._features:
            self._features = features
            self._extended_settings = extend(self._settings, features)

    def _read_tables(self) -> Observed:
        self._tracker.before_read()
        text = self._programs.save(*TABLES)
        # Listing ipsets loads a large library. Without a rule that names a set, svcproxy has none,
        # except after a crash between creating a set and its rule.
        with_sets = self._features.affinity_sets or "--match-set " in text
        return Observed(parse(text), self._sets.names() if with_sets else frozenset())

    def _must_probe_sets(self, plan: Plan) -> bool:
        return self._features.affinity_sets is None and plan.names_sets and bool(plan)

    def _probe_sets(self, plan: Plan) -> Plan:
        """Probe ipsets before the first plan that uses them; plan again if they do not work."""
        works = self._features_probe.affinity_sets()
        self._set_features(structs.replace(self._features, affinity_sets=works))
        if works:
            return plan
        log.warning(
            "iptables.no_ipset",
            family=self.family,
            effect="session affinity remembers the last 100 clients of an endpoint",
            remedy="load the kernel modules ip_set_hash_ip and xt_set",
        )
        return self._plan_from_scratch()

    def _plan_from_scratch(self) -> Plan:
        """Replace the last plan, which was not applied, by one for the same state from scratch."""
        self._planner.undo()
        requested = self._requested
        if isinstance(requested, Changes):
            requested = Desired(self._planner.wanted_after(requested.ports), self._settings)
            self._requested = requested
        return self._planner.plan(requested, self._extended_settings, self._read_tables())

    def _apply(self, plan: Plan) -> Outcome:
        if self._must_probe_sets(plan):
            plan = self._probe_sets(plan)
        try:
            return self._execute(plan)
        except RestoreRefused as error:
            if isinstance(self._requested, Changes) and not self._tracker.is_unchanged():
                # Another process changed the tables. A plan made from their current contents may
                # be accepted.
                return self._apply(self._plan_from_scratch())
            return self._bisect(error)

    def _bisect(self, error: RestoreRefused) -> Outcome:
        """Apply the requested state without the Service ports that the kernel refuses."""
        kernel = KernelAccess(self._execute, self._read_tables, self._features_probe.check_tables)
        bisection = Bisection(self._planner, kernel, error)
        requested = self._requested
        if isinstance(requested, Changes):
            outcome = bisection.apply_changes(requested.ports)
        else:
            outcome = bisection.apply_all(requested, self._planner.settings)
        self._planner.note_refused(requested.ports, outcome.refused)
        return outcome

    def _execute(self, plan: Plan) -> Outcome:
        """Create ipsets, send the restore inputs, destroy ipsets that are no longer used."""
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
        destroyed = self._destroy_sets(plan.destroy_sets) if plan.destroy_sets else 0
        self._tracker.after_write(commits)
        return _outcome(plan, len(texts), destroyed)

    def _destroy_sets(self, names: Collection[str]) -> int:
        """Destroy ipsets; return how many were destroyed. Each resync retries the others."""
        kept = self._sets.destroy(names)
        if kept and kept != self._kept_sets:
            log.warning("iptables.set_kept", family=self.family, sets=len(kept), first=kept[0])
        self._kept_sets = kept
        return len(names) - len(kept)


def _changes_rules(text: str) -> bool:
    """Whether a restore input changes rules, rather than only flushing and deleting chains.

    The inputs that only delete chains are sent last. If one of them is refused, everything before
    it has been committed, so no Service port can be the cause.
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
