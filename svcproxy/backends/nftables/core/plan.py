"""Plans transactions: from the whole desired state, or from changed Service ports alone."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import msgspec

from svcproxy.backends.base import Desired
from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.chains import SOURCES
from svcproxy.backends.nftables.core.compare import compare
from svcproxy.backends.nftables.core.delta import ElementDelta
from svcproxy.backends.nftables.core.endpoint_order import in_order, with_stable_order
from svcproxy.backends.nftables.core.fallbacks import (
    Fallbacks,
    frontend_owners,
    without_taken_frontends,
)
from svcproxy.backends.nftables.core.port_index import PortIndex
from svcproxy.backends.nftables.core.render import (
    NO_ELEMENTS,
    ListKey,
    PortElements,
    endpoint_elements,
    hairpin_key,
    observed_order,
    render,
)
from svcproxy.backends.nftables.core.table_objects import (
    OnDemandChains,
    all_chains,
    all_sets,
    head_rule,
)
from svcproxy.backends.nftables.core.table_sets import Tier
from svcproxy.backends.nftables.core.tier_chains import tier_chain
from svcproxy.backends.settings import Settings
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import Endpoint, ServicePort
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.ruleset import ChainSpec, ElementsBySet, EncodedElements
from svcproxy.netlink.core.nf_tables.transaction import Plan


class KernelState(msgspec.Struct, frozen=True):
    """What the backend reads from the kernel before a full comparison.

    Attributes:
        table: svcproxy's table.
        drop_invalid: whether rules may drop packets in conntrack state INVALID: not if the sysctl
            ``nf_conntrack_tcp_be_liberal`` is set, as in kube-proxy.
    """

    table: TableDump
    drop_invalid: bool


class Planner:
    """Computes plans, and remembers what the kernel holds after the last one.

    It remembers Service ports, with their endpoints in the order in which the kernel numbers them,
    and not their elements: elements are a pure function of a Service port, and are rendered again
    when they are replaced. Besides, it counts the elements of each set, and the Service ports that
    need each shared element.

    Args:
        settings: the settings until the first full comparison.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ports: dict[ServicePortName, ServicePort] = {}
        self._fallbacks = Fallbacks()
        self._shared: dict[str, Counter[bytes]] = {}
        self._element_counts: Counter[str] = Counter()
        self._rule_counts: dict[str, int] = {}

    @property
    def settings(self) -> Settings:
        """The settings of the last full comparison."""
        return self._settings

    @property
    def ports(self) -> Mapping[ServicePortName, ServicePort]:
        """The Service ports that the kernel holds after the last plan."""
        return self._ports

    @property
    def changed(self) -> frozenset[ServicePortName]:
        """The Service ports given to ``plan_changes`` since the last ``mark_applied``."""
        return frozenset(self._fallbacks.undo)

    # --- Full comparisons ------------------------------------------------------------------------

    def plan(self, desired: Desired, settings: Settings, table: TableDump) -> Plan:
        """Compare the whole desired state with the kernel's table."""
        self._settings = settings
        self._fallbacks.begin_comparison(self._ports, desired.ports)
        return self._compare(table)

    def replan(self, table: TableDump) -> Plan:
        """Compare the desired state of the last plan again, with fallbacks for refused ports."""
        self._fallbacks.begin_comparison(self._ports)
        return self._compare(table)

    def _compare(self, table: TableDump) -> Plan:
        settings = self._settings
        ports, inherited = self._fallbacks.resolve(settings, table)
        elements = self._render_all(ports, table, inherited)
        chains = all_chains(settings, elements)
        self._element_counts = Counter({name: len(found) for name, found in elements.items()})
        self._rule_counts = {name: len(chain.rules) for name, chain in chains.items()}
        plan = compare(all_sets(settings, elements), chains, elements, table)
        if not plan.make_table:
            new = (spec.name for spec in plan.sets if table_sets.is_on_demand(spec.name))
            heads = (head_rule(settings.family, name) for name in new)
            plan.head_rules = [chain for chain in heads if chain.name in table.chains]
        plan.sizes = self._sizes()
        return plan

    def _render_all(
        self,
        ports: Mapping[ServicePortName, ServicePort],
        table: TableDump,
        elements: ElementsBySet,
    ) -> ElementsBySet:
        """Render all Service ports, and remember them instead of the previous ones.

        Args:
            ports: the Service ports.
            table: the kernel's table; endpoints keep the numbers that they have in it.
            elements: inherited elements; the rendered ones are added to them.
        """
        shared: dict[str, list[bytes]] = {table_sets.CLUSTER_ADDRESSES: [], table_sets.HAIRPINS: []}
        self._ports = {}
        for name, port in ports.items():
            rendered = render(port, self._settings)
            lists = _encode_lists(rendered)
            if table.handle:
                ordered = _in_observed_order(port, rendered, lists, table)
                if ordered is not port:
                    port, rendered = ordered, render(ordered, self._settings)  # noqa: PLW2901
                    lists = _encode_lists(rendered)
            self._ports[name] = port
            for set_name, found in rendered.elements.items():
                elements.setdefault(set_name, {}).update(found)
            for (set_name, _), found in lists.items():
                elements.setdefault(set_name, {}).update(found)
            shared[table_sets.CLUSTER_ADDRESSES] += rendered.cluster_addresses
            shared[table_sets.HAIRPINS] += map(hairpin_key, rendered.hairpins)
        self._shared = {set_name: Counter(keys) for set_name, keys in shared.items()}
        for set_name, users in self._shared.items():
            if users:
                elements.setdefault(set_name, {}).update(dict.fromkeys(users, b""))
        return elements

    # --- Incremental changes ---------------------------------------------------------------------

    def needs_resync(self, ports: Mapping[ServicePortName, ServicePort | None]) -> bool:
        """Whether a full comparison must plan these changes, because of inherited elements."""
        return self._fallbacks.affects_inherited(ports)

    def plan_changes(
        self, ports: Mapping[ServicePortName, ServicePort | None], *, ordered: bool = False
    ) -> Plan:
        """Compute the difference that changed Service ports make.

        Args:
            ports: the changed Service ports; ``None`` for deleted ones.
            ordered: their endpoints are in the kernel's order already.
        """
        delta = ElementDelta()
        for name, port in ports.items():
            known = self._ports.pop(name, None)
            self._fallbacks.undo.setdefault(name, known)
            old = render(known, self._settings) if known else NO_ELEMENTS
            new = NO_ELEMENTS
            if port is not None:
                if not ordered:
                    port = with_stable_order(port, known)  # noqa: PLW2901
                self._ports[name] = port
                new = render(port, self._settings)
            delta.add(old, new)
        plan = Plan()
        delta.write_to(plan)
        for set_name, differences in delta.shared.items():
            self._change_shared(plan, set_name, differences)
        self._change_on_demand_sets(plan)
        plan.sizes = self._sizes()
        return plan

    def _change_shared(self, plan: Plan, name: str, differences: Mapping[bytes, int]) -> None:
        """Add shared elements with their first user, and remove them with their last."""
        users = self._shared.setdefault(name, Counter())
        for key, difference in differences.items():
            before = users[key]
            users[key] += difference
            if not before and users[key]:
                plan.add.setdefault(name, {})[key] = b""
            elif before and not users[key]:
                plan.remove.setdefault(name, []).append(key)
            if not users[key]:
                del users[key]

    def _change_on_demand_sets(self, plan: Plan) -> None:
        """Add on-demand sets that get their first element, delete those that lose the last."""
        counts, family = self._element_counts, self._settings.family
        changed: set[str] = set()
        for name in plan.remove.keys() | plan.add.keys():
            before = counts[name]
            counts[name] += len(plan.add.get(name, ())) - len(plan.remove.get(name, ()))
            if bool(before) != bool(counts[name]):
                changed.add(name)
        on_demand = OnDemandChains(family, (name for name, count in counts.items() if count))
        rewrite: dict[str, ChainSpec] = {}
        for name in sorted(changed):
            tier = table_sets.parse_tier(name)
            if tier is not None:
                self._change_tier_chain(plan, tier)
                rewrite[str(tier.balance)] = on_demand.tiers(tier.balance)
            elif table_sets.parse_source_set(name):
                rewrite[SOURCES] = on_demand.sources()
            else:
                continue
            if counts[name]:
                plan.sets.append(table_sets.set_on_demand(family, name))
                plan.head_rules.append(head_rule(family, name))
            else:
                plan.delete_sets.append(name)
                del plan.remove[name]
        for chain in rewrite.values():
            self._rule_counts[chain.name] = len(chain.rules)
            plan.rewrite.append(chain)

    def _change_tier_chain(self, plan: Plan, tier: Tier) -> None:
        """Add the chain of a tier together with its map, or delete it together with its map."""
        name = str(tier)
        if self._element_counts[name]:
            chain = tier_chain(self._settings.family, tier)
            self._rule_counts[name] = len(chain.rules)
            plan.chains.append(chain)
        else:
            plan.delete_chains.append(name)
            del self._rule_counts[name]

    def _sizes(self) -> dict[str, int]:
        return {
            "elements": self._element_counts.total(),
            "rules": sum(self._rule_counts.values()),
            "chains": len(self._rule_counts),
        }

    # --- After the kernel's answer ---------------------------------------------------------------

    def mark_applied(self) -> frozenset[ServicePortName]:
        """Record that the kernel accepted the last plan.

        Returns:
            The Service ports with inherited elements, see ``Fallbacks.inherited``.
        """
        self._fallbacks.mark_applied()
        return frozenset(self._fallbacks.inherited)

    def port_index(self) -> PortIndex:
        """Return the index from the last plan's messages to Service ports."""
        return self._fallbacks.port_index(self._ports, self._settings)

    def fall_back(self, names: Iterable[ServicePortName]) -> bool:
        """Make ``replan`` use the next fallback of refused Service ports.

        Returns:
            Whether all of them had one.
        """
        return self._fallbacks.fall_back(names)

    def plan_changes_without(self, names: Collection[ServicePortName]) -> Plan:
        """Undo the last ``plan_changes``, and plan it again without some of its Service ports.

        Those keep their previous state, except for frontends that other ports take over.
        """
        undo = dict(self._fallbacks.undo)
        wanted = {name: self._ports.get(name) for name in undo if name not in names}
        self.plan_changes(undo, ordered=True)
        self._fallbacks.undo.clear()
        owners = frontend_owners(port for port in wanted.values() if port is not None)
        for name in names:
            known = self._ports.get(name)
            if known is not None:
                wanted[name] = without_taken_frontends(known, owners)
        return self.plan_changes(wanted)


def _encode_lists(rendered: PortElements) -> dict[ListKey, EncodedElements]:
    """Return the elements of all endpoints of a Service port."""
    return {
        where: endpoint_elements(where, found, range(len(found.endpoints)))
        for where, found in rendered.lists.items()
    }


def _in_observed_order(
    port: ServicePort,
    rendered: PortElements,
    lists: Mapping[ListKey, EncodedElements],
    table: TableDump,
) -> ServicePort:
    """Return a Service port with its endpoints in the order that they have in the kernel."""
    orders: dict[bool, tuple[Endpoint | None, ...]] = {}
    for where, encoded in lists.items():
        present = table.elements.get(where[0], {})
        tier = table_sets.parse_tier(where[0])
        if tier is None or tier.balance.local in orders:
            continue
        if any(present.get(key) != value for key, value in encoded.items()):
            orders[tier.balance.local] = observed_order(rendered.lists[where], where, present)
    return in_order(port, orders.get(False), orders.get(True)) if orders else port
