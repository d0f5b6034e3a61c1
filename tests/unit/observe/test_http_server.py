import errno
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from svcproxy.config import ProxyMode
from svcproxy.config.parsing import Bind
from svcproxy.model.names import IPFamily
from svcproxy.model.objects import Node
from svcproxy.observe import http_server as observe_http
from svcproxy.observe.client_connections import ClientLimits
from svcproxy.observe.exposition import render
from svcproxy.observe.health import HealthState
from svcproxy.observe.http_server import BindError, HttpServer
from svcproxy.observe.metrics import Metrics
from svcproxy.observe.pages import health_server as make_health_server
from svcproxy.observe.pages import metrics_server
from testbed.waiting import eventually

ANY = Bind("127.0.0.1", 0)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def health() -> HealthState:
    return HealthState(sync_period=30.0, clock=time.monotonic, wall=time.time)


@pytest.fixture
def server(metrics: Metrics) -> Iterator[HttpServer]:
    server = metrics_server(ANY, metrics, ProxyMode.IPTABLES)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def health_server(health: HealthState, metrics: Metrics) -> Iterator[HttpServer]:
    server = make_health_server(ANY, health, metrics)
    server.start()
    yield server
    server.stop()


def get(
    address: Bind, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    with closing(http.client.HTTPConnection(*address, timeout=5)) as connection:
        connection.request(method, path, headers=headers)
        with connection.getresponse() as response:
            return response.status, dict(response.getheaders()), response.read()


def server_threads() -> int:
    return sum(thread.name.startswith("http-") for thread in threading.enumerate())


def wait_until_hung_up(client: socket.socket) -> float:
    """Return how many seconds it takes the server to close ``client``."""
    begun = time.monotonic()
    client.settimeout(5)
    try:
        while client.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - begun


def test_metrics(server: HttpServer, metrics: Metrics) -> None:
    metrics.service_changes.inc(41)
    status, headers, body = get(server.address, "/metrics")
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["Content-Length"] == str(len(body))
    assert b"\nkubeproxy_sync_proxy_rules_service_changes_total 41\n" in body


def test_metrics_with_a_query_and_content_negotiation(server: HttpServer) -> None:
    status, headers, body = get(
        server.address, "/metrics?x=y", Accept="application/openmetrics-text;version=1.0.0"
    )
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(("path", "text"), [("/healthz", b"ok"), ("/proxyMode", b"iptables")])
def test_constant_answers(server: HttpServer, path: str, text: bytes) -> None:
    status, headers, body = get(server.address, path)
    assert (status, body) == (200, text)
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Server"] == "svcproxy"


def test_head_is_get_without_a_body(server: HttpServer) -> None:
    status, headers, body = get(server.address, "/healthz", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "2", b"")


def test_unknown_paths_and_methods(server: HttpServer) -> None:
    assert get(server.address, "/nothing")[0] == 404
    assert get(server.address, "/metrics", "PATCH")[0] == 501
    assert get(server.address, "//[")[0] in {400, 404}


def test_connections_are_kept_alive(server: HttpServer) -> None:
    with closing(http.client.HTTPConnection(*server.address, timeout=5)) as connection:
        for _ in range(3):
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b"ok"
        assert server_threads() == 1


def test_a_body_is_not_taken_for_the_next_request(server: HttpServer) -> None:
    with closing(socket.create_connection(server.address, timeout=5)) as client:
        client.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 31\r\n\r\n"
            b"GET /proxyMode HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        answer = b""
        try:
            while part := client.recv(4096):
                answer += part
        except ConnectionResetError:
            pass
    assert b"iptables" not in answer


def test_healthz_and_livez(
    health_server: HttpServer, health: HealthState, metrics: Metrics
) -> None:
    status, headers, body = get(health_server.address, "/healthz")
    assert (status, json.loads(body)["nodeEligible"]) == (503, False)
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert get(health_server.address, "/livez")[0] == 200
    health.node_changed(Node(name="n1"))
    health.updated(IPFamily.IPV4)
    assert get(health_server.address, "/healthz")[0] == 200

    text = render(metrics.registry).body
    assert b'kubeproxy_proxy_healthz_total{code="503"} 1' in text
    assert b'kubeproxy_proxy_healthz_total{code="200"} 1' in text
    assert b'kubeproxy_proxy_livez_total{code="200"} 1' in text
    assert get(health_server.address, "/metrics")[0] == 404


def test_a_failing_route_is_a_500_and_the_server_continues(
    server: HttpServer, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics.registry, "collect", lambda: 1 / 0)
    monkeypatch.setattr(observe_http._log, "exception", lambda *_, **__: None, raising=False)
    assert get(server.address, "/metrics")[0] == 500
    assert get(server.address, "/healthz")[0] == 200


def test_garbage_and_broken_connections_do_no_harm(
    server: HttpServer, capfd: pytest.CaptureFixture[str]
) -> None:
    for data in (b"", b"\x16\x03\x01\x02\x00", b"GET /healthz HTTP/9.9\r\n\r\n", b"G" * 70000):
        with closing(socket.create_connection(server.address, timeout=5)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(data)
    assert get(server.address, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_slow_client_is_disconnected(metrics: Metrics) -> None:
    server = metrics_server(ANY, metrics, "iptables", limits=ClientLimits(idle=0.1))
    server.start()
    with closing(socket.create_connection(server.address)) as client:
        client.sendall(b"GET /hea")
        assert wait_until_hung_up(client) < 1
    server.stop()


def test_a_trickling_client_is_disconnected(metrics: Metrics) -> None:
    server = metrics_server(ANY, metrics, "iptables", limits=ClientLimits(request=0.2))
    server.start()
    with closing(socket.create_connection(server.address)) as client:
        begun = time.monotonic()
        with pytest.raises(OSError, match=r"."):  # noqa: PT012 - one of many sends fails
            while time.monotonic() < begun + 5:
                client.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() < begun + 3
    server.stop()


def test_idle_connections_do_not_lock_out_probes(health: HealthState, metrics: Metrics) -> None:
    server = make_health_server(ANY, health, metrics, limits=ClientLimits(connections=4))
    server.start()
    idle = [socket.create_connection(server.address) for _ in range(20)]
    begun = time.monotonic()
    assert get(server.address, "/livez")[0] == 200
    assert time.monotonic() - begun < 1
    assert server_threads() <= 6
    for client in idle:
        client.close()
    server.stop()


def test_a_port_in_use_is_one_line_with_a_remedy(server: HttpServer, metrics: Metrics) -> None:
    second = metrics_server(server.address, metrics, ProxyMode.IPTABLES)
    with pytest.raises(BindError) as caught:
        second.start()
    assert str(caught.value) == (
        f"cannot serve metrics on 127.0.0.1:{server.address.port}: the port is in use; stop the "
        "other program, a running kube-proxy perhaps, or choose another address and port with "
        "--metrics-bind-address"
    )
    second.stop()
    assert get(server.address, "/healthz")[0] == 200


def test_a_port_that_becomes_free_is_served(server: HttpServer, metrics: Metrics) -> None:
    second = metrics_server(server.address, metrics, ProxyMode.NFTABLES)
    failures: list[BindError] = []
    second.start_or_retry(failures.append, every=0.05)
    assert "--metrics-bind-address" in str(failures[0])
    assert get(server.address, "/proxyMode")[2] == b"iptables"
    address = server.address
    server.stop()
    eventually(lambda: answers(address, b"nftables"), "the second server")
    assert len(failures) == 1
    second.stop()


def test_a_free_port_is_served_immediately(metrics: Metrics) -> None:
    server = metrics_server(ANY, metrics, "iptables")
    failures: list[BindError] = []
    server.start_or_retry(failures.append)
    assert get(server.address, "/healthz")[0] == 200
    assert failures == []
    server.stop()


def test_stop_ends_the_retries(server: HttpServer, metrics: Metrics) -> None:
    second = metrics_server(server.address, metrics, "nftables")
    second.start_or_retry(lambda _: None, every=0.02)
    second.stop()
    address = server.address
    server.stop()
    eventually(
        lambda: not any("metrics-retry" in thread.name for thread in threading.enumerate()),
        "the end of the attempts",
    )
    with pytest.raises(ConnectionRefusedError):
        get(address, "/proxyMode")


def answers(address: Bind, mode: bytes) -> bool:
    try:
        return get(address, "/proxyMode")[2] == mode
    except ConnectionRefusedError:
        return False


def test_an_address_of_another_node(health: HealthState, metrics: Metrics) -> None:
    server = make_health_server(Bind("192.0.2.1", 10256), health, metrics)
    with pytest.raises(BindError) as caught:
        server.start()
    message = str(caught.value)
    assert message.startswith("cannot serve health checks on 192.0.2.1:10256: this node has no")
    assert message.endswith("--healthz-bind-address")


def test_other_bind_errors_quote_the_system(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(observe_http, "open_listen_socket", refuse)
    with pytest.raises(BindError, match=r"Too many open files; or choose another"):
        metrics_server(ANY, metrics, "iptables").start()


def test_stop_is_quick_and_disconnects_all_clients(metrics: Metrics) -> None:
    server = metrics_server(ANY, metrics, "iptables")
    server.start()
    clients = [socket.create_connection(server.address) for _ in range(10)]
    assert get(server.address, "/healthz")[0] == 200
    begun = time.monotonic()
    server.stop()
    assert time.monotonic() - begun < 0.5
    for client in clients:
        assert wait_until_hung_up(client) < 1
        client.close()
    assert server_threads() == 0
    server.stop()


def test_stop_right_after_start_and_before_it(metrics: Metrics) -> None:
    for _ in range(20):
        server = metrics_server(ANY, metrics, "iptables")
        server.stop()
        server.start()
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 0.5


def test_a_restart_binds_the_same_port_immediately(metrics: Metrics) -> None:
    server = metrics_server(ANY, metrics, "iptables")
    server.start()
    address = server.address
    with closing(http.client.HTTPConnection(*address, timeout=5)) as connection:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok"
        server.stop()  # the server closes first: its side stays in TIME_WAIT
    again = metrics_server(address, metrics, "iptables")
    again.start()
    assert get(again.address, "/healthz")[0] == 200
    again.stop()


def test_ipv6(metrics: Metrics) -> None:
    server = metrics_server(Bind("::1", 0), metrics, "iptables")
    server.start()
    assert str(server.address).startswith("[::1]:")
    assert get(server.address, "/healthz")[0] == 200
    server.stop()


@pytest.mark.parametrize("unspecified", ["::", "0.0.0.0"])
def test_all_addresses_are_those_of_both_families(metrics: Metrics, unspecified: str) -> None:
    server = metrics_server(Bind(unspecified, 0), metrics, "iptables")
    server.start()
    for host in ("::1", "127.0.0.1"):
        assert get(Bind(host, server.address.port), "/healthz")[0] == 200
    server.stop()


@pytest.mark.parametrize("target", ["/metrics", "/metrics?x=y", "/metrics#z", "http://x/metrics"])
def test_probes_do_not_wait_for_slow_pages(
    server: HttpServer, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow() -> Iterator[object]:
        begun.set()
        release.wait(10)
        return iter(())

    monkeypatch.setattr(metrics.registry, "collect", slow)
    with closing(socket.create_connection(server.address, timeout=5)) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert begun.wait(5)
        for path in ("/healthz", "/proxyMode", "/nothing"):
            get(server.address, path)
        release.set()
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


def test_stop_does_not_wait_for_a_slow_page(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = metrics_server(ANY, metrics, "iptables")
    server.start()
    begun, release = threading.Event(), threading.Event()

    def slow() -> Iterator[object]:
        begun.set()
        release.wait(10)
        return iter(())

    monkeypatch.setattr(metrics.registry, "collect", slow)
    with closing(socket.create_connection(server.address, timeout=5)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert begun.wait(5)
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 0.5
        assert wait_until_hung_up(client) < 1
    release.set()
    eventually(lambda: server_threads() == 0, "the end of the page")
