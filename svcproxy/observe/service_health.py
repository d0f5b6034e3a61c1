"""The servers behind ``healthCheckNodePort``: is there a ready endpoint of a Service on this node?

Load balancers ask before they send the traffic of a Service with a Local external policy here.
Questions and answers are those of pkg/proxy/healthcheck/service_health.go in Kubernetes 1.36.

Goals:

1. One HTTP engine serves all Services of a family, thousands of them; it waits for no client.
2. The sync thread only records changes; the engine's thread opens and closes sockets.
3. A port that cannot be opened is tried again until it can.
4. Listening sockets take no more file descriptors than their share (``svcproxy.descriptors``).
"""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from socket import socket
from typing import NamedTuple

import structlog

from svcproxy import limits
from svcproxy.descriptors import Share
from svcproxy.model.names import IPFamily, NamespacedName, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.observe.connections import Limits, Site
from svcproxy.observe.core.exchange import Reply
from svcproxy.observe.core.http1 import Ask
from svcproxy.observe.engine import Engine
from svcproxy.observe.listening import listening
from svcproxy.observe.seldom import Seldom
from svcproxy.refusals import REFUSALS

_log = structlog.get_logger()

_STOP_SECONDS = 1.0

OnFailure = Callable[[NamespacedName, int, str], None]

CHECK_LIMITS = Limits(
    connections=limits.HEALTH_CHECK_CONNECTIONS,
    per_peer=limits.HEALTH_CHECK_CONNECTIONS_PER_PEER,
    idle=limits.HEALTH_CHECK_REQUEST_SECONDS,
    request=limits.HEALTH_CHECK_REQUEST_SECONDS,
)
"""What the clients of one family's health-check node ports may take."""


class _Place(NamedTuple):
    """Where a Service's server listens."""

    port: int
    addresses: tuple[str, ...]


class ServiceHealthServers:
    """The health check servers of all Services of one family.

    A Service's server listens on all of its addresses or on none. The thread starts with the
    first Service that needs it.

    Args:
        family: the family whose Services are served.
        addresses: the node's addresses to listen on, of that family; empty means all.
        healthy: whether the proxy is healthy; any thread may ask.
        on_failure: told of the Service, its port and the reason when a server cannot listen;
            once for each distinct reason, from the server thread, which it must not hold up.
        limits: what clients may take.
        share: the file descriptors for listening sockets; other families may have the same.
        retry_seconds: how often to try what could not be opened.
    """

    def __init__(
        self,
        family: IPFamily,
        addresses: tuple[str, ...],
        healthy: Callable[[], bool],
        on_failure: OnFailure,
        *,
        limits: Limits = CHECK_LIMITS,
        share: Share | None = None,
        retry_seconds: float = 10.0,
    ) -> None:
        self._everywhere = ("0.0.0.0",) if family is IPFamily.IPV4 else ("::",)
        self._addresses = addresses or self._everywhere
        self._healthy = healthy
        self._lock = threading.Lock()
        self._ports: dict[NamespacedName, dict[ServicePortName, ServicePort]] = {}
        self._name = f"service-health-{family}"
        self._engine: Engine | None = None
        self._stopped = False
        self._on_failure = on_failure
        self._limits = limits
        self._share = share or Share(math.inf)
        self._retry_seconds = retry_seconds
        self._defects = Seldom()

    def apply(self, ports: Mapping[ServicePortName, ServicePort | None]) -> None:
        """Take what some Service ports mean now, ``None`` for those that are gone.

        Counts are renewed at once, servers a moment later.
        """
        moved = False
        with self._lock:
            for name, port in ports.items():
                known = self._ports.get(name.service, {})
                before = known.pop(name, None)
                number = port.health_check_node_port if port is not None else 0
                if port is not None and number:
                    known[name] = port
                    self._ports[name.service] = known
                elif not known:
                    self._ports.pop(name.service, None)
                moved |= number != (before.health_check_node_port if before is not None else 0)
        if moved:
            self._reconcile()

    def move(self, addresses: tuple[str, ...]) -> None:
        """Listen on other addresses of the node from now on; empty means all."""
        with self._lock:
            unchanged = self._addresses == (addresses or self._everywhere)
            self._addresses = addresses or self._everywhere
            idle = not self._ports
        if not (unchanged or idle):
            self._reconcile()

    def retry(self) -> None:
        """Try at once to open what could not be opened; it is also tried from time to time."""
        with self._lock:
            idle = not self._ports
        if not idle:
            self._reconcile()

    def stop(self) -> None:
        """Close everything, within a second; nothing is opened any more."""
        with self._lock:
            self._stopped = True
            engine = self._engine
        if engine is not None:
            engine.stop(_STOP_SECONDS)

    def _reconcile(self) -> None:
        """Have the listeners compared with what is wanted, soon."""
        with self._lock:
            if self._stopped:
                return
            if self._engine is None:
                self._engine = self._start()
            engine = self._engine
        engine.wake()

    def _start(self) -> Engine:
        engine = Engine(self._name, self._limits, lambda: listeners.reconcile(self._wanted()))
        listeners = _Listeners(
            engine, self._answer, self._on_failure, self._share, self._retry_seconds
        )
        engine.start()
        return engine

    def _wanted(self) -> dict[NamespacedName, _Place]:
        with self._lock:
            return {
                service: _Place(port.health_check_node_port, self._addresses)
                for service, ports in self._ports.items()
                for port in ports.values()
            }

    def _answer(self, service: NamespacedName, _ask: Ask) -> Reply | None:
        try:
            return self._reply(service)
        except Exception:  # noqa: BLE001 - a fault in one answer is no reason to stop serving
            if self._defects.due("answer"):
                _log.exception("health_check.defect", service=str(service))
            return None

    def _reply(self, service: NamespacedName) -> Reply:
        with self._lock:
            ports = self._ports.get(service, {}).values()
            count = len({address for port in ports for address in port.local_ready})
        healthy = self._healthy()
        body = {
            "service": {"namespace": service.namespace, "name": service.name},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        }
        return Reply(
            HTTPStatus.OK if count and healthy else HTTPStatus.SERVICE_UNAVAILABLE,
            "application/json",
            json.dumps(body, indent="\t").encode(),
            {"X-Load-Balancing-Endpoint-Weight": str(count)},
        )


class _Open(NamedTuple):
    """The listening sockets of a Service."""

    place: _Place
    socks: list[socket]
    site: Site


class _Listeners:
    """The listening sockets of all Services; used by the engine's thread only."""

    def __init__(
        self,
        engine: Engine,
        answer: Callable[[NamespacedName, Ask], Reply | None],
        on_failure: OnFailure,
        share: Share,
        retry_seconds: float,
    ) -> None:
        self._engine = engine
        self._answer = answer
        self._on_failure = on_failure
        self._share = share
        self._retry_seconds = retry_seconds
        self._open: dict[NamespacedName, _Open] = {}
        self._failures: dict[NamespacedName, tuple[_Place, str]] = {}

    def reconcile(self, wanted: Mapping[NamespacedName, _Place]) -> float:
        """Close what is not wanted, open what is missing; return when to try again."""
        # Closing comes first: a port may go from one Service to another.
        for service in [s for s, found in self._open.items() if wanted.get(s) != found.place]:
            self._close(service)
        for service in self._failures.keys() - wanted.keys():
            del self._failures[service]
        for service, place in wanted.items():
            if service not in self._open:
                self._listen(service, place)
        return time.monotonic() + self._retry_seconds if self._failures else math.inf

    def _listen(self, service: NamespacedName, place: _Place) -> None:
        if not self._share.take(len(place.addresses)):
            if self._failed(service, place, self._share.reason):
                REFUSALS.count("http", "descriptors")
            return
        socks: list[socket] = []
        address, site = "", Site(partial(self._answer, service), keeps=False)
        try:
            for address in place.addresses:
                # [::] leaves IPv4 to the other family's server
                socks.append(listening(address, place.port, only_v6=True))
            self._engine.listen(socks, site)
        except OSError as error:
            for sock in socks:
                sock.close()
            self._share.give(len(place.addresses))
            where = f"[{address}]" if ":" in address else address
            self._failed(service, place, f"{where}:{place.port}: {error.strerror or error}")
            return
        self._open[service] = _Open(place, socks, site)
        say = _log.info if self._failures.pop(service, None) else _log.debug
        say("health_check.opened", service=str(service), port=place.port)

    def _failed(self, service: NamespacedName, place: _Place, reason: str) -> bool:
        """Report a failure; whether it is another one than the last time."""
        if self._failures.get(service) == (place, reason):
            return False
        self._failures[service] = place, reason
        _log.warning(
            "health_check.failed",
            service=str(service),
            port=place.port,
            reason=reason,
            retry_in_s=self._retry_seconds,
        )
        try:
            self._on_failure(service, place.port, reason)
        except Exception:  # noqa: BLE001 - the other Services' ports are still to be opened
            _log.exception("health_check.defect")
        return True

    def _close(self, service: NamespacedName) -> None:
        place, socks, site = self._open.pop(service)
        for sock in socks:
            self._engine.unlisten(sock)
        self._share.give(len(socks))
        self._engine.hang_up(site)
        _log.debug("health_check.closed", service=str(service), port=place.port)
