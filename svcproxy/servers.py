"""The servers of health, metrics and status pages, as the flags want them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog

from svcproxy.config import Config, flags_of
from svcproxy.kube.recorder import EventRecorder
from svcproxy.limits import HTTP_CONNECTIONS
from svcproxy.observe.connections import Limits
from svcproxy.observe.core.exchange import Route
from svcproxy.observe.health import HealthState
from svcproxy.observe.http import BindError, Server
from svcproxy.observe.log import Verbosity
from svcproxy.observe.metrics import Metrics
from svcproxy.observe.pages import Effective, health_server, metrics_server

_RETRY_SECONDS = 5.0  # as kube-proxy waits

log = structlog.get_logger()


class Servers:
    """Up to two servers; a proxy works without them, so ports in use do not keep it from that.

    Args:
        config: says where to listen, and what is in force.
        metrics: what is told of the past.
        health: what is told to probes.
        events: where failures to listen are told, besides the log.
        verbosity: what ``PUT /debug/flags/v`` changes; without it there are no debug pages.
        connections: the most connections of each server.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        health: HealthState,
        events: EventRecorder,
        verbosity: Verbosity | None,
        *,
        connections: int = HTTP_CONNECTIONS,
    ) -> None:
        limits = Limits(connections=connections)
        self._hard_fail = config.bind_address_hard_fail
        self._events = events
        self._servers: list[tuple[Server, str]] = []
        if config.healthz_bind_address is not None:
            server = health_server(config.healthz_bind_address, health, metrics, limits=limits)
            self._servers.append((server, "FailedToStartProxierHealthcheck"))
        if config.metrics_bind_address is not None:
            server = metrics_server(
                config.metrics_bind_address,
                metrics,
                config.proxy_mode,
                effective=Effective(lambda: flags_of(config), lambda: _document(config)),
                debug=_debug_routes(verbosity),
                limits=limits,
            )
            self._servers.append((server, "FailedToStartMetricServer"))

    def start(self) -> None:
        """Serve, as soon as the ports are free.

        Raises:
            BindError: a port is in use, and ``--bind-address-hard-fail`` makes that fatal.
        """
        for server, reason in self._servers:
            if self._hard_fail:
                server.start()
            else:
                server.start_or_retry(partial(self._failed, reason), _RETRY_SECONDS)

    def stop(self) -> None:
        """Stop serving, and trying to."""
        for server, _ in self._servers:
            server.stop()

    def _failed(self, reason: str, error: BindError) -> None:
        log.warning("http.not_serving", error=str(error), retry_in_s=_RETRY_SECONDS)
        self._events.node(reason, str(error), warning=True)


def _document(config: Config) -> Mapping[str, Any]:
    from svcproxy.config.export import as_document  # noqa: PLC0415 - few ask for it

    return as_document(config)


def _debug_routes(verbosity: Verbosity | None) -> Mapping[str, Route]:
    """The pages of ``--profiling``, which are for those who ask for them only."""
    if verbosity is None:
        return {}
    from svcproxy.observe import debug  # noqa: PLC0415 - hardly anybody needs it

    return debug.routes(verbosity.set)
