"""The nftables backend: the pure plan joined with the table in the kernel."""

import errno
import os
from collections.abc import Callable

import structlog

from svcproxy import sysctl
from svcproxy.backends.base import BackendError, BackendUnavailable, Desired, Maintenance, Outcome
from svcproxy.backends.nftables.connection import RefusedError, StaleGenerationError
from svcproxy.backends.nftables.core.plan import Planner, all_chains, all_sets
from svcproxy.backends.nftables.core.sets import BALANCES, Tier, source_set
from svcproxy.backends.nftables.core.settings import extended
from svcproxy.backends.nftables.table import KernelTable
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.netlink.core.nf_tables.dump import Observed
from svcproxy.netlink.core.nf_tables.ruleset import TABLE, SetSpec
from svcproxy.netlink.core.nf_tables.transaction import Plan, messages
from svcproxy.state.desired import Changes

MINIMUM_KERNEL = (5, 13)
"""kube-proxy's nftables mode asks for the same; the expressions we use are older."""
_PROBE_TABLE = "svcproxy-probe"
_ATTEMPTS = 3
_HOLDS = 8
"""How many times one sync leaves out what the kernel refuses, before the whole sync fails."""

log = structlog.get_logger()


class _Work:
    """The state of one call of ``apply``.

    Attributes:
        changed: the Service ports that the plan changes; empty for a full comparison.
        comparisons: how many full comparisons were made because the kernel differed.
        holds: how many times Service ports were left out.
        refused: the Service ports that were left out, with the reasons.
        doubt: the error that suggested that the kernel differs from what the plan starts from.
    """

    def __init__(self, changed: frozenset[ServicePortName]) -> None:
        self.changed = changed
        self.comparisons = 0
        self.holds = 0
        self.refused: dict[ServicePortName, str] = {}
        self.doubt = ""


class NftablesBackend:
    """Programs one family with nftables, over netlink and without any program.

    Args:
        family: the IP family.
        settings: the settings before the Node object is known; a change leads to a resync.
        table: the name of the table.
    """

    max_skipped_resyncs = 9

    def __init__(self, family: IPFamily, settings: Settings, table: str = TABLE) -> None:
        self._family = family
        self._settings = settings
        self._name = table
        self._kernel: KernelTable | None = None
        self._service_cidrs: tuple[str, ...] = ()
        self._drop_invalid = True
        self._planner = Planner(self._extended(settings))
        self._refused: frozenset[ServicePortName] = frozenset()

    @property
    def family(self) -> IPFamily:
        """The family that this backend programs."""
        return self._family

    @property
    def port_id(self) -> int:
        """The netlink address that the kernel's events name for our own changes."""
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
        """Check the kernel, by having it check a table with one of everything.

        Raises:
            BackendUnavailable: it lacks something, or will not let us.
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
            self._check_everything()
        except RefusedError as error:
            raise BackendUnavailable(_remedy(error)) from error
        except BackendError as error:
            raise BackendUnavailable(
                f"{error}: the kernel needs CONFIG_NETFILTER_NETLINK"
            ) from error
        settings = self._settings
        if settings.family is IPFamily.IPV4 and settings.localhost_node_ports:
            sysctl.ensure(sysctl.ROUTE_LOCALNET)

    def _check_everything(self) -> None:
        settings = self._extended(self._settings)
        tiers = [str(Tier(b, 2, seconds)) for b in BALANCES for seconds in (0, 10800)]
        present = [*tiers, source_set(8)]
        specs, chains = all_sets(settings, present), all_chains(settings, present)
        plan = Plan(make_table=True, sets=list(specs.values()), chains=list(chains.values()))
        self._table.check(list(messages(plan, _PROBE_TABLE)), specs)

    def is_unchanged(self) -> bool:
        """Whether no transaction but ours has come since the table was read or made."""
        try:
            return self._table.is_untouched()
        except BackendError:
            return False

    def read(self) -> Observed:
        """Read our table."""
        return self._table.read()

    def plan(self, desired: Desired, observed: Observed) -> Plan:
        """Compare everything."""
        self._service_cidrs = desired.service_cidrs
        self._drop_invalid = not sysctl.conntrack_is_liberal()
        return self._planner.plan(desired, self._extended(desired.settings), observed)

    def _extended(self, settings: Settings) -> Settings:
        return extended(
            settings,
            service_cidrs=self._service_cidrs,
            drop_invalid=self._drop_invalid,
        )

    def plan_changes(self, changes: Changes, settings: Settings) -> Plan | None:
        """Compute what changed Service ports mean.

        A full comparison is needed (``None``) if the settings changed, if the table is no longer
        the one that was read or made, and if the kernel holds unknown elements at the keys of a
        changed port.
        """
        if changes.service_cidrs_changed or self._extended(settings) != self._planner.settings:
            return None
        if not self._table.is_same() or self._planner.needs_comparison(changes.ports):
            return None
        plan = self._planner.plan_changes(changes.ports)
        plan.generation = self._table.expected_generation()
        return plan

    def apply(self, plan: Plan) -> Outcome:
        """Carry out the plan in one transaction.

        If the kernel differs from what the plan starts from, another program has changed our
        table. It is read and compared again at once, so that the repair does not wait. What the
        kernel refuses after that is left out, so that one Service port does not block the others.
        """
        work = _Work(frozenset() if plan.compared else self._planner.changed)
        while plan:
            try:
                self._table.commit(plan, self._sets())
            except StaleGenerationError as error:
                plan = self._compare_after(error, work)
            except RefusedError as error:
                plan = self._after_refusal(plan, error, work)
            else:
                break
        if work.doubt and not work.refused:
            log.warning("nftables.differs", family=self._family, error=work.doubt)
        strays = self._planner.settle()
        if self._refused or work.refused:
            # A full comparison that the caller asked for has retried all refused ports.
            others = self._refused - work.changed if work.changed else frozenset()
            self._refused = others | work.refused.keys() - strays
        operations = plan.operations
        if work.comparisons:
            operations["compared_again"] = work.comparisons
        return Outcome(operations, plan.sizes, plan.written, work.refused)

    def _after_refusal(self, plan: Plan, error: RefusedError, work: "_Work") -> Plan:
        """Return the plan to try after the kernel refused one."""
        found = {} if error.partial else self._culprits(plan, error)
        if not plan.compared:
            known = found.keys() <= self._refused and not found.keys() <= work.refused.keys()
            if found and known:
                # The kernel refused the same ports after a full comparison: do not repeat it.
                work.refused.update(found)
                rest = self._planner.without(found)
                rest.generation = self._table.expected_generation()
                return rest
            work.doubt = str(error)
        elif found and work.holds < _HOLDS and self._planner.hold(found):
            work.holds += 1
            work.refused.update(found)
            return self._planner.plan_again(self._table.read())
        elif not error.partial:
            raise error
        return self._compare_after(error, work)

    def _culprits(self, plan: Plan, error: RefusedError) -> dict[ServicePortName, str]:
        """Return the Service ports whose messages the kernel refused, with the reasons."""
        owners = self._planner.owners()
        found: dict[ServicePortName, str] = {}
        for message, reason in self._table.refusals(plan, error, self._sets()):
            for name in owners.of(message):
                found.setdefault(name, reason)
        return found

    def _compare_after(self, error: BackendError, work: "_Work") -> Plan:
        """Read and compare everything, because the kernel differs from what the plan starts from."""
        if work.comparisons == _ATTEMPTS:
            raise error
        work.comparisons += 1
        plan = self._planner.plan_again(self._table.read())
        if work.comparisons == _ATTEMPTS:
            # Other programs keep changing other tables: commit whatever the generation is.
            plan.generation = 0
        return plan

    def _sets(self) -> dict[str, SetSpec]:
        return all_sets(self._planner.settings, ())

    def maintain(self, _should_yield: Callable[[], bool]) -> Maintenance:
        """Do nothing: rules do not depend on time."""
        return Maintenance()

    def clean_up(self) -> None:
        """Delete our table."""
        self._table.delete()

    def close(self) -> None:
        """Close the netlink socket; the table stays."""
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
