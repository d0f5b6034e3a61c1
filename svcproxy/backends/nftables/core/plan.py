"""From the desired state to a transaction, whole or for what changed."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import msgspec

from svcproxy.backends.base import Desired
from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.chains import SOURCES, shared_chains, source_chain
from svcproxy.backends.nftables.core.compare import compare
from svcproxy.backends.nftables.core.endpoint_order import with_order, with_stable_order
from svcproxy.backends.nftables.core.fallbacks import (
    Fallbacks,
    frontend_owners,
    without_taken_frontends,
)
from svcproxy.backends.nftables.core.port_index import PortIndex
from svcproxy.backends.nftables.core.render import (
    NOTHING,
    EndpointList,
    ListKey,
    Rendered,
    endpoint_elements,
    hairpin_key,
    observed_order,
    render,
)
from svcproxy.backends.nftables.core.table_sets import Balance, Tier
from svcproxy.backends.nftables.core.tier_chains import tier_chain, tiers_chain
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, ServicePortName
from svcproxy.model.serviceport import Endpoint, ServicePort
from svcproxy.netlink.core.nf_tables.dump import TableDump
from svcproxy.netlink.core.nf_tables.ruleset import (
    ChainSpec,
    ElementsBySet,
    EncodedElements,
    SetSpec,
)
from svcproxy.netlink.core.nf_tables.transaction import Plan

_NO_LIST = EndpointList(())


def all_sets(settings: Settings, present: Iterable[str]) -> dict[str, SetSpec]:
    """The shared sets, and those on demand among ``present``."""
    specs = table_sets.shared_sets(settings.family)
    for name in present:
        if name not in specs:
            specs[name] = table_sets.set_on_demand(settings.family, name)
    return specs


def all_chains(settings: Settings, present: Collection[str]) -> dict[str, ChainSpec]:
    """Every chain, those that follow from sets on demand included."""
    chains = shared_chains(settings)
    lists = _OnDemandChains(settings.family, present)
    for chain in (lists.sources(), *map(lists.tiers, table_sets.BALANCES)):
        chains[chain.name] = chain
    for tier in sorted(lists.present):
        chains[str(tier)] = tier_chain(settings.family, tier)
    return chains


class _OnDemandChains:
    """The chains with a rule for each set on demand."""

    def __init__(self, family: IPFamily, present: Iterable[str]) -> None:
        names = list(present)
        self.family = family
        self.present = {tier for name in names if (tier := table_sets.parse_tier(name))}
        self.lengths = {bits for name in names if (bits := table_sets.parse_source_set(name))}

    def sources(self) -> ChainSpec:
        """The chain with a rule for each set of source ranges."""
        return source_chain(self.family, self.lengths)

    def tiers(self, balance: Balance) -> ChainSpec:
        """The chain with a rule for each tier of one kind."""
        return tiers_chain(balance, (tier for tier in self.present if tier.balance == balance))


def _head_rule(family: IPFamily, name: str) -> ChainSpec:
    """What leads to a set on demand: the chain that has to, with that rule alone."""
    lists, tier = _OnDemandChains(family, (name,)), table_sets.parse_tier(name)
    if tier is not None:
        return lists.tiers(tier.balance)
    return ChainSpec(SOURCES, lists.sources().rules[:1])


class KernelState(msgspec.Struct, frozen=True):
    """What the backend read from the kernel before a full comparison.

    Attributes:
        table: svcproxy's table.
        drop_invalid: whether rules may drop packets in conntrack state INVALID: not if the sysctl
            ``nf_conntrack_tcp_be_liberal`` is set, as in kube-proxy.
    """

    table: TableDump
    drop_invalid: bool


class Planner:
    """Knows what the kernel holds after the last applied plan, and computes the next.

    Its memory is the finished Service ports themselves, their endpoints in the order in which
    the kernel numbers them: their elements are a pure function of them and are computed again
    when they are to be replaced. Besides, it counts what several ports share.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ports: dict[ServicePortName, ServicePort] = {}
        self._fallbacks = Fallbacks()
        self._shared: dict[str, Counter[bytes]] = {}
        self._counts: Counter[str] = Counter()
        self._rules: dict[str, int] = {}

    @property
    def settings(self) -> Settings:
        """What the present table was made with."""
        return self._settings

    @property
    def ports(self) -> Mapping[ServicePortName, ServicePort]:
        """The Service ports that the kernel holds."""
        return self._ports

    def plan(self, desired: Desired, settings: Settings, observed: TableDump) -> Plan:
        """Compare from scratch with what the kernel holds; the memory starts anew."""
        self._settings = settings
        self._fallbacks.begin_comparison(self._ports, desired.ports)
        return self._compare(observed)

    def replan(self, observed: TableDump) -> Plan:
        """Compare the desired state of the last plan from scratch, without what is held back."""
        self._fallbacks.begin_comparison(self._ports)
        return self._compare(observed)

    def _compare(self, observed: TableDump) -> Plan:
        settings = self._settings
        ports, kept = self._fallbacks.ports(settings, observed)
        elements = self._render_all(ports, observed, kept)
        chains = all_chains(settings, elements)
        self._counts = Counter({name: len(tails) for name, tails in elements.items()})
        self._rules = {name: len(chain.rules) for name, chain in chains.items()}
        plan = compare(all_sets(settings, elements), chains, elements, observed)
        if not plan.make_table:
            on_demand = (spec.name for spec in plan.sets if table_sets.is_on_demand(spec.name))
            found = (_head_rule(settings.family, name) for name in on_demand)
            plan.head_rules = [chain for chain in found if chain.name in observed.chains]
        plan.sizes = self._sizes()
        return plan

    def _render_all(
        self,
        ports: Mapping[ServicePortName, ServicePort],
        observed: TableDump,
        elements: ElementsBySet,
    ) -> ElementsBySet:
        """Render all Service ports and forget what was known before.

        The result is added to ``elements``: unknown elements that stay in the kernel.
        """
        shared: dict[str, list[bytes]] = {table_sets.CLUSTER_ADDRESSES: [], table_sets.HAIRPINS: []}
        self._ports = {}
        for name, port in ports.items():
            rendered = render(port, self._settings)
            lists = _encode_lists(rendered)
            if observed.handle:
                arranged = _in_observed_order(port, rendered, lists, observed)
                if arranged is not port:
                    port, rendered = arranged, render(arranged, self._settings)  # noqa: PLW2901
                    lists = _encode_lists(rendered)
            self._ports[name] = port
            for set_name, tails in rendered.elements.items():
                elements.setdefault(set_name, {}).update(tails)
            for (set_name, _), tails in lists.items():
                elements.setdefault(set_name, {}).update(tails)
            shared[table_sets.CLUSTER_ADDRESSES] += rendered.cluster_addresses
            shared[table_sets.HAIRPINS] += map(hairpin_key, rendered.hairpins)
        self._shared = {set_name: Counter(keys) for set_name, keys in shared.items()}
        for set_name, counted in self._shared.items():
            if counted:
                elements.setdefault(set_name, {}).update(dict.fromkeys(counted, b""))
        return elements

    @property
    def changed(self) -> frozenset[ServicePortName]:
        """The Service ports that were given to ``plan_changes`` since the last ``settle``."""
        return frozenset(self._fallbacks.undo)

    def port_index(self) -> PortIndex:
        """Return the owners of the last plan's objects."""
        return self._fallbacks.port_index(self._ports, self._settings)

    def fall_back(self, names: Iterable[ServicePortName]) -> bool:
        """Have ``replan`` leave some Service ports as they were.

        Returns:
            Whether that is possible; not if one of them has no element left to leave out.
        """
        return self._fallbacks.fall_back(names)

    def mark_applied(self) -> frozenset[ServicePortName]:
        """Note that the kernel accepted the last plan.

        Returns:
            The inherited; see ``inherited``.
        """
        self._fallbacks.mark_applied()
        return frozenset(self._fallbacks.inherited)

    def plan_changes_without(self, names: Collection[ServicePortName]) -> Plan:
        """Undo the last ``plan_changes`` and plan the same changes without those of some ports."""
        undo = dict(self._fallbacks.undo)
        wanted = {name: self._ports.get(name) for name in undo if name not in names}
        self._change(undo, arranged=True)
        self._fallbacks.undo.clear()
        taken = frontend_owners(port for port in wanted.values() if port is not None)
        for name in names:
            known = self._ports.get(name)
            if known is not None:
                wanted[name] = without_taken_frontends(known, taken)
        return self.plan_changes(wanted)

    def needs_resync(self, ports: Mapping[ServicePortName, ServicePort | None]) -> bool:
        """Whether ``plan_changes`` would leave unknown elements that changed ports replace."""
        return self._fallbacks.affects_inherited(ports)

    def plan_changes(self, ports: Mapping[ServicePortName, ServicePort | None]) -> Plan:
        """Compute the difference that changed Service ports make."""
        return self._change(ports)

    def _change(
        self, ports: Mapping[ServicePortName, ServicePort | None], *, arranged: bool = False
    ) -> Plan:
        """The difference; ``arranged`` ports have their endpoints in the kernel's order already."""
        delta = _Delta()
        for name, port in ports.items():
            known = self._ports.pop(name, None)
            self._fallbacks.undo.setdefault(name, known)
            old = render(known, self._settings) if known else NOTHING
            new = NOTHING
            if port is not None:
                if not arranged:
                    port = with_stable_order(port, known)  # noqa: PLW2901
                self._ports[name] = port
                new = render(port, self._settings)
            delta.add(old, new)
        plan = Plan()
        for changed in delta.old.keys() | delta.new.keys():
            _diff_elements(plan, changed, delta.old.get(changed, {}), delta.new.get(changed, {}))
        for changed, change in delta.shared.items():
            self._diff_shared(plan, changed, change)
        self._update_on_demand_sets(plan)
        plan.sizes = self._sizes()
        return plan

    def _diff_shared(self, plan: Plan, name: str, change: Mapping[bytes, int]) -> None:
        """ElementsBySet that several ports want come with the first of them and go with the last."""
        counted = self._shared.setdefault(name, Counter())
        for key, difference in change.items():
            before = counted[key]
            counted[key] += difference
            if not before and counted[key]:
                plan.add.setdefault(name, {})[key] = b""
            elif before and not counted[key]:
                plan.remove.setdefault(name, []).append(key)
            if not counted[key]:
                del counted[key]

    def _update_on_demand_sets(self, plan: Plan) -> None:
        """Make sets that get their first element, and delete those that lose their last one."""
        changed: set[str] = set()
        for name in plan.remove.keys() | plan.add.keys():
            before = self._counts[name]
            self._counts[name] += len(plan.add.get(name, ())) - len(plan.remove.get(name, ()))
            if bool(before) != bool(self._counts[name]):
                changed.add(name)
        lists = _OnDemandChains(
            self._settings.family, (n for n, count in self._counts.items() if count)
        )
        rewrite: dict[str, ChainSpec] = {}
        for name in sorted(changed):
            tier = table_sets.parse_tier(name)
            if tier is not None:
                self._update_tier_chain(plan, tier)
                rewrite[str(tier.balance)] = lists.tiers(tier.balance)
            elif table_sets.parse_source_set(name):
                rewrite[SOURCES] = lists.sources()
            else:
                continue
            if self._counts[name]:
                plan.sets.append(table_sets.set_on_demand(self._settings.family, name))
                plan.head_rules.append(_head_rule(self._settings.family, name))
            else:
                plan.delete_sets.append(name)
                del plan.remove[name]
        for chain in rewrite.values():
            self._rules[chain.name] = len(chain.rules)
            plan.rewrite.append(chain)

    def _update_tier_chain(self, plan: Plan, tier: Tier) -> None:
        """Make or delete the chain of a tier whose map comes or goes."""
        name = str(tier)
        if self._counts[name]:
            chain = tier_chain(self._settings.family, tier)
            self._rules[name] = len(chain.rules)
            plan.chains.append(chain)
        else:
            plan.delete_chains.append(name)
            del self._rules[name]

    def _sizes(self) -> dict[str, int]:
        return {
            "elements": self._counts.total(),
            "rules": sum(self._rules.values()),
            "chains": len(self._rules),
        }


def _diff_elements(plan: Plan, name: str, old: EncodedElements, new: EncodedElements) -> None:
    remove = [key for key, tail in old.items() if new.get(key) != tail]
    add = {key: tail for key, tail in new.items() if old.get(key) != tail}
    if remove:
        plan.remove[name] = remove
    if add:
        plan.add[name] = add


class _Delta:
    """What changed Service ports had and have, summed up."""

    def __init__(self) -> None:
        self.old: ElementsBySet = {}
        self.new: ElementsBySet = {}
        self.shared: dict[str, Counter[bytes]] = {
            table_sets.CLUSTER_ADDRESSES: Counter(),
            table_sets.HAIRPINS: Counter(),
        }

    def add(self, old: Rendered, new: Rendered) -> None:
        """Take in one port. Keys may go from one port to another, so all come together first."""
        for elements, rendered in ((self.old, old), (self.new, new)):
            for name, tails in rendered.elements.items():
                elements.setdefault(name, {}).update(tails)
        for where in {**old.lists, **new.lists}:
            self._add_list(where, old.lists.get(where, _NO_LIST), new.lists.get(where, _NO_LIST))
        addresses = self.shared[table_sets.CLUSTER_ADDRESSES]
        addresses.subtract(old.cluster_addresses)
        addresses.update(new.cluster_addresses)
        hairpins = self.shared[table_sets.HAIRPINS]
        hairpins.subtract(map(hairpin_key, old.hairpins))
        hairpins.update(map(hairpin_key, new.hairpins))

    def _add_list(self, where: ListKey, old: EndpointList, new: EndpointList) -> None:
        """Of a list that stays under its key, only numbers that change hands matter."""
        before, after = old.endpoints, new.endpoints
        keep: set[int] = set()
        if old.owner == new.owner:
            keep = {
                number for number, equal in enumerate(map(_same_target, before, after)) if equal
            }
        for elements, found in ((self.old, old), (self.new, new)):
            numbers = (i for i in range(len(found.endpoints)) if i not in keep)
            elements.setdefault(where[0], {}).update(endpoint_elements(where, found, numbers))


def _same_target(one: Endpoint, other: Endpoint) -> bool:
    return one.address == other.address and one.port == other.port


def _encode_lists(rendered: Rendered) -> dict[ListKey, EncodedElements]:
    """The elements of all endpoints of a Service port."""
    return {
        where: endpoint_elements(where, found, range(len(found.endpoints)))
        for where, found in rendered.lists.items()
    }


def _in_observed_order(
    port: ServicePort,
    rendered: Rendered,
    lists: Mapping[ListKey, EncodedElements],
    observed: TableDump,
) -> ServicePort:
    """A Service port with its endpoints in the order in which the kernel has them already."""
    orders: dict[bool, tuple[Endpoint | None, ...]] = {}
    for where, tails in lists.items():
        present = observed.elements.get(where[0], {})
        tier = table_sets.parse_tier(where[0])
        if tier is None or tier.balance.local in orders:
            continue
        if any(present.get(key) != tail for key, tail in tails.items()):
            orders[tier.balance.local] = observed_order(rendered.lists[where], where, present)
    return with_order(port, orders.get(False), orders.get(True)) if orders else port
