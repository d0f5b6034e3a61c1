"""The composition root: makes all parts of the daemon and connects them."""

import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import structlog

from svcproxy import __version__, limits, threads
from svcproxy.accounting.start import HooksOf, counts, spec_with_accounting, start_accounting
from svcproxy.admin.journal import Journal
from svcproxy.admin.serve import serve_admin
from svcproxy.admin.status import About
from svcproxy.backends.base import BackendError, BackendUnavailable, ExternalChange
from svcproxy.backends.core.node_settings import NodeSettings
from svcproxy.backends.mode_spec import ActiveMode, AnyBackend, ModeSpec, ReadyBackends
from svcproxy.cleanup.result import report
from svcproxy.cleanup.sweeper import Sweeper
from svcproxy.config import Config, LocalMode
from svcproxy.conntrack.cleaner import StaleFlows
from svcproxy.descriptors import DESCRIPTOR_LIMIT, DescriptorBudget, allocate
from svcproxy.kube.event_recorder import EventRecorder, LoggingRecorder
from svcproxy.kube.source import Source
from svcproxy.model.names import IPFamily, NamespacedName
from svcproxy.modes import mode_spec
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
from svcproxy.sync.after_sync import SyncHook
from svcproxy.sync.core.schedule import Schedule
from svcproxy.sync.fanout import Fanout
from svcproxy.sync.hooks import (
    flow_cleaner,
    health_check_addresses,
    health_checks,
    local_addresses,
)
from svcproxy.sync.loop import FamilyLoop
from svcproxy.sync.report import Reporter
from svcproxy.ui.start import make_pages

_STOP_SECONDS = 1.0

log = structlog.get_logger()


class StartupError(Exception):
    """The daemon cannot start; the message is one line that names the remedy."""


def run(
    config: Config,
    warnings: Sequence[str] = (),
    file: bytes = b"",
    spec: ModeSpec | None = None,
) -> int:
    """Run until SIGTERM, SIGINT or a changed configuration file; the rules stay in the kernel.

    With ``--cleanup`` or ``--init-only``, do that instead and return.

    Args:
        config: the settings.
        warnings: a line for each setting that the operator should reconsider; they are logged.
        file: the content of the configuration file, if there is one.
        spec: the mode to run instead of ``--proxy-mode``, whose settings it uses.

    Returns:
        0 after an orderly stop; 1 if a clean-up was incomplete, or to be restarted with a changed
        configuration file.

    Raises:
        StartupError, SourceError, BindError: it could not start; nothing was programmed.
    """
    collect_rarely()
    share_one_heap()
    verbosity = logging.Verbosity(config.verbosity) if config.profiling else None
    logging.configure(config.logging_format, config.verbosity, adjustable=verbosity)
    logging.catch_uncaught()
    try:
        for warning in warnings:
            log.warning("settings", note=warning)
        if config.cleanup:
            return _clean_up(config)
        return _run(config, spec or mode_spec(config.proxy_mode), file, verbosity)
    finally:
        logging.flush()


def _run(config: Config, spec: ModeSpec, file: bytes, verbosity: logging.Verbosity | None) -> int:
    if config.init_only:
        _prepare(config, spec)
        log.info("prepared", effect="svcproxy now needs only CAP_NET_ADMIN and CAP_NET_RAW")
        return 0
    stop = StopSignal()
    stop.install(signal.SIGTERM, signal.SIGINT)
    node_name = config.hostname_override or socket.gethostname().lower()
    log.info("starting", version=__version__, mode=spec.name, node=node_name)
    with _Running() as running:
        running.add(stop.close)
        _start(config, spec, node_name, running, verbosity)
        changed = _wait(config, file, stop)
        log.info("stopping", rules="left in place")
        threads.spawn(_end_in_time, "stop")
    # As with kube-proxy: some supervisors restart only a process that failed.
    return 1 if changed else 0


def _end_in_time() -> None:
    """End the process even if a hanging thread prevents an orderly stop."""
    time.sleep(limits.THREAD_STOP_SECONDS)
    threads.die(f"did not stop within {limits.THREAD_STOP_SECONDS:g} s")


def _wait(config: Config, file: bytes, stop: StopSignal) -> bool:
    """Wait for ``stop`` or a changed configuration file; return whether the file changed."""
    if config.config is None:
        stop.wait()
        return False
    from svcproxy.config.precedence import from_file  # noqa: PLC0415 - needs the YAML library
    from svcproxy.reload import ConfigFile  # noqa: PLC0415

    path = config.config
    return ConfigFile(Path(path), file, lambda data: from_file({}, data, path)).wait_changed(stop)


class _Running:
    """The started parts; they are stopped in reverse order, also after an exception."""

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
    """Remove the kernel objects of all modes; return the exit status."""
    from svcproxy.cleanup.sweep import sweep_all  # noqa: PLC0415 - needs every backend

    result = sweep_all(config.ipvs_exclude_cidrs)
    report(result, "stop what still uses it and run --cleanup again")
    log.info("cleaned_up", removed=sum(result.removed.values()), failures=len(result.problems))
    return 1 if result.problems else 0


def _prepare(config: Config, spec: ModeSpec) -> ReadyBackends:
    """Probe the backends, then set kernel parameters: probing loads the modules that have them."""
    try:
        ready = spec.make(config)
    except BackendUnavailable as error:
        raise StartupError(str(error)) from error
    if spec.writes_kernel:
        NodeParameters().set_up(config)
    return ready


class _Shared(NamedTuple):
    """What the loops of all families share."""

    config: Config
    spec: ModeSpec
    node_name: str
    metrics: Metrics
    health: HealthState
    events: EventRecorder
    running: _Running
    sweeper: Sweeper | None
    checks: ClientLimits
    listeners: DescriptorBudget
    journal: Journal
    accounting: HooksOf


def _start(
    config: Config,
    spec: ModeSpec,
    node_name: str,
    running: _Running,
    verbosity: logging.Verbosity | None,
) -> None:
    ready = _prepare(config, spec)
    spec = spec_with_accounting(config, spec)
    _report_settings(config)
    metrics = Metrics(spec.name, spec.metrics)
    source, events = _source(config, spec, node_name, metrics)
    running.add(events.stop)
    health = _health_state(config, spec, ready)
    limit = DESCRIPTOR_LIMIT.raise_soft()
    descriptors = allocate(limit)
    ui = make_pages(config, health.healthz, node_name)
    running.add(ui.stop)
    servers = Servers(
        config,
        metrics,
        health,
        events,
        verbosity,
        mode=spec.name,
        connections=descriptors.pages,
        ui=ui.routes,
    )
    running.add(servers.stop)
    servers.start()
    sweeper = _sweeper(config, spec, ready) if spec.writes_kernel else None
    checks = replace(CHECK_LIMITS, connections=descriptors.health_checks)
    listeners = DescriptorBudget(descriptors.listeners, limit)
    accounting = start_accounting(config, spec, ready, metrics.registry, events, running.add)
    shared = _Shared(
        *(config, spec, node_name, metrics, health, events, running, sweeper, checks, listeners),
        Journal(),
        accounting,
    )
    loops = _start_loops(shared, ready)
    about = About(config, node_name, spec.name, ready.iptables_variant or "")
    running.add(serve_admin(about, loops, source, shared.journal, metrics))
    source.start(Fanout([loop.inbox for loop in loops], metrics, health))
    running.add(source.stop)
    events.node("Starting", "")


def _health_state(config: Config, spec: ModeSpec, ready: ReadyBackends) -> HealthState:
    return HealthState(
        sync_period=config.sync_period,
        clock=time.monotonic,
        wall=time.time,
        needs_node=config.manifests is None,
        stalled=threads.stalled,
        families=[backend.family for backend in ready.backends],
        kinds=spec.kinds,
    )


def _start_loops(shared: _Shared, ready: ReadyBackends) -> list[FamilyLoop[Any, Any]]:
    """Start the loop of each family, and what acts on their backends beside them."""
    release_memory = memory_manager(len(ready.backends))
    loops = [_loop(shared, backend, release_memory) for backend in ready.backends]
    for loop in loops:
        loop.start()
        shared.running.add(partial(loop.stop, _STOP_SECONDS / len(loops)))
    if shared.sweeper is not None:
        shared.sweeper.start()
        shared.running.add(partial(shared.sweeper.stop, _STOP_SECONDS / len(loops)))
    _watch_kernel(ready, loops, shared)
    return loops


def _report_settings(config: Config) -> None:
    """Log settings that are valid but may not have the intended effect on this node."""
    ranges = config.nodeport_addresses
    if ranges and not config.nodeport_primary:
        found = (local_addresses(family, config.nodeport_cidrs(family)) for family in IPFamily)
        if not any(found):
            log.warning(
                "node_ports.nowhere",
                ranges=",".join(ranges),
                reason="no address of this node is in the ranges for node ports",
                remedy="add a range that has one (--nodeport-addresses, nodePortAddresses)",
            )
    # Without --cluster-cidr, packets of pods cannot be recognised; as in kube-proxy, the default.
    if config.detect_local_mode is LocalMode.CLUSTER_CIDR and not config.cluster_cidrs:
        log.info(
            "local_traffic.unknown",
            effect="traffic from outside the cluster to cluster IPs is not masqueraded",
            remedy="set the range of pod addresses (--cluster-cidr, clusterCIDR)",
        )


def _sweeper(config: Config, spec: ModeSpec, ready: ReadyBackends) -> Sweeper:
    """Return what removes the objects of other modes and of kube-proxy once this mode serves."""
    families = [backend.family for backend in ready.backends]
    active = ActiveMode(
        spec.name,
        ready.iptables_variant,
        config.ipvs_exclude_cidrs,
        accounting=counts(config),
    )
    return Sweeper(active, families, config.sync_period)


def _watch_kernel(
    ready: ReadyBackends, loops: Sequence[FamilyLoop[Any, Any]], shared: _Shared
) -> None:
    """Request a resync as soon as another program changes svcproxy's kernel objects."""
    if ready.watch is None:
        return

    def on_external_change(change: ExternalChange) -> None:
        say = log.warning if change.certain else log.debug
        say("kernel.changed_by_others", process=change.process, pid=change.pid)
        if change.certain:
            shared.metrics.count_external_change(change.process)
        for loop in loops:
            if loop.family in change.families:
                loop.inbox.request_resync(change)

    try:
        watcher = ready.watch(on_external_change)
    except BackendError as error:
        log.warning("kernel.not_watched", error=str(error), effect="repairs take a sync period")
        return
    watcher.start()
    shared.running.add(watcher.stop)


def _loop(shared: _Shared, backend: AnyBackend, release_memory: SyncHook) -> FamilyLoop[Any, Any]:
    config, family = shared.config, backend.family
    return FamilyLoop(
        backend,
        DesiredState(family, shared.node_name, external_ips=config.allows_external_ips),
        Schedule(
            config.min_sync_period,
            config.sync_period,
            adaptive=config.adapts_sync_pause,
            longest_pause=shared.spec.longest_pause,
        ),
        Reporter(
            family, shared.metrics, shared.health, shared.events, on_repair=shared.journal.add
        ),
        settings_for=NodeSettings(config, family),
        hooks=(*_hooks(shared, family), release_memory),
        kinds=shared.spec.kinds,
    )


def _hooks(shared: _Shared, family: IPFamily) -> Iterator[SyncHook]:
    """Yield what to do after each sync of a mode that programs the kernel, in this order."""
    if shared.spec.writes_kernel:
        yield flow_cleaner(StaleFlows(family), family, shared.metrics)
        servers = _health_check_servers(shared, family)
        shared.running.add(servers.stop)
        yield health_checks(servers, partial(health_check_addresses, shared.config, family))
    yield from shared.accounting(family)
    if shared.sweeper is not None:
        yield shared.sweeper.hook(family)


def _health_check_servers(shared: _Shared, family: IPFamily) -> ServiceHealthServers:
    def failed(service: NamespacedName, port: int, reason: str) -> None:
        # The Event is about a Service; the failure is about this node only.
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


def _source(
    config: Config, spec: ModeSpec, node_name: str, metrics: Metrics
) -> tuple[Source, EventRecorder]:
    """Return the source of objects and the recorder of Events, importing only the used modules."""
    if config.manifests is not None:
        from svcproxy.kube.manifests import ManifestSource  # noqa: PLC0415

        folder = Path(config.manifests)
        return ManifestSource(folder, node_name, annotations=spec.annotations), LoggingRecorder()
    from svcproxy.kube.api import KubernetesSource  # noqa: PLC0415
    from svcproxy.kube.credentials import ClientSettings  # noqa: PLC0415
    from svcproxy.kube.events import KubernetesEvents  # noqa: PLC0415

    settings = ClientSettings(
        kubeconfig=config.kubeconfig or "",
        master=config.master or "",
        on_request=metrics.requested,
    )
    source = KubernetesSource(settings, node_name, spec.kinds, annotations=spec.annotations)
    return source, KubernetesEvents(settings, node_name)
