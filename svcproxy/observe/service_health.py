"""The servers behind ``healthCheckNodePort``: is there a ready endpoint of a Service on this node?

Load balancers ask before they send the traffic of a Service with a Local external policy here.
Questions and answers are those of pkg/proxy/healthcheck/service_health.go in Kubernetes 1.36.

Goals:

1. One thread serves all Services, hundreds of them, and owns every socket; it waits for no
   client.
2. The sync thread only leaves word; opening and closing is the server thread's work.
3. A port that cannot be opened is tried again until it can.
"""

import json
import math
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple

import structlog

from svcproxy.model.names import IPFamily, NamespacedName, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.observe.clients import Answer, ClientLimits, Connection, Connections

_log = structlog.get_logger()

_STOP_SECONDS = 1.0
_BACKLOG = 128
_RINGS = 1 << 12

OnFailure = Callable[[NamespacedName, int, str], None]


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
        retry_seconds: how often to try what could not be opened.
    """

    def __init__(
        self,
        family: IPFamily,
        addresses: tuple[str, ...],
        healthy: Callable[[], bool],
        on_failure: OnFailure,
        *,
        limits: ClientLimits | None = None,
        retry_seconds: float = 10.0,
    ) -> None:
        self._everywhere = ("0.0.0.0",) if family is IPFamily.IPV4 else ("::",)
        self._addresses = addresses or self._everywhere
        self._healthy = healthy
        self._lock = threading.Lock()
        self._ports: dict[NamespacedName, dict[ServicePortName, ServicePort]] = {}
        self._server = _Server(f"service-health-{family}", self._wanted, self._open)
        self._on_failure = on_failure
        self._limits = limits or ClientLimits()
        self._retry_seconds = retry_seconds

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
            self._server.reconcile()

    def move(self, addresses: tuple[str, ...]) -> None:
        """Listen on other addresses of the node from now on; empty means all."""
        with self._lock:
            unchanged = self._addresses == (addresses or self._everywhere)
            self._addresses = addresses or self._everywhere
            idle = not self._ports
        if not (unchanged or idle):
            self._server.reconcile()

    def retry(self) -> None:
        """Try at once to open what could not be opened; it is also tried from time to time."""
        with self._lock:
            idle = not self._ports
        if not idle:
            self._server.reconcile()

    def stop(self) -> None:
        """Close everything, within a second; nothing is opened any more."""
        self._server.stop()

    def _open(self, selector: selectors.BaseSelector) -> "_Listeners":
        connections = Connections(selector, self._answer, self._limits)
        return _Listeners(selector, connections, self._on_failure, self._retry_seconds)

    def _wanted(self) -> dict[NamespacedName, _Place]:
        with self._lock:
            return {
                service: _Place(port.health_check_node_port, self._addresses)
                for service, ports in self._ports.items()
                for port in ports.values()
            }

    def _answer(self, service: NamespacedName) -> Answer:
        with self._lock:
            ports = self._ports.get(service, {}).values()
            count = len({address for port in ports for address in port.local_ready})
        healthy = self._healthy()
        body = {
            "service": {"namespace": service.namespace, "name": service.name},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        }
        headers = {
            "Content-Type": "application/json",
            "X-Content-Type-Options": "nosniff",
            "X-Load-Balancing-Endpoint-Weight": str(count),
        }
        status = HTTPStatus.OK if count and healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return status, headers, json.dumps(body, indent="\t").encode()


class _Server:
    """The thread that owns the sockets of all Services."""

    def __init__(
        self,
        name: str,
        wanted: Callable[[], dict[NamespacedName, _Place]],
        start: Callable[[selectors.BaseSelector], "_Listeners"],
    ) -> None:
        self._name = name
        self._wanted = wanted
        self._start = start
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._bell: socket.socket | None = None

    def reconcile(self) -> None:
        """Have the listeners compared with what is wanted, soon."""
        with self._lock:
            if self._stopping.is_set():
                return
            if self._bell is None:
                self._bell, ear = socket.socketpair()
                self._bell.settimeout(0)
                self._thread = threading.Thread(
                    target=self._run, args=(ear,), name=self._name, daemon=True
                )
                self._thread.start()
            with suppress(OSError):  # it is full of rings that are yet to be heard
                self._bell.send(b"!")

    def stop(self) -> None:
        """End the thread, which closes all sockets."""
        with self._lock:
            self._stopping.set()
            bell, self._bell = self._bell, None
        if bell is not None:
            bell.close()  # wakes the thread as a ring does
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def _run(self, ear: socket.socket) -> None:
        with ear, selectors.DefaultSelector() as selector:
            listeners = self._start(selector)
            ear.settimeout(0)
            selector.register(ear, selectors.EVENT_READ, ear)
            while not self._stopping.is_set():
                try:
                    self._turn(selector, listeners)
                except Exception:  # noqa: BLE001 - a defect must not end all health checks
                    _log.exception("health_check.defect")
                    self._stopping.wait(1.0)
            listeners.reconcile({})

    def _turn(self, selector: selectors.BaseSelector, listeners: "_Listeners") -> None:
        connections = listeners.connections
        until = min(listeners.retry_at, connections.deadline())
        timeout = None if until == math.inf else max(0.0, until - time.monotonic())
        for key, _ in selector.select(timeout):
            match key.data:
                case Connection() as connection:
                    connections.serve(connection)
                case _Listener() as listener:
                    connections.accept(listener.sock, listener.service)
                case socket.socket() as ear:
                    with suppress(BlockingIOError):
                        ear.recv(_RINGS)
                    listeners.retry_at = -math.inf
        connections.expire()
        if time.monotonic() >= listeners.retry_at and not self._stopping.is_set():
            listeners.reconcile(self._wanted())


class _Listener(NamedTuple):
    """A listening socket of a Service."""

    service: NamespacedName
    sock: socket.socket


class _Listeners:
    """The listening sockets; ``retry_at`` is when to compare them with what is wanted again."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        connections: Connections,
        on_failure: OnFailure,
        retry_seconds: float,
    ) -> None:
        self.connections = connections
        self.retry_at = math.inf
        self._selector = selector
        self._on_failure = on_failure
        self._retry_seconds = retry_seconds
        self._open: dict[NamespacedName, tuple[_Place, list[_Listener]]] = {}
        self._failures: dict[NamespacedName, tuple[_Place, str]] = {}

    def reconcile(self, wanted: Mapping[NamespacedName, _Place]) -> None:
        """Close what is not wanted, open what is missing."""
        self.retry_at = time.monotonic() + self._retry_seconds  # should this fail midway
        # Closing comes first: a port may go from one Service to another.
        for service in [s for s, (place, _) in self._open.items() if wanted.get(s) != place]:
            self._close(service)
        for service in self._failures.keys() - wanted.keys():
            del self._failures[service]
        for service, place in wanted.items():
            if service not in self._open:
                self._listen(service, place)
        if not self._failures:
            self.retry_at = math.inf

    def _listen(self, service: NamespacedName, place: _Place) -> None:
        listeners: list[_Listener] = []
        for address in place.addresses:
            try:
                listeners.append(_Listener(service, _bound(address, place.port)))
            except OSError as error:
                for listener in listeners:
                    listener.sock.close()
                where = f"[{address}]" if ":" in address else address
                self._failed(service, place, f"{where}:{place.port}: {error.strerror or error}")
                return
        for listener in listeners:
            self._selector.register(listener.sock, selectors.EVENT_READ, listener)
        self._open[service] = place, listeners
        say = _log.info if self._failures.pop(service, None) else _log.debug
        say("health_check.opened", service=str(service), port=place.port)

    def _failed(self, service: NamespacedName, place: _Place, reason: str) -> None:
        if self._failures.get(service) == (place, reason):
            return
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

    def _close(self, service: NamespacedName) -> None:
        place, listeners = self._open.pop(service)
        for listener in listeners:
            self._selector.unregister(listener.sock)
            listener.sock.close()
        self.connections.close(service)
        _log.debug("health_check.closed", service=str(service), port=place.port)


def _bound(address: str, port: int) -> socket.socket:
    """Listen on one address; ``[::]`` leaves IPv4 to the other family's server."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
