"""The servers behind ``healthCheckNodePort``: does this node have a ready endpoint of a Service?

Load balancers probe these ports before they send a node traffic of a Service whose external
traffic policy is Local. Requests and answers are those of pkg/proxy/healthcheck/service_health.go
in Kubernetes 1.36.

Goals:

1. One HTTP engine serves all Services of a family, thousands of them, and blocks on no client.
2. The sync thread only records changes; the engine's thread opens and closes sockets.
3. A port that cannot be opened is retried until it can, and does not affect any other port.
4. Listening sockets stay within their budget of file descriptors (``svcproxy.descriptors``).
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
from svcproxy.descriptors import DescriptorBudget
from svcproxy.model.names import IPFamily, NamespacedName, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.observe.client_connections import ClientLimits, HttpHandler
from svcproxy.observe.core.http1 import HttpRequest
from svcproxy.observe.core.routes import Reply
from svcproxy.observe.engine import Engine
from svcproxy.observe.listen_socket import open_listen_socket
from svcproxy.observe.log_throttle import LogThrottle
from svcproxy.refusals import REFUSALS

_log = structlog.get_logger()

_STOP_SECONDS = 1.0

OnFailure = Callable[[NamespacedName, int, str], None]

CHECK_LIMITS = ClientLimits(
    connections=limits.HEALTH_CHECK_CONNECTIONS,
    per_peer=limits.HEALTH_CHECK_CONNECTIONS_PER_PEER,
    idle=limits.HEALTH_CHECK_REQUEST_SECONDS,
    request=limits.HEALTH_CHECK_REQUEST_SECONDS,
)
"""Limits for the clients of one family's health-check node ports."""


class _ListenTarget(NamedTuple):
    """The port and the addresses where a Service's server listens."""

    port: int
    addresses: tuple[str, ...]


class ServiceHealthServers:
    """The health check servers of all Services of one family.

    A Service's server listens on all addresses or on none. The thread starts with the first
    Service that has a health-check node port.

    Args:
        family: the family whose Services are served.
        addresses: the node's addresses of that family to listen on; empty means all.
        healthy: returns whether the proxy is healthy; called from any thread.
        on_failure: called with the Service, its port and the reason when a server cannot listen;
            once per distinct reason, in the engine's thread, so it must not block.
        limits: what clients may use.
        budget: the file descriptors for listening sockets; families may share one.
        retry_seconds: seconds between attempts to open ports that failed.
    """

    def __init__(
        self,
        family: IPFamily,
        addresses: tuple[str, ...],
        healthy: Callable[[], bool],
        on_failure: OnFailure,
        *,
        limits: ClientLimits = CHECK_LIMITS,
        budget: DescriptorBudget | None = None,
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
        self._outdated = False
        self._on_failure = on_failure
        self._limits = limits
        self._budget = budget or DescriptorBudget(math.inf)
        self._retry_seconds = retry_seconds
        self._defects = LogThrottle()

    def apply(self, ports: Mapping[ServicePortName, ServicePort | None]) -> None:
        """Update Service ports, ``None`` for deleted ones.

        Endpoint counts change immediately, listening sockets a moment later. What an earlier call
        failed to start is tried again, even if ``ports`` is empty.

        Raises:
            OSError: the engine cannot be created, for want of file descriptors for example.
            RuntimeError: its thread cannot be started.
        """
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
                if number != (before.health_check_node_port if before is not None else 0):
                    self._outdated = True
        self._reconcile()

    def set_addresses(self, addresses: tuple[str, ...]) -> None:
        """Listen on other addresses of the node from now on; empty means all.

        Raises:
            OSError: as ``apply``.
            RuntimeError: as ``apply``.
        """
        with self._lock:
            unchanged = self._addresses == (addresses or self._everywhere)
            self._addresses = addresses or self._everywhere
            if self._ports and not unchanged:
                self._outdated = True
        self._reconcile()

    def retry_now(self) -> None:
        """Retry ports that failed now, instead of after ``retry_seconds``."""
        with self._lock:
            if self._ports:
                self._outdated = True
        self._reconcile()

    def stop(self) -> None:
        """Close all sockets within a second; later calls open nothing."""
        with self._lock:
            self._stopped = True
            engine = self._engine
        if engine is not None:
            engine.stop(_STOP_SECONDS)

    def _reconcile(self) -> None:
        """Wake the engine to update its sockets if they are out of date."""
        with self._lock:
            if self._stopped or not self._outdated:
                return
            if self._engine is None:
                self._engine = self._start()  # if this raises, the next call tries again
            self._outdated = False
            engine = self._engine
        engine.wake()

    def _start(self) -> Engine:
        engine = Engine(self._name, self._limits, lambda: listeners.reconcile(self._wanted()))
        listeners = _Listeners(
            engine, self._answer, self._on_failure, self._budget, self._retry_seconds
        )
        try:
            engine.start()
        except RuntimeError:
            engine.stop(0.0)
            raise
        return engine

    def _wanted(self) -> dict[NamespacedName, _ListenTarget]:
        with self._lock:
            return {
                service: _ListenTarget(port.health_check_node_port, self._addresses)
                for service, ports in self._ports.items()
                for port in ports.values()
            }

    def _answer(self, service: NamespacedName, _request: HttpRequest) -> Reply | None:
        try:
            return self._reply(service)
        except Exception:  # noqa: BLE001 - a defect in one answer must not stop the server
            if self._defects.allow("answer"):
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


class _OpenServer(NamedTuple):
    """The listening sockets of a Service."""

    target: _ListenTarget
    socks: list[socket]
    handler: HttpHandler


class _Listeners:
    """The listening sockets of all Services; used in the engine's thread only."""

    def __init__(
        self,
        engine: Engine,
        answer: Callable[[NamespacedName, HttpRequest], Reply | None],
        on_failure: OnFailure,
        budget: DescriptorBudget,
        retry_seconds: float,
    ) -> None:
        self._engine = engine
        self._answer = answer
        self._on_failure = on_failure
        self._budget = budget
        self._retry_seconds = retry_seconds
        self._open: dict[NamespacedName, _OpenServer] = {}
        self._failures: dict[NamespacedName, tuple[_ListenTarget, str]] = {}

    def reconcile(self, wanted: Mapping[NamespacedName, _ListenTarget]) -> float:
        """Close sockets that are not wanted, open missing ones; return when to retry failures."""
        # Close first: a port may move from one Service to another.
        for service in [s for s, found in self._open.items() if wanted.get(s) != found.target]:
            self._close(service)
        for service in self._failures.keys() - wanted.keys():
            del self._failures[service]
        for service, target in wanted.items():
            if service not in self._open:
                self._listen(service, target)
        return time.monotonic() + self._retry_seconds if self._failures else math.inf

    def _listen(self, service: NamespacedName, target: _ListenTarget) -> None:
        if not self._budget.acquire(len(target.addresses)):
            if self._failed(service, target, self._budget.reason):
                REFUSALS.count("http", "descriptors")
            return
        socks: list[socket] = []
        address, handler = "", HttpHandler(partial(self._answer, service), keep_alive=False)
        try:
            for address in target.addresses:
                # [::] leaves IPv4 to the other family's server
                socks.append(open_listen_socket(address, target.port, only_v6=True))
            self._engine.listen(socks, handler)
        except Exception as error:  # noqa: BLE001 - the other Services' ports must be opened as well
            for sock in socks:
                sock.close()
            self._budget.release(len(target.addresses))
            where = f"[{address}]" if ":" in address else address
            self._failed(service, target, f"{where}:{target.port}: {_reason(error)}")
            return
        self._open[service] = _OpenServer(target, socks, handler)
        log = _log.info if self._failures.pop(service, None) else _log.debug
        log("health_check.opened", service=str(service), port=target.port)

    def _failed(self, service: NamespacedName, target: _ListenTarget, reason: str) -> bool:
        """Report a failure; return whether it differs from the Service's last one."""
        if self._failures.get(service) == (target, reason):
            return False
        self._failures[service] = target, reason
        _log.warning(
            "health_check.failed",
            service=str(service),
            port=target.port,
            reason=reason,
            retry_in_s=self._retry_seconds,
        )
        try:
            self._on_failure(service, target.port, reason)
        except Exception:  # noqa: BLE001 - the other Services' ports must be opened as well
            _log.exception("health_check.defect")
        return True

    def _close(self, service: NamespacedName) -> None:
        target, socks, handler = self._open.pop(service)
        for sock in socks:
            self._engine.unlisten(sock)
        self._budget.release(len(socks))
        self._engine.hang_up(handler)
        _log.debug("health_check.closed", service=str(service), port=target.port)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"
