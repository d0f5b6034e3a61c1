"""The composition root: the only place that knows every part."""

import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, Self

import structlog

from svcproxy import __version__
from svcproxy.backends.base import BackendUnavailable
from svcproxy.backends.iptables.backend import IptablesBackend
from svcproxy.backends.iptables.commands import Iptables, Variant
from svcproxy.backends.iptables.settings import IptablesSettings
from svcproxy.backends.iptables.variant import detect
from svcproxy.backends.settings import LocalTraffic
from svcproxy.config import Config, IptablesVariant, LocalMode
from svcproxy.conntrack.cleaner import StaleFlows
from svcproxy.kube.events import EventRecorder, KubernetesEvents, LogOnly
from svcproxy.kube.source import Source
from svcproxy.model.names import IPFamily, NamespacedName
from svcproxy.model.objects import Node
from svcproxy.observe import log as logging
from svcproxy.observe.health import HealthState
from svcproxy.observe.http import HealthServer, MetricsServer
from svcproxy.observe.metrics import Metrics
from svcproxy.observe.service_health import ServiceHealthServers
from svcproxy.state.desired import DesiredState
from svcproxy.sync.fanout import Fanout
from svcproxy.sync.followers import flow_cleaner, health_checks, local_addresses
from svcproxy.sync.loop import FamilyLoop
from svcproxy.sync.report import Reporter
from svcproxy.sync.schedule import Schedule

_STOP_SECONDS = 1.0

log = structlog.get_logger()


class StartupError(Exception):
    """The daemon cannot start; the message is one line that names the remedy."""


def run(config: Config) -> int:
    """Run until SIGTERM or SIGINT, and leave the kernel's rules in place.

    Returns:
        0 after an orderly stop.

    Raises:
        StartupError, SourceError, BindError: it could not start; nothing was programmed.
    """
    logging.configure(config.logging_format, config.verbosity)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    node_name = config.hostname_override or socket.gethostname().lower()
    log.info("starting", version=__version__, mode=config.proxy_mode, node=node_name)
    with _Running() as running:
        _start(config, node_name, running)
        stop.wait()
        log.info("stopping", rules="left in place")
    return 0


class _Running:
    """What has been started, to be stopped in reverse order whatever happens."""

    def __init__(self) -> None:
        self._stops: list[Callable[[], None]] = []

    def add(self, stop: Callable[[], None]) -> None:
        self._stops.append(stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for stop in reversed(self._stops):
            stop()


def _start(config: Config, node_name: str, running: _Running) -> None:
    backends = _iptables_backends(config)
    source, events = _source(config, node_name)
    metrics = Metrics()
    health = HealthState(
        sync_period=config.iptables_sync_period,
        clock=time.monotonic,
        wall=time.time,
        needs_node=config.manifests is None,
    )
    _start_servers(config, metrics, health, running)
    running.add(events.stop)
    shared = _Shared(config, node_name, metrics, health, events, running)
    loops = [_loop(shared, backend) for backend in backends]
    for loop in loops:
        loop.start()
        running.add(partial(loop.stop, _STOP_SECONDS / len(loops)))
    source.start(Fanout([loop.inbox for loop in loops], metrics, health))
    running.add(source.stop)
    events.node("Starting", "")


def _start_servers(
    config: Config, metrics: Metrics, health: HealthState, running: _Running
) -> None:
    if config.metrics_bind_address is not None:
        metrics_server = MetricsServer(config.metrics_bind_address, metrics, config.proxy_mode)
        metrics_server.start()
        running.add(metrics_server.stop)
    if config.healthz_bind_address is not None:
        health_server = HealthServer(config.healthz_bind_address, health, metrics)
        health_server.start()
        running.add(health_server.stop)


class _Shared(NamedTuple):
    """What the loops of all families have in common."""

    config: Config
    node_name: str
    metrics: Metrics
    health: HealthState
    events: EventRecorder
    running: _Running


def _loop(shared: _Shared, backend: IptablesBackend) -> FamilyLoop[Any, Any]:
    config, family = shared.config, backend.family
    servers = _health_check_servers(shared, family)
    shared.running.add(servers.stop)
    return FamilyLoop(
        backend,
        DesiredState(family, shared.node_name),
        Schedule(config.iptables_min_sync_period, config.iptables_sync_period),
        Reporter(family, shared.metrics, shared.health, shared.events),
        followers=(
            flow_cleaner(StaleFlows(family), family, shared.metrics),
            health_checks(servers, partial(_health_check_addresses, config, family)),
        ),
    )


def _health_check_servers(shared: _Shared, family: IPFamily) -> ServiceHealthServers:
    def failed(service: NamespacedName, port: int, reason: str) -> None:
        # It concerns this node only, so the note has to name it.
        note = f"node {shared.node_name} failed to start healthcheck on port {port}: {reason}"
        shared.events.service(service, "FailedToStartServiceHealthcheck", note, action="Listen")

    return ServiceHealthServers(family, (), lambda: shared.health.healthy, failed)


def _health_check_addresses(config: Config, family: IPFamily, node: Node | None) -> tuple[str, ...]:
    """Where health-check node ports listen: where node ports are served; empty for everywhere."""
    if config.nodeport_primary:
        return tuple(a for a in (node.addresses if node else ()) if _is(a, family))[:1]
    ranges = config.nodeport_cidrs(family)
    return local_addresses(family, ranges) if ranges else ()


def _source(config: Config, node_name: str) -> tuple[Source, EventRecorder]:
    """The source that the flags ask for, and where Events go; loads only what is used."""
    if config.manifests is not None:
        from svcproxy.kube.manifests import ManifestSource  # noqa: PLC0415

        return ManifestSource(Path(config.manifests), node_name), LogOnly()
    from svcproxy.kube.api import KubernetesSource  # noqa: PLC0415
    from svcproxy.kube.credentials import ConnectionSettings  # noqa: PLC0415

    settings = ConnectionSettings(kubeconfig=config.kubeconfig or "", master=config.master or "")
    return KubernetesSource(settings, node_name), KubernetesEvents(settings, node_name)


def _iptables_backends(config: Config) -> list[IptablesBackend]:
    """The backends of the families that this node can serve, at least one."""
    try:
        if config.iptables_variant is IptablesVariant.AUTO:
            variant = detect()
        else:
            variant = Variant(config.iptables_variant.value)
    except BackendUnavailable as error:
        raise StartupError(str(error)) from error
    log.info("iptables.variant", variant=variant, chosen=config.iptables_variant)
    backends: list[IptablesBackend] = []
    reasons: list[BackendUnavailable] = []
    for family in IPFamily:
        try:
            programs = Iptables(variant, family)
            backend = IptablesBackend(programs, _SettingsOf(config, family))
            backend.probe()
        except BackendUnavailable as error:
            reasons.append(error)
        else:
            backends.append(backend)
    if not backends:
        raise StartupError(str(reasons[0])) from reasons[0]
    for reason in reasons:
        log.warning("family.unavailable", reason=str(reason), effect="single-stack operation")
    return backends


class _SettingsOf:
    """What the rules of a family depend on, as flags and the Node object have it now.

    A Node object that is deleted, to be registered anew perhaps, takes neither addresses nor pod
    ranges along: what was last known of them stays.
    """

    def __init__(self, config: Config, family: IPFamily) -> None:
        self._config = config
        self._family = family
        self._node: Node | None = None

    def __call__(self, node: Node | None) -> IptablesSettings:
        self._node = node or self._node
        return _settings(self._config, self._family, self._node)


def _settings(config: Config, family: IPFamily, node: Node | None) -> IptablesSettings:
    address = next((a for a in (node.addresses if node else ()) if _is(a, family)), "")
    ranges = _node_port_ranges(config, family, node, address)
    return IptablesSettings(
        family=family,
        masquerade_bit=config.masquerade_bit,
        masquerade_all=config.masquerade_all,
        local_traffic=_local_traffic(config, family, node),
        node_port_ranges=ranges,
        node_address=address,
        localhost_node_ports=_serves_localhost(config, family),
    )


def _node_port_ranges(
    config: Config, family: IPFamily, node: Node | None, address: str
) -> tuple[str, ...]:
    """The ranges of addresses that serve node ports; empty means all.

    With ``primary``, a node of one family serves the other on all addresses, as with kube-proxy;
    one that is not known yet serves only itself.
    """
    if config.nodeport_primary:
        if node is None:
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
            return LocalTraffic(source=next((c for c in cidrs if _is(c, family)), ""))
        case LocalMode.BRIDGE_INTERFACE:
            return LocalTraffic(interface=config.bridge_interface)
        case LocalMode.INTERFACE_NAME_PREFIX:
            return LocalTraffic(interface=f"{config.interface_name_prefix}+")


def _is(address: str, family: IPFamily) -> bool:
    return (":" in address) is (family is IPFamily.IPV6)
