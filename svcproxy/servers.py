"""Creates the health and metrics servers that the flags ask for."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog

from svcproxy.config import Config, flags_of
from svcproxy.kube.event_recorder import EventRecorder
from svcproxy.limits import HTTP_CONNECTIONS
from svcproxy.observe.client_connections import ClientLimits
from svcproxy.observe.core.routes import Route
from svcproxy.observe.health import HealthState
from svcproxy.observe.http_server import BindError, HttpServer
from svcproxy.observe.log import Verbosity
from svcproxy.observe.metrics import Metrics
from svcproxy.observe.pages import Effective, health_server, metrics_server

_RETRY_SECONDS = 5.0  # as kube-proxy

log = structlog.get_logger()


class Servers:
    """Up to two HTTP servers: health and metrics.

    The proxy works without them, so by default a port in use does not prevent its start.

    Args:
        config: the addresses to listen on, and the configuration to show.
        metrics: the source of /metrics.
        health: the source of the probes' answers.
        events: where failures to listen are reported, besides the log.
        verbosity: what ``PUT /debug/flags/v`` changes; without it there are no debug pages.
        mode: the answer of /proxyMode.
        connections: the limit of connections of each server.
        ui: the routes of the pages for people.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        health: HealthState,
        events: EventRecorder,
        verbosity: Verbosity | None,
        *,
        mode: str,
        connections: int = HTTP_CONNECTIONS,
        ui: Mapping[str, Route] | None = None,
    ) -> None:
        limits = ClientLimits(connections=connections)
        self._hard_fail = config.bind_address_hard_fail
        self._events = events
        self._servers: list[tuple[HttpServer, str]] = []
        if config.healthz_bind_address is not None:
            server = health_server(config.healthz_bind_address, health, metrics, limits=limits)
            self._servers.append((server, "FailedToStartProxierHealthcheck"))
        if config.metrics_bind_address is not None:
            server = metrics_server(
                config.metrics_bind_address,
                metrics,
                mode,
                effective=Effective(lambda: flags_of(config), lambda: _document(config)),
                debug=_debug_routes(verbosity),
                ui=ui,
                limits=limits,
            )
            self._servers.append((server, "FailedToStartMetricServer"))

    def start(self) -> None:
        """Start the servers; a server whose port is in use starts when the port is free.

        Raises:
            BindError: a server cannot listen, and ``--bind-address-hard-fail`` is set.
        """
        for server, reason in self._servers:
            if self._hard_fail:
                server.start()
            else:
                server.start_or_retry(partial(self._failed, reason), _RETRY_SECONDS)

    def stop(self) -> None:
        """Stop the servers and any retries."""
        for server, _ in self._servers:
            server.stop()

    def _failed(self, reason: str, error: BindError) -> None:
        log.warning("http.not_serving", error=str(error), retry_in_s=_RETRY_SECONDS)
        self._events.node(reason, str(error), warning=True)


def _document(config: Config) -> Mapping[str, Any]:
    from svcproxy.config.export import as_document  # noqa: PLC0415 - /configz is rarely requested

    return as_document(config)


def _debug_routes(verbosity: Verbosity | None) -> Mapping[str, Route]:
    """Return the pages of ``--profiling``, none if it is off."""
    if verbosity is None:
        return {}
    from svcproxy.observe import debug  # noqa: PLC0415 - profiling is rarely enabled

    return debug.routes(verbosity.set)
