"""The nftables backend: reads the table, plans the difference and commits it over netlink."""

import errno
import os
from collections.abc import Callable, Mapping

import structlog

from svcproxy import sysctl
from svcproxy.backends.base import BackendError, BackendUnavailable, Desired, Maintenance, Outcome
from svcproxy.backends.nftables.client import RefusedError, StaleGenerationError
from svcproxy.backends.nftables.core.plan import KernelState, Planner
from svcproxy.backends.nftables.core.settings import extend_settings
from svcproxy.backends.nftables.core.table_objects import all_chains, all_sets
from svcproxy.backends.nftables.core.table_sets import BALANCES, Tier, source_set
from svcproxy.backends.nftables.table import KernelTable
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.netlink.core.nf_tables.ruleset import TABLE, SetSpec
from svcproxy.netlink.core.nf_tables.transaction import Plan, messages
from svcproxy.state.desired import Changes

MINIMUM_KERNEL = (5, 13)
"""The same as in kube-proxy's nftables mode; the expressions in use are older."""
_PROBE_TABLE = "svcproxy-probe"
_MAX_COMPARISONS = 3
"""How often one sync reads the table again because the last plan no longer fits it."""
_MAX_FALLBACKS = 8
"""How often one sync leaves out refused Service ports before the whole sync fails."""

log = structlog.get_logger()


class _Progress:
    """The state of one call of ``apply``.

    Attributes:
        changed: the Service ports that an incremental plan changes; empty for a full comparison.
        comparisons: how often the table was read and compared again.
        fallbacks: how often refused Service ports were left out of a full comparison.
        refused: the Service ports that were left out, each with the kernel's reason.
        refusal: the refusal of an incremental plan that led to a full comparison, as text.
    """

    def __init__(self, changed: frozenset[ServicePortName]) -> None:
        self.changed = changed
        self.comparisons = 0
        self.fallbacks = 0
        self.refused: dict[ServicePortName, str] = {}
        self.refusal = ""


class NftablesBackend:
    """Programs one IP family with nftables, directly over netlink.

    Planning is pure: it uses the desired state, the settings, and what ``read`` and ``apply`` found
    out about the kernel. The kernel itself checks that a plan is still valid: each transaction
    names the nf_tables generation that it is based on, and is refused if that is outdated.

    Args:
        family: the IP family.
        settings: the settings before the Node object is known; ``probe`` uses them.
        table: the name of the table.
    """

    max_skipped_resyncs = 9

    def __init__(self, family: IPFamily, settings: Settings, table: str = TABLE) -> None:
        self._family = family
        self._initial_settings = settings
        self._name = table
        self._kernel: KernelTable | None = None
        self._planned_settings: Settings | None = None
        self._planner = Planner(settings)
        self._sets: Mapping[str, SetSpec] = all_sets(settings, ())
        self._refused: frozenset[ServicePortName] = frozenset()

    @property
    def family(self) -> IPFamily:
        """The IP family that this backend programs."""
        return self._family

    @property
    def settings(self) -> Settings:
        """The settings of the last plan, with what is known about the kernel."""
        return self._planner.settings

    @property
    def port_id(self) -> int:
        """The port ID of the netlink socket; nf_tables events name it as the originator."""
        return self._table.port_id

    @property
    def _table(self) -> KernelTable:
        if self._kernel is None:
            try:
                self._kernel = KernelTable(self._family, self._name)
            except OSError as error:
                raise BackendError(
                    f"no netfilter netlink: {os.strerror(error.errno or 0)}"
                ) from error
        return self._kernel

    def probe(self) -> None:
        """Check that the kernel supports all features in use, by validating a sample table.

        Raises:
            BackendUnavailable: the kernel lacks a feature, or the process lacks permission.
        """
        release = os.uname().release
        if _version(release) < MINIMUM_KERNEL:
            wanted = ".".join(map(str, MINIMUM_KERNEL))
            raise BackendUnavailable(
                f"nftables mode needs kernel {wanted} or later, this is {release}:"
                " use --proxy-mode iptables"
            )
        try:
            self._table.generation()
            self._check_features()
        except RefusedError as error:
            raise BackendUnavailable(_remedy(error)) from error
        except BackendError as error:
            raise BackendUnavailable(
                f"{error}: the kernel needs CONFIG_NETFILTER_NETLINK"
            ) from error
        settings = self._initial_settings
        if settings.family is IPFamily.IPV4 and settings.localhost_node_ports:
            sysctl.ensure(sysctl.ROUTE_LOCALNET)

    def _check_features(self) -> None:
        """Let the kernel validate a table with every kind of set, chain and rule."""
        settings = extend_settings(self._initial_settings, service_cidrs=(), drop_invalid=True)
        tiers = [str(Tier(b, 2, seconds)) for b in BALANCES for seconds in (0, 10800)]
        on_demand = [*tiers, source_set(8)]
        specs, chains = all_sets(settings, on_demand), all_chains(settings, on_demand)
        plan = Plan(make_table=True, sets=list(specs.values()), chains=list(chains.values()))
        self._table.check(list(messages(plan, _PROBE_TABLE)), specs)

    def is_unchanged(self) -> bool:
        """Whether svcproxy made all nf_tables transactions since the table was read or made."""
        try:
            return self._table.is_unchanged()
        except BackendError:
            return False

    def read(self) -> KernelState:
        """Read the table, and the sysctl that decides about packets in state INVALID.

        Raises:
            BackendError: the kernel could not be read.
        """
        return KernelState(self._table.read(), drop_invalid=not sysctl.conntrack_is_liberal())

    def plan(self, desired: Desired, observed: KernelState) -> Plan:
        """Compare the whole desired state with the table that ``read`` found."""
        self._planned_settings = desired.settings
        settings = extend_settings(
            desired.settings,
            service_cidrs=desired.service_cidrs,
            drop_invalid=observed.drop_invalid,
        )
        return self._planner.plan(desired, settings, observed.table)

    def plan_changes(self, changes: Changes, settings: Settings) -> Plan | None:
        """Compute the element changes for changed Service ports.

        Returns:
            The plan. ``None`` if only a resync can apply the changes: the settings or the
            Service CIDRs changed, or the table has elements of unknown content at the keys of a
            changed port.
        """
        if changes.service_cidrs_changed or settings != self._planned_settings:
            return None
        if self._planner.needs_resync(changes.ports):
            return None
        return self._planner.plan_changes(changes.ports)

    def apply(self, plan: Plan) -> Outcome:
        """Apply a plan in one transaction (two if it makes sets, see ``transaction.stages``).

        If another program changed the table, read it and compare again within the same sync. If
        the kernel refuses single elements, leave their Service ports as they were, so that one
        Service port does not block the others.
        """
        progress = _Progress(frozenset() if plan.compared else self._planner.changed)
        while plan:
            try:
                self._table.commit(plan, self._sets)
            except StaleGenerationError as error:
                plan = self._compare_again(error, progress)
            except RefusedError as error:
                plan = self._plan_after_refusal(plan, error, progress)
            else:
                break
        self._settle(progress)
        operations = plan.operations
        if progress.comparisons:
            operations["compared_again"] = progress.comparisons
        return Outcome(operations, plan.sizes, plan.written, progress.refused)

    def _compare_again(self, error: BackendError, progress: _Progress) -> Plan:
        """Read the table and compare everything, because the last plan no longer fits it.

        Raises:
            BackendError: ``error`` itself, after too many attempts.
        """
        if progress.comparisons == _MAX_COMPARISONS:
            raise error
        progress.comparisons += 1
        plan = self._planner.replan(self._table.read())
        if progress.comparisons == _MAX_COMPARISONS:
            # Other programs keep writing to nf_tables: commit at any generation.
            plan.generation = 0
        return plan

    def _plan_after_refusal(self, plan: Plan, error: RefusedError, progress: _Progress) -> Plan:
        """Return the plan to try after the kernel refused ``plan``.

        Raises:
            RefusedError: ``error`` itself, if no Service port can be left out.
        """
        found = {} if error.partial else self._refused_ports(plan, error)
        if not plan.compared:
            if self._refused_before(found, progress):
                progress.refused.update(found)
                return self._planner.plan_changes_without(found)
            progress.refusal = str(error)
            return self._compare_again(error, progress)
        if found and progress.fallbacks < _MAX_FALLBACKS and self._planner.fall_back(found):
            progress.fallbacks += 1
            progress.refused.update(found)
            return self._planner.replan(self._table.read())
        if error.partial:
            return self._compare_again(error, progress)
        raise error

    def _refused_ports(self, plan: Plan, error: RefusedError) -> dict[ServicePortName, str]:
        """Return the Service ports whose messages the kernel refused, with its reasons."""
        index = self._planner.port_index()
        found: dict[ServicePortName, str] = {}
        for message, reason in self._table.refusals(plan, error, self._sets):
            for name in index.ports_of(message):
                found.setdefault(name, reason)
        return found

    def _refused_before(self, found: Mapping[ServicePortName, str], progress: _Progress) -> bool:
        """Whether a full comparison already showed that the kernel refuses these ports."""
        return (
            bool(found)
            and found.keys() <= self._refused
            and not found.keys() <= progress.refused.keys()
        )

    def _settle(self, progress: _Progress) -> None:
        """Remember what the kernel accepted and which Service ports it refused."""
        if progress.refusal and not progress.refused:
            log.warning("nftables.table_repaired", family=self._family, error=progress.refusal)
        inherited = self._planner.mark_applied()
        if self._refused or progress.refused:
            # A full comparison that the caller asked for has retried all refused ports.
            others = self._refused - progress.changed if progress.changed else frozenset()
            self._refused = others | progress.refused.keys() - inherited

    def maintain(self, _should_yield: Callable[[], bool]) -> Maintenance:
        """Do nothing: nftables rules need no periodic work."""
        return Maintenance()

    def clean_up(self) -> None:
        """Delete the table.

        Raises:
            BackendError: the kernel refused.
        """
        self._table.delete()

    def close(self) -> None:
        """Close the netlink socket; the table stays in the kernel."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None


def _version(release: str) -> tuple[int, ...]:
    numbers = release.split("-", maxsplit=1)[0].split(".")[:2]
    return tuple(int(n) for n in numbers if n.isdecimal())


_MODULES = {
    "numgen": "nft_numgen",
    "fib": "nft_fib_ipv4, nft_fib_ipv6",
    "nat": "nft_nat",
    "masq": "nft_masq",
    "reject": "nft_reject_ipv4, nft_reject_ipv6",
    "ct": "nft_ct",
}


def _remedy(error: RefusedError) -> str:
    if error.number == errno.EPERM:
        return "nf_tables: not permitted: run as root or with CAP_NET_ADMIN"
    if error.message is None:
        return (
            f"the kernel has no nf_tables ({error}): load the module nf_tables, or use another mode"
        )
    module = next((m for e, m in _MODULES.items() if f"expression {e}:" in str(error)), "")
    hint = f": load the kernel module {module}" if module else ""
    return f"this kernel cannot run nftables mode: {error}{hint}"
