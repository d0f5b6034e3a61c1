import errno
import http.client
import json
import math
import os
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from structlog.testing import capture_logs

from svcproxy.descriptors import DescriptorBudget
from svcproxy.model.names import IPFamily, NamespacedName, Protocol, ServicePortName
from svcproxy.model.serviceport import ServicePort
from svcproxy.observe import engine, service_health
from svcproxy.observe.client_connections import ClientConnections, ClientLimits, HttpHandler
from svcproxy.observe.core.http1 import ParserLimits, RequestParser
from svcproxy.observe.health import HealthState
from svcproxy.observe.listen_socket import open_listen_socket
from svcproxy.observe.service_health import ServiceHealthServers

V4, V6 = IPFamily.IPV4, IPFamily.IPV6
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
WEB = NamespacedName("shop", "web")


class Servers:
    """Servers under test, and the failures that they reported."""

    def __init__(self, family: IPFamily = V4, *addresses: str, **more: Any) -> None:
        self.family = family
        self.healthy = True
        self.failures: list[tuple[NamespacedName, int, str]] = []
        more.setdefault("retry_seconds", 0.05)
        healthy = more.pop("healthy", lambda: self.healthy)
        self.servers = ServiceHealthServers(
            family,
            addresses,
            healthy,
            lambda name, port, reason: self.failures.append((name, port, reason)),
            **more,
        )

    def set(self, port: int, *ready: str, name: NamespacedName = WEB, key: str = "http") -> None:
        port_name = ServicePortName(*name, key, Protocol.TCP)
        value = ServicePort(
            name=port_name,
            frontends=(),
            cluster_endpoints=(),
            local_endpoints=(),
            health_check_node_port=port,
            local_ready=ready,
        )
        self.servers.apply({port_name: value})

    def remove(self, name: NamespacedName = WEB, key: str = "http") -> None:
        self.servers.apply({ServicePortName(*name, key, Protocol.TCP): None})

    def request(
        self, port: int, path: str = "/", method: str = "GET", address: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        host = address or LOOPBACK[self.family]
        with closing(http.client.HTTPConnection(host, port, timeout=5)) as connection:
            connection.request(method, path)
            with connection.getresponse() as response:
                return response.status, dict(response.getheaders()), response.read()

    def count(self, port: int) -> int:
        return int(json.loads(self.request(port)[2])["localEndpoints"])


Make = Callable[..., Servers]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Servers] = []

    def make(*args: Any, **more: Any) -> Servers:
        made.append(Servers(*args, **more))
        return made[-1]

    yield make
    for servers in made:
        servers.servers.stop()


def taken(family: IPFamily = V4) -> socket.socket:
    """Listen on a random port below the range of ephemeral ports."""
    while True:
        sock = socket.socket(socket.AF_INET6 if family is V6 else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK[family], random.randrange(20_000, 32_000)))
            sock.listen()
        except OSError:
            sock.close()
        else:
            return sock


def free_port(family: IPFamily = V4) -> int:
    with taken(family) as probe:
        return int(probe.getsockname()[1])


def listens(port: int, address: str = "127.0.0.1") -> bool:
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except (ConnectionRefusedError, ConnectionResetError):
        return False


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s"
        time.sleep(0.005)


def opened(servers: Servers, port: int) -> None:
    wait_for(lambda: listens(port, LOOPBACK[servers.family]))


def connected(servers: Servers, clients: int) -> None:
    """Wait until the engine has accepted so many connections that are still open."""
    running = servers.servers._engine
    assert running is not None
    wait_for(lambda: len(running._connections) == clients)


def reconciled(servers: Servers) -> None:
    """Wait until the engine has processed all earlier changes: it opens new ports after these."""
    name = NamespacedName("shop", "marker")
    port = free_port(servers.family)
    servers.set(port, name=name)
    opened(servers, port)
    servers.remove(name)


def open_port(servers: Servers, *ready: str) -> int:
    port = free_port(servers.family)
    servers.set(port, *ready)
    opened(servers, port)
    return port


def asked_about(servers: Servers, port: int) -> str | None:
    """Return the Service whose server answers, ``None`` if none does."""
    try:
        return str(json.loads(servers.request(port)[2])["service"]["name"])
    except OSError:
        return None


@pytest.mark.parametrize("family", IPFamily)
def test_the_answer_with_ready_endpoints(make: Make, family: IPFamily) -> None:
    servers = make(family)
    port = open_port(servers, "10.0.0.1", "10.0.0.2")
    status, headers, body = servers.request(port)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert headers["Content-Length"] == str(len(body))
    assert "Date" in headers
    # Byte for byte the answer of kube-proxy
    assert body == (
        b'{\n\t"service": {\n\t\t"namespace": "shop",\n\t\t"name": "web"\n\t},\n'
        b'\t"localEndpoints": 2,\n\t"serviceProxyHealthy": true\n}'
    )


def test_endpoints_are_added_and_removed(make: Make) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1")
    assert servers.request(port)[0] == 200
    servers.set(port)
    status, headers, body = servers.request(port)
    assert (status, headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "0")
    assert json.loads(body)["localEndpoints"] == 0
    servers.set(port, "10.0.0.1")
    assert servers.request(port)[0] == 200


def test_an_unhealthy_proxy(make: Make) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1")
    servers.healthy = False
    status, headers, body = servers.request(port)
    assert (status, headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "1")
    assert json.loads(body) == {
        "service": {"namespace": "shop", "name": "web"},
        "localEndpoints": 1,
        "serviceProxyHealthy": False,
    }


def test_addresses_count_once_over_all_ports(make: Make) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1", "10.0.0.2")
    servers.set(port, "10.0.0.2", "10.0.0.3", key="https")
    assert servers.count(port) == 3
    servers.remove()
    assert servers.count(port) == 2
    servers.remove(key="https")
    wait_for(lambda: not listens(port))


@pytest.mark.parametrize("path", ["/healthz", "/any/thing?x=y", "*", "http://other/"])
def test_any_path_is_answered(make: Make, path: str) -> None:
    servers = make()
    assert servers.request(open_port(servers, "10.0.0.1"), path)[0] == 200


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "BREW"])
def test_any_method_is_answered(make: Make, method: str) -> None:
    servers = make()
    status, _, body = servers.request(open_port(servers, "10.0.0.1"), method=method)
    assert status == 200
    assert body


def test_head_gets_no_body(make: Make) -> None:
    servers = make()
    status, headers, body = servers.request(open_port(servers, "10.0.0.1"), method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


def test_a_deleted_service_closes_its_port_and_connections(make: Make) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        connected(servers, 1)
        servers.remove()
        assert closed(client) < 2
    wait_for(lambda: not listens(port))
    servers.remove()


def test_a_service_that_no_longer_needs_a_server(make: Make) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1")
    servers.set(0)
    wait_for(lambda: not listens(port))


def test_a_changed_port(make: Make) -> None:
    servers = make()
    old = open_port(servers, "10.0.0.1")
    new = open_port(servers, "10.0.0.1")
    wait_for(lambda: not listens(old))
    assert servers.count(new) == 1


def test_a_port_moves_from_one_service_to_another(make: Make) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1")
    api = NamespacedName("shop", "api")
    servers.set(port, name=api)
    wait_for(lambda: servers.failures)
    assert servers.failures[0][:2] == (api, port)
    servers.remove()
    servers.servers.retry_now()
    wait_for(lambda: asked_about(servers, port) == "api")


def test_both_families_share_a_port_number(make: Make) -> None:
    port = free_port()
    for family in IPFamily:
        servers = make(family)
        servers.set(port, "10.0.0.1")
        opened(servers, port)
        assert servers.failures == []
        assert servers.count(port) == 1


def test_given_addresses_only(make: Make) -> None:
    servers = make(V4, "127.0.0.2", "127.0.0.3")
    port = free_port()
    servers.set(port, "10.0.0.1")
    wait_for(lambda: listens(port, "127.0.0.2"))
    wait_for(lambda: listens(port, "127.0.0.3"))
    assert not listens(port, "127.0.0.1")
    servers.servers.set_addresses(("127.0.0.1",))
    opened(servers, port)
    wait_for(lambda: not listens(port, "127.0.0.2"))
    servers.servers.set_addresses(())
    wait_for(lambda: listens(port, "127.0.0.2"))


@pytest.mark.parametrize("family", IPFamily)
def test_a_port_in_use_is_reported_once_and_opened_when_free(
    make: Make, family: IPFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def attempt(host: str, port: int, *, only_v6: bool) -> socket.socket:
        attempts.append(port)
        return open_listen_socket(host, port, only_v6=only_v6)

    monkeypatch.setattr(service_health, "open_listen_socket", attempt)
    servers = make(family)
    host = f"[{'::' if family is V6 else '0.0.0.0'}]".replace("[0.0.0.0]", "0.0.0.0")
    with capture_logs() as lines, taken(family) as other:
        port = other.getsockname()[1]
        servers.set(port, "10.0.0.1")
        wait_for(lambda: len(attempts) > 3)
        servers.set(port, "10.0.0.1", "10.0.0.2")
        assert servers.failures == [(WEB, port, f"{host}:{port}: Address already in use")]
        assert [e["event"] for e in lines] == ["health_check.failed"]
        assert lines[0]["log_level"] == "warning"
    opened(servers, port)
    assert servers.count(port) == 2


def test_retry_does_not_wait(make: Make) -> None:
    servers = make(retry_seconds=60)
    with taken() as other:
        port = other.getsockname()[1]
        servers.set(port, "10.0.0.1")
        wait_for(lambda: servers.failures)
    servers.servers.retry_now()
    opened(servers, port)


def test_one_address_in_use_leaves_none_open(make: Make) -> None:
    with taken() as other:
        port = other.getsockname()[1]
        servers = make(V4, "127.0.0.2", "127.0.0.1", retry_seconds=60)
        servers.set(port, "10.0.0.1")
        wait_for(lambda: servers.failures)
        assert not listens(port, "127.0.0.2")


def test_a_socket_that_cannot_be_watched_is_retried_and_releases_its_descriptors(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel limits the number of epoll watches per user, and memory can run out."""
    failures = iter([errno.ENOSPC, errno.ENOMEM])
    register = selectors.EpollSelector.register

    def starved(self: selectors.EpollSelector, sock: Any, events: int, data: Any = None) -> Any:
        number = next(failures, 0) if getattr(data, "handler", None) else 0
        if number:
            raise OSError(number, os.strerror(number))
        return register(self, sock, events, data)

    monkeypatch.setattr(selectors.EpollSelector, "register", starved)
    budget, port = DescriptorBudget(1), free_port()
    servers = make(budget=budget)
    servers.set(port, "10.0.0.1")
    wait_for(lambda: asked_about(servers, port) == "web")
    assert [reason.partition(": ")[2] for _, _, reason in servers.failures] == [
        "No space left on device",
        "Cannot allocate memory",
    ]
    servers.remove()
    wait_for(lambda: budget.acquire(1))


def test_a_thread_that_cannot_start_is_retried_by_the_next_sync(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers, port = make(), free_port()

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "spawn", refuse)
        with pytest.raises(RuntimeError):
            servers.set(port, "10.0.0.1")
    servers.servers.apply({})
    opened(servers, port)


def test_an_unexpected_error_at_one_port_does_not_keep_others_closed(make: Make) -> None:
    servers, port = make(), free_port()
    servers.set(1 << 16, name=NamespacedName("shop", "api"))
    servers.set(port, "10.0.0.1")
    opened(servers, port)
    assert [reason.partition(": ")[2].split(":")[0] for _, _, reason in servers.failures] == [
        "OverflowError"
    ]


def test_a_removed_service_is_not_retried(make: Make) -> None:
    servers = make()
    with taken() as other:
        port = other.getsockname()[1]
        servers.set(port)
        wait_for(lambda: servers.failures)
        servers.remove()
        reconciled(servers)
        servers.set(port)
        wait_for(lambda: len(servers.failures) == 2)
        servers.remove()
    reconciled(servers)
    assert not listens(port)


def test_other_services_survive_a_broken_callback(make: Make) -> None:
    servers = make()
    del servers.failures
    with capture_logs() as lines, taken() as other:
        servers.set(other.getsockname()[1])
        wait_for(lambda: len(lines) == 2)
        free = free_port()
        servers.set(free, name=NamespacedName("shop", "api"))
        opened(servers, free)
        assert lines[1]["event"] == "health_check.defect"


def closed(client: socket.socket) -> float:
    """Return how many seconds it takes the server to close ``client``."""
    begun = time.monotonic()
    client.settimeout(5)
    try:
        while client.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - begun


def test_slow_clients_delay_no_others_and_are_disconnected(make: Make) -> None:
    servers = make(limits=ClientLimits(request=0.4))
    port = open_port(servers, "10.0.0.1")
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            for _ in range(20)
        ]
        for client in clients:
            client.sendall(b"GET / HT")
        begun = time.monotonic()
        assert servers.count(port) == 1
        assert time.monotonic() - begun < 0.3
        for client in clients:
            assert closed(client) < 1.5


def test_a_request_in_small_pieces(make: Make) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n":
            client.sendall(bytes((byte,)))
            time.sleep(0.001)  # one packet each
        assert client.recv(64).startswith(b"HTTP/1.1 200 OK\r\n")


def test_beyond_the_connection_limit_the_oldest_is_closed(make: Make) -> None:
    servers = make(limits=ClientLimits(connections=3))
    port = open_port(servers, "10.0.0.1")
    with ExitStack() as stack:
        clients = []
        for number in range(1, 4):
            sock = socket.create_connection(("127.0.0.1", port), timeout=5)
            clients.append(stack.enter_context(sock))
            connected(servers, number)
        assert servers.count(port) == 1
        assert closed(clients[0]) < 1
        clients[2].sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert clients[2].recv(64).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_large_unread_body_does_not_discard_the_answer(make: Make) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 500000\r\n\r\n")
        client.sendall(bytes(500_000))
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"}")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\n", 400),
        (b"GET /\r\n", 400),
        (b"GET / HTTP/2.0\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"x" * 9000, 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2000, 431),
        (b"GET / HTTP/1.1\n\n", 200),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n", 200),
    ],
)
def test_malformed_requests_get_an_answer(make: Make, request_: bytes, status: int) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(request_)
        answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.count(b"HTTP/1.1") == 1
        assert closed(client) < 2


def test_a_request_can_be_cut_anywhere() -> None:
    whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    for first in range(len(whole)):
        for second in range(first, len(whole)):
            parser = RequestParser(ParserLimits())
            heads = []
            for piece in (whole[:first], whole[first:second], whole[second:]):
                parser.feed(piece)
                heads.append(parser.head())
            assert heads[:2] == [None, None]
            assert heads[2] is not None
            assert heads[2].method == "GET"


def test_clients_that_disconnect(make: Make) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1")
    with capture_logs() as lines:
        for sent in (b"", b"GET /", b"GET / HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1,)) + bytes(7))
                client.sendall(sent)
        assert servers.count(port) == 1
    assert lines == []


def test_a_defect_in_one_answer_affects_only_that_one(make: Make) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1")
    with capture_logs() as lines:
        del servers.healthy
        with pytest.raises(http.client.RemoteDisconnected):
            servers.request(port)
        servers.healthy = True
        assert servers.count(port) == 1
    assert [e["event"] for e in lines] == ["health_check.defect"]


def test_hundreds_of_services_in_one_thread(make: Make) -> None:
    servers = make()
    before = threading.active_count()
    names = [NamespacedName("shop", f"s{n}") for n in range(200)]
    ports = {}
    with ExitStack() as stack:
        for name in names:
            ports[name] = stack.enter_context(taken()).getsockname()[1]
    begun = time.monotonic()
    for name, port in ports.items():
        servers.set(port, "10.0.0.1", name=name)
    assert time.monotonic() - begun < 0.5
    for name, port in ports.items():
        opened(servers, port)
        assert json.loads(servers.request(port)[2])["service"]["name"] == name.name
    assert threading.active_count() == before + 1


def test_stop_closes_everything_permanently(make: Make) -> None:
    servers = make()
    port = open_port(servers, "10.0.0.1")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        connected(servers, 1)
        begun = time.monotonic()
        servers.servers.stop()
        assert time.monotonic() - begun < 0.5
        assert closed(client) < 1
    servers.set(port + 1)
    servers.servers.stop()
    assert not listens(port)
    assert not any("service-health" in thread.name for thread in threading.enumerate())


def test_nothing_to_serve_needs_no_thread(make: Make) -> None:
    before = threading.active_count()
    servers = make()
    servers.set(0, "10.0.0.1")
    servers.remove()
    servers.servers.retry_now()
    servers.servers.set_addresses(("127.0.0.1",))
    assert threading.active_count() == before
    servers.servers.stop()


def test_the_node_does_not_affect_the_proxy_s_health(make: Make) -> None:
    elapsed = 0.0
    health = HealthState(sync_period=30.0, clock=lambda: elapsed, wall=time.time)
    servers = make(healthy=lambda: health.healthy)
    port = open_port(servers, "10.0.0.1")
    health.node_changed(None)
    health.updated(V4)
    health.queued(V4)
    assert servers.request(port)[0] == 200
    elapsed = 60.0
    assert servers.request(port)[0] == 503
    health.taken(V4)
    health.updated(V4)
    assert servers.request(port)[0] == 200


def test_without_free_descriptors_the_oldest_connection_is_closed() -> None:
    class Starved(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            raise OSError(errno.EMFILE, "Too many open files")

    handler = HttpHandler(lambda _request: None)
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        listener = stack.enter_context(taken())
        connections = ClientConnections(selector, ClientLimits())
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        listener.settimeout(0)
        connections.accept(listener, handler)
        assert connections.deadline() < math.inf
        starved = stack.enter_context(Starved())
        connections.accept(starved, handler)
        assert connections.deadline() == math.inf
        assert closed(client) < 1
        connections.accept(starved, handler)
