"""The nftables backend: the pure plan joined with the table in the kernel."""

import errno
import os
from collections.abc import Callable

import structlog

from svcproxy.backends.base import BackendError, BackendUnavailable, Desired, Outcome
from svcproxy.backends.localnet import allow_localnet
from svcproxy.backends.nftables.connection import RefusedError, StaleGenerationError
from svcproxy.backends.nftables.dump import Observed
from svcproxy.backends.nftables.plan import Planner, all_chains, all_sets
from svcproxy.backends.nftables.ruleset import TABLE
from svcproxy.backends.nftables.sets import BALANCES, Tier, source_set
from svcproxy.backends.nftables.settings import extended
from svcproxy.backends.nftables.table import KernelTable
from svcproxy.backends.nftables.transaction import Plan, messages
from svcproxy.backends.settings import Settings
from svcproxy.backends.window import is_liberal
from svcproxy.model.names import IPFamily
from svcproxy.model.objects import Node
from svcproxy.state.desired import Changes

MINIMUM_KERNEL = (5, 13)
"""kube-proxy's nftables mode asks for the same; the expressions we use are older."""
_PROBE_TABLE = "svcproxy-probe"
_ATTEMPTS = 3

log = structlog.get_logger()


class NftablesBackend:
    """Programs one family with nftables, over netlink and without any program.

    ``settings_for`` gives the settings for the present Node object; when they change, the table
    is compared from scratch.
    """

    spares = 9

    def __init__(
        self, family: IPFamily, settings_for: Callable[[Node | None], Settings], table: str = TABLE
    ) -> None:
        self._family = family
        self._settings_for = settings_for
        self._name = table
        self._kernel: KernelTable | None = None
        self._service_cidrs: tuple[str, ...] = ()
        self._drop_invalid = True
        self._planner = Planner(self._settings(None))

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
        settings = self._settings(None)
        if settings.family is IPFamily.IPV4 and settings.localhost_node_ports:
            allow_localnet()

    def _check_everything(self) -> None:
        settings = self._settings(None)
        tiers = [str(Tier(b, 2, seconds)) for b in BALANCES for seconds in (0, 10800)]
        present = [*tiers, source_set(8)]
        specs, chains = all_sets(settings, present), all_chains(settings, present)
        plan = Plan(make_table=True, sets=list(specs.values()), chains=list(chains.values()))
        self._table.check(list(messages(plan, _PROBE_TABLE)), specs)

    def untouched(self) -> bool:
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
        self._drop_invalid = not is_liberal()
        return self._planner.plan(desired, self._settings(desired.node), observed)

    def _settings(self, node: Node | None) -> Settings:
        return extended(
            self._settings_for(node),
            service_cidrs=self._service_cidrs,
            drop_invalid=self._drop_invalid,
        )

    def plan_changes(self, changes: Changes, node: Node | None) -> Plan | None:
        """Compute what changed Service ports mean.

        Other settings need a full comparison, and so does a table that is not ours any more.
        """
        if changes.service_cidrs_changed or self._settings(node) != self._planner.settings:
            return None
        if not self._table.is_same():
            return None
        plan = self._planner.plan_changes(changes.ports)
        plan.generation = self._table.expected_generation()
        return plan

    def apply(self, plan: Plan) -> Outcome:
        """Carry out the plan in one transaction.

        If the kernel holds something else than the plan starts from, it is read and compared
        again at once: others changed our table, and the repair should not wait.
        """
        comparisons = 0
        while plan:
            try:
                self._table.commit(plan, all_sets(self._planner.settings, ()))
            except StaleGenerationError:
                if comparisons == _ATTEMPTS:
                    raise
            except RefusedError as error:
                if plan.compared or comparisons == _ATTEMPTS:
                    raise
                log.warning("nftables.differs", family=self._family, error=str(error))
            else:
                break
            comparisons += 1
            plan = self._compare_again()
            if comparisons == _ATTEMPTS:
                # Others change other tables all the time: that must not keep us from our work.
                plan.generation = 0
        operations = plan.operations
        if comparisons:
            operations["compared_again"] = comparisons
        return Outcome(operations=operations, sizes=plan.sizes, written=plan.written)

    def _compare_again(self) -> Plan:
        planner = self._planner
        return planner.plan(Desired(planner.ports, None), planner.settings, self._table.read())

    def tend(self, _hurry: Callable[[], bool]) -> float | None:
        """Nothing: rules do not depend on time."""
        return None

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
