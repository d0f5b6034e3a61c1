"""The composition root: the only place that knows every part."""

import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import structlog

from svcproxy import __version__, limits, threads
from svcproxy.backends.base import BackendError, BackendUnavailable, ExternalChange
from svcproxy.cleanup.active_mode import ActiveMode, report
from svcproxy.cleanup.sweeper import Sweeper
from svcproxy.config import Config, LocalMode
from svcproxy.conntrack.cleaner import StaleFlows
from svcproxy.descriptors import DESCRIPTOR_LIMIT, DescriptorBudget, allocate
from svcproxy.kube.recorder import EventRecorder, LogOnly
from svcproxy.kube.source import Source
from svcproxy.model.names import IPFamily, NamespacedName
from svcproxy.model.objects import Node
from svcproxy.modes import (
    AnyBackend,
    Mode,
    SettingsOf,
    followed_kinds,
    longest_pause,
    make_mode,
    node_address,
    service_annotations,
)
from svcproxy.node.setup import NodeParameters
from svcproxy.observe import log as logging
from svcproxy.observe.client_connections import ClientLimits
from svcproxy.observe.health import HealthState
from svcproxy.observe.metrics import Metrics
from svcproxy.observe.service_health import CHECK_LIMITS, ServiceHealthServers
from svcproxy.runtime_tuning import collect_rarely, memory_manager, share_one_heap
from svcproxy.servers import Servers
from svcproxy.state.desired import DesiredState
from svcproxy.stop_signal import StopSignal
from svcproxy.sync.core.schedule import Schedule
from svcproxy.sync.fanout import Fanout
from svcproxy.sync.hooks import flow_cleaner, health_checks, local_addresses
from svcproxy.sync.loop import FamilyLoop, SyncHook
from svcproxy.sync.report import Reporter

_STOP_SECONDS = 1.0

log = structlog.get_logger()


class StartupError(Exception):
    """The daemon cannot start; the message is one line that names the remedy."""


def run(config: Config, warnings: Sequence[str] = (), file: bytes = b"") -> int:
    """Run until SIGTERM, SIGINT or a new configuration file; leave the kernel's rules in place.

    With ``--cleanup`` or ``--init-only``, do that instead and return.

    Args:
        config: what to do.
        warnings: what the operator should know of the settings, a line each; it is logged.
        file: what the configuration file said, if there is one.

    Returns:
        0 after an orderly stop; 1 if a clean-up left something, or when it has to be started
        again for a new configuration file.

    Raises:
        StartupError, SourceError, BindError: it could not start; nothing was programmed.
    """
    collect_rarely()
    share_one_heap()
    verbosity = logging.Verbosity(config.verbosity) if config.profiling else None
    logging.configure(config.logging_format, config.verbosity, adjustable=verbosity)
    logging.catch_uncaught()
    try:
        return _run(config, warnings, file, verbosity)
    finally:
        logging.flush()


def _run(
    config: Config, warnings: Sequence[str], file: bytes, verbosity: logging.Verbosity | None
) -> int:
    for warning in warnings:
        log.warning("settings", note=warning)
    if config.cleanup:
        return _clean_up(config)
    if config.init_only:
        _prepare(config)
        log.info("prepared", effect="svcproxy now runs with CAP_NET_ADMIN and CAP_NET_RAW alone")
        return 0
    stop = StopSignal()
    stop.install(signal.SIGTERM, signal.SIGINT)
    node_name = config.hostname_override or socket.gethostname().lower()
    log.info("starting", version=__version__, mode=config.proxy_mode, node=node_name)
    with _Running() as running:
        running.add(stop.close)
        _start(config, node_name, running, verbosity)
        start_anew = _wait(config, file, stop)
        log.info("stopping", rules="left in place")
        threads.spawn(_end_in_time, "stop")
    # As with kube-proxy, that is for a supervisor that starts again only what has failed
    return 1 if start_anew else 0


def _end_in_time() -> None:
    """End the process if a thread that hangs keeps it from ending."""
    time.sleep(limits.THREAD_STOP_SECONDS)
    threads.die(f"did not stop within {limits.THREAD_STOP_SECONDS:g} s")


def _wait(config: Config, file: bytes, stop: StopSignal) -> bool:
    """Wait for ``stop``, or for another configuration file: whether it is that."""
    if config.config is None:
        stop.wait()
        return False
    from svcproxy.config.precedence import from_file  # noqa: PLC0415 - needs the YAML library
    from svcproxy.reload import ConfigFile  # noqa: PLC0415

    path = config.config
    return ConfigFile(Path(path), file, lambda data: from_file({}, data, path)).wait_changed(stop)


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


def _clean_up(config: Config) -> int:
    """Remove the rules of all modes; return the exit status."""
    from svcproxy.cleanup.sweep import sweep_all  # noqa: PLC0415 - needs every backend

    swept = sweep_all(config.ipvs_exclude_cidrs)
    report(swept, "end what still uses it and run --cleanup again")
    log.info("cleaned_up", removed=sum(swept.removed.values()), failures=len(swept.problems))
    return 1 if swept.problems else 0


def _prepare(config: Config) -> Mode:
    """Make the node ready for the mode; the backends load the modules whose parameters are set."""
    try:
        mode = make_mode(config)
    except BackendUnavailable as error:
        raise StartupError(str(error)) from error
    NodeParameters().set_up(config)
    return mode


class _Shared(NamedTuple):
    """What the loops of all families have in common."""

    config: Config
    node_name: str
    metrics: Metrics
    health: HealthState
    events: EventRecorder
    running: _Running
    sweeper: Sweeper
    checks: ClientLimits
    listeners: DescriptorBudget


def _start(
    config: Config, node_name: str, running: _Running, verbosity: logging.Verbosity | None
) -> None:
    mode = _prepare(config)
    _doubt_node_ports(config)
    _doubt_local_traffic(config)
    metrics = Metrics(config.proxy_mode)
    source, events = _source(config, node_name, metrics)
    running.add(events.stop)
    health = HealthState(
        sync_period=config.sync_period,
        clock=time.monotonic,
        wall=time.time,
        needs_node=config.manifests is None,
        stalled=threads.stalled,
        families=[backend.family for backend in mode.backends],
        kinds=followed_kinds(config.proxy_mode),
    )
    limit = DESCRIPTOR_LIMIT.raise_soft()
    descriptors = allocate(limit)
    servers = Servers(config, metrics, health, events, verbosity, connections=descriptors.pages)
    running.add(servers.stop)
    servers.start()
    sweeper = _sweeper(config, mode)
    checks = replace(CHECK_LIMITS, connections=descriptors.health_checks)
    listeners = DescriptorBudget(descriptors.listeners, limit)
    shared = _Shared(
        config, node_name, metrics, health, events, running, sweeper, checks, listeners
    )
    release_memory = memory_manager(len(mode.backends))
    loops = [_loop(shared, backend, release_memory) for backend in mode.backends]
    for loop in loops:
        loop.start()
        running.add(partial(loop.stop, _STOP_SECONDS / len(loops)))
    sweeper.start()
    running.add(partial(sweeper.stop, _STOP_SECONDS / len(loops)))
    _watch_kernel(mode, loops, shared)
    source.start(Fanout([loop.inbox for loop in loops], metrics, health))
    running.add(source.stop)
    events.node("Starting", "")


def _doubt_node_ports(config: Config) -> None:
    """Tell if node ports are limited to ranges that this node is not in; it may yet be."""
    ranges = config.nodeport_addresses
    if ranges and not config.nodeport_primary:
        found = (local_addresses(family, config.nodeport_cidrs(family)) for family in IPFamily)
        if not any(found):
            log.warning(
                "node_ports.nowhere",
                ranges=",".join(ranges),
                reason="no address of this node is in the ranges for node ports",
                remedy="give a range with one (--nodeport-addresses, nodePortAddresses)",
            )


def _doubt_local_traffic(config: Config) -> None:
    """Tell if pods cannot be told from others; without any flags that is so, as in kube-proxy."""
    if config.detect_local_mode is LocalMode.CLUSTER_CIDR and not config.cluster_cidrs:
        log.info(
            "local_traffic.unknown",
            effect="traffic from outside the cluster to cluster IPs is not masqueraded",
            remedy="give the range of the pods' addresses (--cluster-cidr, clusterCIDR)",
        )


def _sweeper(config: Config, mode: Mode) -> Sweeper:
    """What removes the rules of other modes, and of kube-proxy, once this mode serves."""
    families = [backend.family for backend in mode.backends]
    present = ActiveMode(config.proxy_mode, mode.variant, config.ipvs_exclude_cidrs)
    return Sweeper(present, families, config.sync_period)


def _watch_kernel(mode: Mode, loops: Sequence[FamilyLoop[Any, Any]], shared: _Shared) -> None:
    """Have the kernel compared as soon as somebody else changes what is ours."""
    if mode.watch is None:
        return

    def on_external_change(change: ExternalChange) -> None:
        say = log.warning if change.certain else log.debug
        say("kernel.changed_by_others", process=change.process, pid=change.pid)
        if change.certain:
            shared.metrics.count_external_change(change.process)
        for loop in loops:
            if loop.family in change.families:
                loop.inbox.doubt(change)

    try:
        watcher = mode.watch(on_external_change)
    except BackendError as error:
        log.warning("kernel.not_watched", error=str(error), effect="repairs take a sync period")
        return
    watcher.start()
    shared.running.add(watcher.stop)


def _loop(shared: _Shared, backend: AnyBackend, release_memory: SyncHook) -> FamilyLoop[Any, Any]:
    config, family = shared.config, backend.family
    servers = _health_check_servers(shared, family)
    shared.running.add(servers.stop)
    return FamilyLoop(
        backend,
        DesiredState(family, shared.node_name, external_ips=config.allows_external_ips),
        Schedule(
            config.min_sync_period,
            config.sync_period,
            adaptive=config.adapts_sync_pause,
            longest_pause=longest_pause(config.proxy_mode),
        ),
        Reporter(family, shared.metrics, shared.health, shared.events),
        settings_for=SettingsOf(config, family),
        followers=(
            flow_cleaner(StaleFlows(family), family, shared.metrics),
            health_checks(servers, partial(_health_check_addresses, config, family)),
            shared.sweeper.follower(family),
            release_memory,
        ),
        kinds=followed_kinds(config.proxy_mode),
    )


def _health_check_servers(shared: _Shared, family: IPFamily) -> ServiceHealthServers:
    def failed(service: NamespacedName, port: int, reason: str) -> None:
        # It concerns this node only, so the note has to name it.
        note = f"node {shared.node_name} failed to start healthcheck on port {port}: {reason}"
        shared.events.service(service, "FailedToStartServiceHealthcheck", note, action="Listen")

    return ServiceHealthServers(
        family,
        (),
        lambda: shared.health.healthy,
        failed,
        limits=shared.checks,
        budget=shared.listeners,
    )


def _health_check_addresses(config: Config, family: IPFamily, node: Node | None) -> tuple[str, ...]:
    """Where health-check node ports listen: where node ports are served; empty for everywhere."""
    if config.nodeport_primary:
        address = node_address(config, family, node)
        return (address,) if address else ()
    ranges = config.nodeport_cidrs(family)
    if any(cidr.endswith("/0") for cidr in ranges):
        return ()
    return local_addresses(family, ranges) if ranges else ()


def _source(config: Config, node_name: str, metrics: Metrics) -> tuple[Source, EventRecorder]:
    """The source that the flags ask for, and where Events go; loads only what is used."""
    annotations = service_annotations(config.proxy_mode)
    if config.manifests is not None:
        from svcproxy.kube.manifests import ManifestSource  # noqa: PLC0415

        folder = Path(config.manifests)
        return ManifestSource(folder, node_name, annotations=annotations), LogOnly()
    from svcproxy.kube.api import KubernetesSource  # noqa: PLC0415
    from svcproxy.kube.credentials import ClientSettings  # noqa: PLC0415
    from svcproxy.kube.events import KubernetesEvents  # noqa: PLC0415

    settings = ClientSettings(
        kubeconfig=config.kubeconfig or "",
        master=config.master or "",
        on_request=metrics.requested,
    )
    kinds = followed_kinds(config.proxy_mode)
    source = KubernetesSource(settings, node_name, kinds, annotations=annotations)
    return source, KubernetesEvents(settings, node_name)
