"""What is served where: the pages of the metrics port and of the health port.

Paths, content types and meanings are those of kube-proxy 1.36 (cmd/kube-proxy/app/server.go);
docs/compatibility.md has the list, and a test compares the two.
"""

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from svcproxy import __version__
from svcproxy.config import ProxyMode
from svcproxy.observe.connections import Limits
from svcproxy.observe.core.exchange import TEXT, Reply, Request, Route
from svcproxy.observe.core.zpages import Status, flagz, statusz
from svcproxy.observe.exposition import Exposition, render
from svcproxy.observe.health import Answer, HealthState
from svcproxy.observe.http import Server
from svcproxy.observe.metrics import Metrics
from svcproxy.values import Bind

CONFIG_GROUP = "kubeproxy.config.k8s.io"
# The kube-proxy whose place is taken
_COMPATIBLE = "1.36"
# They take no time, so they are answered even while a worker renders a slow page
_QUICK = ("/healthz", "/healthz/ping", "/livez", "/readyz", "/proxyMode")
# What the real one does not list on /statusz either
_UNLISTED = ("/metrics/slis", "/statusz", "/debug/", "/healthz/")


@dataclass(frozen=True, slots=True)
class Effective:
    """What is in force, for /flagz and /configz; asked for when somebody looks.

    ``flags`` gives the flags by name without dashes, ``configuration`` the KubeProxyConfiguration
    (v1alpha1) as JSON has it.
    """

    flags: Callable[[], Mapping[str, str]]
    configuration: Callable[[], Mapping[str, Any]]


def metrics_server(
    bind: Bind,
    metrics: Metrics,
    mode: ProxyMode | str,
    *,
    effective: Effective | None = None,
    debug: Mapping[str, Route] | None = None,
    limits: Limits | None = None,
) -> Server:
    """Make the server of the metrics port.

    Args:
        bind: where to listen.
        metrics: what /metrics and /metrics/slis tell.
        mode: what /proxyMode tells.
        effective: what /configz and /flagz tell; without it they are not there.
        debug: the debug pages, with ``--profiling``.
        limits: what one client may take.
    """
    routes: dict[str, Route] = {
        "/healthz": lambda request: _healthz(request, metrics),
        "/healthz/ping": lambda _: _ping(metrics),
        "/metrics": lambda request: _metrics(request, metrics),
        "/metrics/slis": lambda request: _slis(request, metrics),
        "/proxyMode": lambda _: Reply(HTTPStatus.OK, TEXT, str(mode).encode()),
        **(debug or {}),
    }
    if effective is not None:
        routes["/configz"] = lambda _: _configz(effective.configuration())
        routes["/flagz"] = lambda request: flagz(effective.flags(), request.header("Accept"))
    listed = tuple(sorted(path for path in routes if not path.startswith(_UNLISTED)))
    routes["/statusz"] = lambda request: statusz(
        Status(
            started=metrics.started,
            now=time.time(),
            version=__version__,
            runtime=f"python{platform.python_version()}",
            compatible=_COMPATIBLE,
            paths=listed,
        ),
        request.header("Accept"),
    )
    return Server("metrics", "metrics-bind-address", bind, routes, quick=_QUICK, limits=limits)


def health_server(
    bind: Bind, health: HealthState, metrics: Metrics, *, limits: Limits | None = None
) -> Server:
    """Make the server of the health port.

    /healthz says whether this node shall get traffic, /livez whether the proxy works, /readyz
    whether its rules are written.
    """

    def probe(answer: Callable[[], Answer], counter: Any = None) -> Route:
        def route(_request: Request) -> Reply:
            result = answer()
            if counter is not None:
                counter.labels(code=str(result.status)).inc()
            return Reply(result.status, "application/json", result.body)

        return route

    routes = {
        "/healthz": probe(health.healthz, metrics.proxy_healthz),
        "/livez": probe(health.livez, metrics.proxy_livez),
        "/readyz": probe(health.readyz),
    }
    return Server(
        "health checks", "healthz-bind-address", bind, routes, quick=_QUICK, limits=limits
    )


def _metrics(request: Request, metrics: Metrics) -> Reply:
    return _scrape(
        render(metrics.registry, request.header("Accept"), request.header("Accept-Encoding")),
        metrics,
    )


def _scrape(exposition: Exposition, metrics: Metrics) -> Reply:
    headers = {"Process-Start-Time-Unix": str(int(metrics.started))}
    if exposition.encoding:
        headers["Content-Encoding"] = exposition.encoding
    return Reply(HTTPStatus.OK, exposition.content_type, exposition.body, headers)


def _slis(request: Request, metrics: Metrics) -> Reply:
    """What the health checks of this port had to say; DELETE forgets it."""
    if request.method == "DELETE":
        metrics.slis.reset()
        return Reply(HTTPStatus.OK, TEXT, b"metrics reset\n")
    accept, encoding = request.header("Accept"), request.header("Accept-Encoding")
    return _scrape(render(metrics.slis.registry, accept, encoding), metrics)


def _healthz(request: Request, metrics: Metrics) -> Reply:
    """The process answers, so the only check, ping, is passed; the health port knows the rest."""
    metrics.slis.passed("ping")
    if "verbose" not in request.query:
        return Reply(HTTPStatus.OK, TEXT, b"ok")
    mark = "excluded: ok" if request.query.get("exclude") == "ping" else "ok"
    return Reply(HTTPStatus.OK, TEXT, f"[+]ping {mark}\nhealthz check passed\n".encode())


def _ping(metrics: Metrics) -> Reply:
    metrics.slis.passed("ping")
    return Reply(HTTPStatus.OK, TEXT, b"ok")


def _configz(configuration: Mapping[str, Any]) -> Reply:
    page = {CONFIG_GROUP: configuration}
    body = json.dumps(page, separators=(",", ":")).encode()
    return Reply(HTTPStatus.OK, "application/json", body)
