"""The rules of each mode: rendered from scratch, and built incrementally in a fake kernel.

All dependencies of the scenarios on planners and fake kernels are in this module.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from msgspec import structs

from svcproxy import cli
from svcproxy.backends.core.node_settings import NodeSettings
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.iptables.core.static import SHARED_CHAINS
from svcproxy.backends.ipvs import probing
from svcproxy.backends.ipvs.core import chains_and_sets as ipvs_chains
from svcproxy.backends.ipvs.core.settings import IpvsSettings, KernelFacts, scheduling
from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.backends.nftables.core.table_sets import parse_tier
from svcproxy.backends.settings import Settings
from svcproxy.config import Config
from svcproxy.explain.core import rendered_iptables, rendered_ipvs, rendered_nftables
from svcproxy.explain.core.iptables_rules import IptablesRuleset
from svcproxy.explain.core.ipvs_rules import IpvsRuleset
from svcproxy.explain.core.nft_table import NftTable
from svcproxy.model.names import IPFamily
from svcproxy.model.objects import ApiObject, EndpointSlice, Node, Service, ServiceCIDR
from svcproxy.state.desired import DesiredState
from tests.property import test_iptables_incremental as iptables_machine
from tests.property import test_ipvs_incremental as ipvs_machine
from tests.property import test_nftables_incremental as nftables_machine
from tests.scenarios.scenario import NODE_ADDRESSES, NODE_SUBNETS

NODE = "node1"
NODE_OBJECT = Node(
    name=NODE,
    zone="zone-a",
    addresses=NODE_ADDRESSES,
    pod_cidrs=("10.244.1.0/24", "fd00:10:244:1::/64"),
)
FLAGS = (
    "--manifests=/manifests",
    f"--hostname-override={NODE}",
    "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
)
MODES = ("iptables", "nftables", "ipvs")
UNORDERED = frozenset(SHARED_CHAINS) | {
    name for names in ipvs_chains.LISTS.values() for name in names
}
"""Chains in which the order of rules is irrelevant."""


def balances(chain: str) -> bool:
    """Whether a chain of nftables mode depends on the lengths of endpoint lists only."""
    return parse_tier(chain) is not None or chain.endswith("-tiers")


class Made(NamedTuple):
    """The rules of one mode and family."""

    mode: str
    family: IPFamily
    iptables: IptablesRuleset | None = None
    nftables: NftTable | None = None
    ipvs: IpvsRuleset | None = None


def config_of(mode: str, flags: Sequence[str]) -> Config:
    """The configuration of a mode."""
    mode_flag = f"--proxy-mode={mode}"
    return cli.read([mode_flag, *FLAGS, *flags], {}).config


def state_of(
    config: Config, family: IPFamily, batches: Iterable[Sequence[ApiObject]]
) -> DesiredState:
    """The desired state after some batches of objects."""
    state = DesiredState(family, NODE, external_ips=config.allows_external_ips)
    for batch in batches:
        for obj in batch:
            take(state, obj)
        state.checkout()
    return state


def take(state: DesiredState, obj: ApiObject) -> None:
    """Update a state with an object."""
    match obj:
        case Service():
            state.update_service(obj)
        case EndpointSlice():
            state.update_slice(obj)
        case ServiceCIDR():
            state.update_service_cidr(obj)
        case Node() if obj.name == NODE:
            state.update_node(obj)


def sysctl_lines(mode: str, config: Config) -> list[str]:
    """The kernel parameters that a mode sets, apart from those of all modes."""
    if mode != "ipvs":
        return []
    wanted = probing.required_sysctls("6.1.0", strict_arp=config.ipvs_strict_arp)
    return [f"sysctl -w {each.name}={each.value}" for each in wanted]


def settings_of(
    config: Config,
    state: DesiredState,
    mode: str,
    family: IPFamily,
    missing_features: frozenset[str] = frozenset(),
) -> Settings:
    """The settings of a mode for a kernel without some features."""
    common = structs.asdict(NodeSettings(config, family)(state.node))
    if mode == "iptables":
        return IptablesSettings(
            **common,
            hairpin_match="no bpf" not in missing_features,
            affinity_sets="no ipset" not in missing_features,
        )
    if mode == "nftables":
        own = {"service_cidrs": state.service_cidrs, "drop_invalid": True}
        return NftablesSettings(**{**common, **own})
    six = family is IPFamily.IPV6
    return IpvsSettings(
        **common,
        scheduling=scheduling(config.ipvs_scheduler or "rr"),
        facts=KernelFacts(addresses=(NODE_ADDRESSES[six],), subnets=(NODE_SUBNETS[six],)),
    )


def from_scratch(mode: str, family: IPFamily, state: DesiredState, settings: Any) -> Made:
    """The rules that a new process writes into an empty kernel."""
    if mode == "iptables":
        return Made(mode, family, iptables=rendered_iptables.rendered(state.ports, settings))
    if mode == "nftables":
        return Made(mode, family, nftables=rendered_nftables.rendered(state.ports, settings))
    return Made(mode, family, ipvs=rendered_ipvs.rendered(state.ports, settings))


def incrementally(
    mode: str,
    family: IPFamily,
    settings: Any,
    batches: Sequence[Sequence[ApiObject]],
    config: Config,
) -> Made:
    """The rules in a fake kernel after a sync for each batch; the first is from scratch."""
    machine: Any = _MACHINES[mode](settings)
    machine.state = DesiredState(family, NODE, external_ips=config.allows_external_ips)
    for batch in batches:
        for obj in batch:
            take(machine.state, obj)
        machine.sync()
    return _READERS[mode](family, machine)


_MACHINES: dict[str, Callable[[Any], Any]] = {
    "iptables": iptables_machine.Tables,
    "nftables": nftables_machine.Table,
    "ipvs": ipvs_machine.Machine,
}


def _read_iptables(family: IPFamily, machine: Any) -> Made:
    sets = dict.fromkeys(machine.kernel.sets, frozenset[str]())
    return Made("iptables", family, iptables=IptablesRuleset(machine.kernel.saved(), sets))


def _read_nftables(family: IPFamily, machine: Any) -> Made:
    name = "ip" if family is IPFamily.IPV4 else "ip6"
    table = rendered_nftables.observed_table(machine.kernel.observed(), name)
    return Made("nftables", family, nftables=table)


def _read_ipvs(family: IPFamily, machine: Any) -> Made:
    kernel = machine.kernel
    ruleset = rendered_ipvs.ruleset(
        kernel.tables.saved(),
        {name: entries for name, (_, entries) in kernel.sets.items()},
        kernel.servers,
        kernel.real,
        bound=kernel.bound,
    )
    return Made("ipvs", family, ipvs=ruleset)


_READERS: dict[str, Callable[[IPFamily, Any], Made]] = {
    "iptables": _read_iptables,
    "nftables": _read_nftables,
    "ipvs": _read_ipvs,
}
