"""Starts accounting as the flags ask for it."""

from collections.abc import Callable, Iterable

import msgspec
from prometheus_client import CollectorRegistry

from svcproxy.accounting.core.chosen import ANNOTATION
from svcproxy.backends.core.node_settings import NodeSettings
from svcproxy.backends.mode_spec import ModeSpec, ReadyBackends
from svcproxy.config import AccountingLevel, Config, ProxyMode
from svcproxy.kube.event_recorder import EventRecorder
from svcproxy.model.names import IPFamily, NamespacedName
from svcproxy.sync.after_sync import SyncHook

HooksOf = Callable[[IPFamily], Iterable[SyncHook]]
"""Returns the hooks of a family."""


def counts(config: Config) -> bool:
    """Whether anything is counted in the kernel."""
    return config.accounting is not AccountingLevel.NONE


def spec_with_accounting(config: Config, spec: ModeSpec) -> ModeSpec:
    """Return the mode; if accounting is on, Services keep the annotation for metrics."""
    if not counts(config):
        return spec
    return msgspec.structs.replace(spec, annotations=spec.annotations | {ANNOTATION})


def start_accounting(  # noqa: PLR0917 - called once
    config: Config,
    spec: ModeSpec,
    ready: ReadyBackends,
    registry: CollectorRegistry,
    events: EventRecorder,
    on_stop: Callable[[Callable[[], None]], None],
) -> HooksOf:
    """Start the thread that keeps the accounting tables, and add its metrics.

    If accounting is off, nothing is imported or started; the clean-up removes the tables.

    Args:
        config: the settings.
        spec: the mode.
        ready: its backends.
        registry: gets the metrics.
        events: gets the Events.
        on_stop: gets the function that ends the thread.

    Returns:
        The hooks of each family that tell the thread what is in force.
    """
    if not counts(config) or not spec.writes_kernel:
        return lambda _family: ()
    from svcproxy.accounting.core.table import Accounting  # noqa: PLC0415
    from svcproxy.accounting.keeper import Keeper  # noqa: PLC0415 - off by default
    from svcproxy.accounting.service_metrics import ServiceCollector  # noqa: PLC0415

    connections = config.accounting is AccountingLevel.CONNECTIONS
    families = [backend.family for backend in ready.backends]
    keeper = Keeper(
        Accounting(
            connections=connections,
            outside=config.proxy_mode is ProxyMode.IPTABLES,
            log_group=config.refusal_log_group,
        ),
        {family: NodeSettings(config, family) for family in families},
        config.sync_period,
        _recorder(events),
        named=config.service_metrics,
    )
    registry.register(
        ServiceCollector(lambda: keeper.chosen, lambda: keeper.left_out, connections=connections)
    )
    keeper.start()
    on_stop(keeper.stop)
    return lambda family: (keeper.hook(family),)


def _recorder(events: EventRecorder) -> Callable[[NamespacedName], None]:
    def refused(service: NamespacedName) -> None:
        # Equal notes count as one Event, whichever nodes record them.
        events.service(
            service,
            "ConnectionsRefused",
            "at least one node refuses connections to this Service, because no endpoint is ready;"
            " svcproxy top shows how many, and who tries",
        )

    return refused
