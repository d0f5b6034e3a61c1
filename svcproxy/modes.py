"""Which backend carries out ``--proxy-mode``, and with what settings.

The only place that maps modes to backends; each backend's modules are loaded only if it is used.
"""

import math
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, Protocol, TypeVar

import structlog

from svcproxy.backends.base import Backend, BackendUnavailable, ExternalChange
from svcproxy.backends.settings import LocalTraffic, Settings
from svcproxy.config import Config, IptablesVariant, LocalMode, ProxyMode
from svcproxy.model.names import REQUIRED_KINDS, IPFamily, Kind
from svcproxy.model.objects import Node

AnyBackend = Backend[Any, Any]
OnExternalChange = Callable[[ExternalChange], None]
SomeBackend = TypeVar("SomeBackend", bound=AnyBackend)

log = structlog.get_logger()


class Watcher(Protocol):
    """Listens for changes that others make to the kernel."""

    def start(self) -> None:
        """Begin to listen."""

    def stop(self) -> None:
        """Listen no more."""


class Mode(NamedTuple):
    """The backends of a mode, and how to learn of foreign changes to what they program.

    ``watch`` makes a watcher that calls its argument, from a thread of its own, with each change
    that somebody else has made; ``None`` where only the periodic comparison notices. ``variant`` is the variant of iptables that holds rules of the mode, if any does.
    """

    backends: Sequence[AnyBackend]
    watch: Callable[[OnExternalChange], Watcher] | None = None
    variant: str | None = None


def followed_kinds(mode: ProxyMode) -> frozenset[Kind]:
    """The kinds of objects that a mode follows.

    ServiceCIDRs tell which cluster IPs nobody has. kube-proxy drops what is sent there in
    nftables mode only.
    """
    if mode is ProxyMode.NFTABLES:
        return REQUIRED_KINDS | {Kind.SERVICE_CIDR}
    return REQUIRED_KINDS


def service_annotations(mode: ProxyMode) -> frozenset[str]:
    """The keys of the Service annotations that the backend of a mode interprets."""
    if mode is ProxyMode.IPVS:
        from svcproxy.backends.ipvs.scheduling import ANNOTATIONS  # noqa: PLC0415

        return ANNOTATIONS
    return frozenset()


def longest_pause(mode: ProxyMode) -> float:
    """The seconds after which a sync may follow a long one, in a storm of changes.

    In nftables mode each change has its price, and waiting makes none cheaper: it makes batches
    larger, until half of the cluster and the memory for it are in one. In the other modes a sync
    has a price of its own, and iptables a lock that others wait for.
    """
    return 0.05 if mode is ProxyMode.NFTABLES else math.inf


def make_mode(config: Config) -> Mode:
    """The backends of ``--proxy-mode`` for the families that this node can serve, probed.

    Raises:
        BackendUnavailable: no family can be served; the message names the remedy.
    """
    match config.proxy_mode:
        case ProxyMode.NFTABLES:
            return _nftables(config)
        case ProxyMode.IPVS:
            return _ipvs(config)
        case ProxyMode.IPTABLES:
            return _iptables(config)


def _probed(make: Callable[[IPFamily], SomeBackend]) -> list[SomeBackend]:
    backends: list[SomeBackend] = []
    reasons: list[BackendUnavailable] = []
    for family in IPFamily:
        try:
            backend = make(family)
            backend.probe()
        except BackendUnavailable as error:
            reasons.append(error)
        else:
            backends.append(backend)
    if not backends:
        raise reasons[0]
    for reason in reasons:
        log.warning("family.unavailable", reason=str(reason), effect="single-stack operation")
    return backends


def _variant(config: Config) -> Any:
    from svcproxy.backends.xtables.commands import Variant  # noqa: PLC0415
    from svcproxy.backends.xtables.variant import detect  # noqa: PLC0415

    auto = config.iptables_variant is IptablesVariant.AUTO
    variant = detect() if auto else Variant(config.iptables_variant.value)
    log.info("iptables.variant", variant=variant, chosen=config.iptables_variant)
    return variant


def _ipvs(config: Config) -> Mode:
    from svcproxy.backends.ipvs.address_watcher import AddressWatcher  # noqa: PLC0415
    from svcproxy.backends.ipvs.backend import IpvsBackend, IpvsOptions  # noqa: PLC0415
    from svcproxy.backends.ipvs.messages import Timeouts  # noqa: PLC0415
    from svcproxy.backends.xtables.commands import Iptables  # noqa: PLC0415

    variant = _variant(config)

    def make(family: IPFamily) -> IpvsBackend:
        options = IpvsOptions(
            scheduler=config.ipvs_scheduler or "rr",
            excluded=tuple(cidr for cidr in config.ipvs_exclude_cidrs if is_of(cidr, family)),
            strict_arp=config.ipvs_strict_arp,
            timeouts=Timeouts(
                int(config.ipvs_tcp_timeout),
                int(config.ipvs_tcp_fin_timeout),
                int(config.ipvs_udp_timeout),
            ),
            graceful_limit=config.ipvs_graceful_termination_limit,
            period=config.ipvs_sync_period,
        )
        return IpvsBackend(Iptables(variant, family), SettingsOf(config, family)(None), options)

    def watch(on_external_change: OnExternalChange) -> Watcher:
        change = ExternalChange("address change", 0, certain=False, affects_inputs=True)
        return AddressWatcher(lambda: on_external_change(change))

    return Mode(_probed(make), watch, variant)


def _iptables(config: Config) -> Mode:
    from svcproxy.backends.iptables.backend import IptablesBackend  # noqa: PLC0415
    from svcproxy.backends.xtables.commands import Iptables, Variant  # noqa: PLC0415

    variant = _variant(config)
    backends = _probed(
        lambda family: IptablesBackend(Iptables(variant, family), SettingsOf(config, family)(None))
    )
    if variant is Variant.LEGACY:
        return Mode(backends, variant=variant)

    from svcproxy.backends.iptables.core.drift import classify_change  # noqa: PLC0415
    from svcproxy.backends.nftables.watcher import NftablesWatcher  # noqa: PLC0415

    def watch(on_external_change: OnExternalChange) -> Watcher:
        watcher = NftablesWatcher(
            on_external_change,
            families=[backend.family for backend in backends],
            judge=classify_change,
        )
        for backend in backends:
            backend.track_processes(watcher.own)
        return watcher

    return Mode(backends, watch, variant)


def _nftables(config: Config) -> Mode:
    from svcproxy.backends.nftables.backend import NftablesBackend  # noqa: PLC0415
    from svcproxy.backends.nftables.watcher import NftablesWatcher  # noqa: PLC0415

    backends = _probed(lambda family: NftablesBackend(family, SettingsOf(config, family)(None)))

    def watch(on_external_change: OnExternalChange) -> Watcher:
        return NftablesWatcher(
            on_external_change,
            own_ports=[backend.port_id for backend in backends],
            families=[backend.family for backend in backends],
        )

    return Mode(backends, watch)


class SettingsOf:
    """What the rules of a family depend on, as flags and the Node object have it now.

    A Node object that is deleted, to be registered anew perhaps, takes neither addresses nor pod
    ranges along: what was last known of them stays.
    """

    def __init__(self, config: Config, family: IPFamily) -> None:
        self._config = config
        self._family = family
        self._node: Node | None = None

    def __call__(self, node: Node | None) -> Settings:
        """The settings for the present Node object, ``None`` if there is none."""
        self._node = node or self._node
        return _settings(self._config, self._family, self._node)


def _settings(config: Config, family: IPFamily, node: Node | None) -> Settings:
    address = node_address(config, family, node)
    ranges = _node_port_ranges(config, family, node, address)
    return Settings(
        family=family,
        masquerade_bit=config.masquerade_bit,
        masquerade_all=config.masquerade_all,
        local_traffic=_local_traffic(config, family, node),
        node_port_ranges=ranges,
        node_address=address,
        localhost_node_ports=_serves_localhost(config, family),
    )


def node_address(config: Config, family: IPFamily, node: Node | None) -> str:
    """The primary address of a family; empty when it is unknown or there is none.

    ``--bind-address`` goes before the Node object for its family, unless it is unspecified (source:
    detectNodeIPs in cmd/kube-proxy/app/server.go of 1.36).
    """
    if is_of(config.bind_address, family) and not ip_address(config.bind_address).is_unspecified:
        return config.bind_address
    return next((a for a in (node.addresses if node else ()) if is_of(a, family)), "")


def _node_port_ranges(
    config: Config, family: IPFamily, node: Node | None, address: str
) -> tuple[str, ...]:
    """The ranges of addresses that serve node ports; empty means all.

    With ``primary``, a node of one family serves the other on all addresses, as with kube-proxy;
    one that is not known yet serves only itself.
    """
    if config.nodeport_primary:
        if node is None and not address:
            return ("127.0.0.1/32",) if family is IPFamily.IPV4 else ("::1/128",)
        return (f"{address}/{family.bits}",) if address else ()
    ranges = config.nodeport_cidrs(family)
    return () if any(cidr.endswith("/0") for cidr in ranges) else ranges


def _serves_localhost(config: Config, family: IPFamily) -> bool:
    """Whether node ports answer on 127.0.0.0/8: only IPv4 can, if flags and ranges let it."""
    if family is IPFamily.IPV6 or not config.iptables_localhost_nodeports:
        return False
    if config.nodeport_primary:
        return False
    loopback = ip_network("127.0.0.0/8")
    ranges = config.nodeport_cidrs(family)
    return not ranges or any(ip_network(cidr).overlaps(loopback) for cidr in ranges)


def _local_traffic(config: Config, family: IPFamily, node: Node | None) -> LocalTraffic:
    """How pods' packets are told, in the way that ``--detect-local-mode`` asks for."""
    match config.detect_local_mode:
        case LocalMode.CLUSTER_CIDR:
            return LocalTraffic(source=config.cluster_cidr(family) or "")
        case LocalMode.NODE_CIDR:
            cidrs = node.pod_cidrs if node else ()
            return LocalTraffic(source=next((c for c in cidrs if is_of(c, family)), ""))
        case LocalMode.BRIDGE_INTERFACE:
            return LocalTraffic(interface=config.bridge_interface)
        case LocalMode.INTERFACE_NAME_PREFIX:
            return LocalTraffic(interface=f"{config.interface_name_prefix}+")


def is_of(address: str, family: IPFamily) -> bool:
    """Whether an address or CIDR belongs to a family."""
    return (":" in address) is (family is IPFamily.IPV6)
