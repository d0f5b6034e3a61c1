"""The pages of the metrics port and of the health port.

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
from svcproxy.config.parsing import Bind
from svcproxy.observe.client_connections import ClientLimits
from svcproxy.observe.core.routes import TEXT, PageRequest, Reply, Route
from svcproxy.observe.core.zpages import StatuszInfo, flagz, statusz
from svcproxy.observe.exposition import Exposition, render
from svcproxy.observe.health import HealthState, ProbeResult
from svcproxy.observe.http_server import HttpServer
from svcproxy.observe.metrics import Metrics

CONFIG_GROUP = "kubeproxy.config.k8s.io"
# The kube-proxy release with which svcproxy is compatible
_COMPATIBLE = "1.36"
# Answered in the server's thread, even while the workers render slow pages
_QUICK = ("/healthz", "/healthz/ping", "/livez", "/readyz", "/proxyMode")
# kube-proxy does not list these on /statusz either, or does not have them
_UNLISTED = ("/metrics/slis", "/statusz", "/debug/", "/healthz/", "/ui")


@dataclass(frozen=True, slots=True)
class Effective:
    """The effective configuration, for /flagz and /configz; computed on request.

    ``flags`` returns the flags by name without dashes, ``configuration`` the
    KubeProxyConfiguration (v1alpha1) as a JSON object.
    """

    flags: Callable[[], Mapping[str, str]]
    configuration: Callable[[], Mapping[str, Any]]


def metrics_server(
    bind: Bind,
    metrics: Metrics,
    mode: str,
    *,
    effective: Effective | None = None,
    debug: Mapping[str, Route] | None = None,
    ui: Mapping[str, Route] | None = None,
    limits: ClientLimits | None = None,
) -> HttpServer:
    """Create the server of the metrics port.

    Args:
        bind: where to listen.
        metrics: the source of /metrics and /metrics/slis.
        mode: the answer of /proxyMode.
        effective: the source of /configz and /flagz; without it these pages are not served.
        debug: the debug pages, served with ``--profiling``.
        ui: the pages for people, which another process renders.
        limits: what clients may use.
    """
    routes: dict[str, Route] = {
        "/healthz": lambda request: _healthz(request, metrics),
        "/healthz/ping": lambda _: _ping(metrics),
        "/metrics": lambda request: _metrics(request, metrics),
        "/metrics/slis": lambda request: _slis(request, metrics),
        "/proxyMode": lambda _: Reply(HTTPStatus.OK, TEXT, mode.encode()),
        **(debug or {}),
        **(ui or {}),
    }
    if effective is not None:
        routes["/configz"] = lambda _: _configz(effective.configuration())
        routes["/flagz"] = lambda request: flagz(effective.flags(), request.header("Accept"))
    listed = tuple(sorted(path for path in routes if not path.startswith(_UNLISTED)))
    routes["/statusz"] = lambda request: statusz(
        StatuszInfo(
            started=metrics.started,
            now=time.time(),
            version=__version__,
            runtime=f"python{platform.python_version()}",
            compatible=_COMPATIBLE,
            paths=listed,
        ),
        request.header("Accept"),
    )
    return HttpServer(
        "metrics",
        "metrics-bind-address",
        bind,
        routes,
        quick=_QUICK,
        apart=tuple(ui or ()),
        limits=limits,
    )


def health_server(
    bind: Bind, health: HealthState, metrics: Metrics, *, limits: ClientLimits | None = None
) -> HttpServer:
    """Create the server of the health port.

    /healthz answers whether this node should receive traffic, /livez whether the proxy works,
    /readyz whether its rules are in the kernel.

    Args:
        bind: where to listen.
        health: the state to report.
        metrics: counts the answers.
        limits: what clients may use.
    """

    def probe(answer: Callable[[], ProbeResult], counter: Any = None) -> Route:
        def route(_request: PageRequest) -> Reply:
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
    return HttpServer(
        "health checks", "healthz-bind-address", bind, routes, quick=_QUICK, limits=limits
    )


def _metrics(request: PageRequest, metrics: Metrics) -> Reply:
    return _scrape(
        render(metrics.registry, request.header("Accept"), request.header("Accept-Encoding")),
        metrics,
    )


def _scrape(exposition: Exposition, metrics: Metrics) -> Reply:
    headers = {"Process-Start-Time-Unix": str(int(metrics.started))}
    if exposition.encoding:
        headers["Content-Encoding"] = exposition.encoding
    return Reply(HTTPStatus.OK, exposition.content_type, exposition.body, headers)


def _slis(request: PageRequest, metrics: Metrics) -> Reply:
    """Serve the results of this port's health checks; DELETE resets them."""
    if request.method == "DELETE":
        metrics.slis.reset()
        return Reply(HTTPStatus.OK, TEXT, b"metrics reset\n")
    accept, encoding = request.header("Accept"), request.header("Accept-Encoding")
    return _scrape(render(metrics.slis.registry, accept, encoding), metrics)


def _healthz(request: PageRequest, metrics: Metrics) -> Reply:
    """Pass the only check, ping: the process answers. The health port has the real checks."""
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
