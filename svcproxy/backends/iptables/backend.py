"""The iptables backend: the pure plan joined with the programs that carry it out."""

from collections.abc import Callable
from pathlib import Path

import structlog
from msgspec import structs

from svcproxy.backends.base import BackendError, BackendUnavailable, Desired, Outcome
from svcproxy.backends.iptables.cleanup import clean_up_plan
from svcproxy.backends.iptables.commands import Iptables, Variant
from svcproxy.backends.iptables.plan import Plan, Planner
from svcproxy.backends.iptables.ruleset import NAT, TABLES
from svcproxy.backends.iptables.savefile import Saved, parse
from svcproxy.backends.iptables.settings import IptablesSettings
from svcproxy.backends.iptables.staging import staged
from svcproxy.backends.iptables.static import hairpin
from svcproxy.model.names import IPFamily
from svcproxy.model.objects import Node
from svcproxy.state.desired import Changes

_ROUTE_LOCALNET = Path("/proc/sys/net/ipv4/conf/all/route_localnet")
_PROBE_CHAIN = "KUBE-SVC-PROBE"

log = structlog.get_logger()


class IptablesBackend:
    """Programs one family with iptables.

    ``settings_for`` gives the settings for the present Node object; when they change, all rules
    are computed anew.
    """

    def __init__(
        self, programs: Iptables, settings_for: Callable[[Node | None], IptablesSettings]
    ) -> None:
        self._programs = programs
        self._settings_for = settings_for
        self._hairpin_match = True
        self._planner = Planner(self._settings(None))

    @property
    def family(self) -> IPFamily:
        """The family that this backend programs."""
        return self._programs.family

    def probe(self) -> None:
        """Check that both tables can be read and written, and what the kernel's matches allow.

        Raises:
            BackendUnavailable: the programs are missing or may not touch the kernel.
        """
        try:
            saved = self._programs.save(*TABLES)
        except BackendError as error:
            raise BackendUnavailable(
                f"cannot read the {self.family} tables: {error}"
                " (svcproxy needs root or CAP_NET_ADMIN and CAP_NET_RAW)"
            ) from error
        self._hairpin_match = "-m bpf " in saved or self._has_hairpin_match()
        settings = self._settings(None)
        if not self._hairpin_match:
            log.info("iptables.no_bpf_match", family=self.family, effect="a chain per endpoint")
        if settings.family is IPFamily.IPV4 and settings.localhost_node_ports:
            _allow_localnet()

    def read(self) -> Saved:
        """Read both tables."""
        return parse(self._programs.save(*TABLES))

    def plan(self, desired: Desired, observed: Saved) -> Plan:
        """Compare everything."""
        return self._planner.plan(desired, self._settings(desired.node), observed)

    def plan_changes(self, changes: Changes, node: Node | None) -> Plan | None:
        """Compute what changed Service ports mean; other settings need a full comparison."""
        if changes.node_changed and self._settings(node) != self._planner.settings:
            return None
        return self._planner.plan_changes(changes.ports)

    def apply(self, plan: Plan) -> Outcome:
        """Send the plan in one iptables-restore, one transaction per table.

        With the nft variant, very many new chains go ahead in pieces, see ``staging``.
        """
        nft = self._programs.variant is Variant.NFT
        texts = list(staged(plan)) if nft else [text for text in (plan.text(),) if text]
        for text in texts:
            self._programs.restore(text)
        tables = plan.tables
        counts = {
            "restore": len(texts),
            "chain_written": sum(len(t.write) for t in tables.values()),
            "chain_deleted": sum(len(t.delete) for t in tables.values()),
            "rule_written": sum(t.rules for t in tables.values()),
            "rule_deleted": sum(len(t.remove) for t in tables.values()),
        }
        return Outcome(
            operations={kind: count for kind, count in counts.items() if count},
            sizes=plan.sizes,
            written={table: t.rules for table, t in tables.items()},
        )

    def clean_up(self) -> None:
        """Remove our chains and jumps, and what kube-proxy's iptables mode may have left."""
        text = clean_up_plan(self.read()).text()
        if text:
            self._programs.restore(text)

    def _settings(self, node: Node | None) -> IptablesSettings:
        settings = self._settings_for(node)
        if settings.hairpin_match and not self._hairpin_match:
            return structs.replace(settings, hairpin_match=False)
        return settings

    def _has_hairpin_match(self) -> bool:
        """Write a rule with the match to a chain that nothing refers to, and remove it."""
        chain = f"*{NAT}\n:{_PROBE_CHAIN} - [0:0]\n"
        try:
            self._programs.restore(f"{chain}-A {_PROBE_CHAIN} {hairpin(self.family)}\nCOMMIT\n")
            works = True
        except BackendError:
            works = False
        try:
            self._programs.restore(f"{chain}-X {_PROBE_CHAIN}\nCOMMIT\n")
        except BackendError as error:
            raise BackendUnavailable(
                f"cannot write the {self.family} nat table: {error}"
                " (svcproxy needs root or CAP_NET_ADMIN and CAP_NET_RAW)"
            ) from error
        return works


def _allow_localnet() -> None:
    """Let packets to 127.0.0.0/8 be translated: node ports on localhost need it."""
    try:
        if _ROUTE_LOCALNET.read_text().strip() != "1":
            _ROUTE_LOCALNET.write_text("1")
    except OSError as error:
        log.warning(
            "sysctl.not_set",
            sysctl="net.ipv4.conf.all.route_localnet",
            error=error.strerror,
            effect="node ports do not answer on 127.0.0.1",
            remedy="set it to 1, or pass --iptables-localhost-nodeports=false",
        )
