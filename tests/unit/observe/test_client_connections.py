"""Limits of client connections, and eviction beyond them, over socket pairs."""

import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from structlog.testing import capture_logs

from svcproxy.observe.client_connections import ClientConnections, ClientLimits, HttpHandler, _peer
from svcproxy.observe.core.http1 import HttpRequest
from svcproxy.observe.core.routes import TEXT, Reply
from svcproxy.refusals import REFUSALS

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


class Bench:
    """Client connections over socket pairs; the test has the clients' ends."""

    def __init__(self, stack: ExitStack, limits: ClientLimits) -> None:
        self._stack = stack
        self.selector = stack.enter_context(selectors.DefaultSelector())
        self.connections = ClientConnections(self.selector, limits)
        self.handler = HttpHandler(lambda _request: Reply(200, TEXT, b"ok"))
        stack.callback(self.connections.close)

    def connect(
        self, peer: bytes, sent: bytes = b"", handler: HttpHandler | None = None
    ) -> socket.socket:
        """Connect as a client with this address that has already sent data."""
        server_end, client_end = socket.socketpair()
        self._stack.enter_context(client_end)
        client_end.settimeout(0)
        if sent:
            client_end.sendall(sent)
        self.connections.add(server_end, peer, handler or self.handler)
        return client_end

    def turn(self) -> None:
        for key, _ in self.selector.select(0):
            self.connections.serve(key.data)
        self.connections.serve_pipelined()
        self.connections.expire()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def count(limit: str) -> int:
    return REFUSALS.totals()["http", limit]


def is_open(client: socket.socket) -> bool:
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True


def test_data_received_before_accept_is_answered_immediately(stack: ExitStack) -> None:
    client = Bench(stack, ClientLimits()).connect(b"a", REQUEST)
    assert client.recv(4096).startswith(OK)


def test_a_client_at_its_limit_evicts_its_own_connection(stack: ExitStack) -> None:
    bench = Bench(stack, ClientLimits(connections=10, per_peer=3))
    before = count("connections_per_peer")
    kept = bench.connect(b"kubelet")
    greedy = [bench.connect(b"flooder") for _ in range(20)]
    assert [is_open(client) for client in greedy] == [False] * 17 + [True] * 3
    assert is_open(kept)
    assert count("connections_per_peer") - before == 17


def test_the_address_with_the_most_connections_loses_one(stack: ExitStack) -> None:
    bench = Bench(stack, ClientLimits(connections=4, per_peer=3))
    before = count("connections")
    kept = bench.connect(b"kubelet")
    greedy = [bench.connect(b"flooder") for _ in range(3)]
    late = bench.connect(b"prober", REQUEST)
    assert late.recv(4096).startswith(OK)
    assert [is_open(client) for client in greedy] == [False, True, True]
    assert is_open(kept)
    assert count("connections") - before == 1


def test_among_equals_the_oldest_connection_is_closed(stack: ExitStack) -> None:
    bench = Bench(stack, ClientLimits(connections=3))
    clients = [bench.connect(bytes([number])) for number in range(4)]
    assert [is_open(client) for client in clients] == [False, True, True, True]


def test_an_incomplete_request_is_counted_at_its_time_out(stack: ExitStack) -> None:
    bench = Bench(stack, ClientLimits(request=0.0))
    before = count("request_seconds")
    client = bench.connect(b"a", b"GET /")
    silent = bench.connect(b"b")
    bench.turn()
    assert not is_open(client)
    assert not is_open(silent)
    assert count("request_seconds") - before == 1


def test_one_pipelined_request_is_answered_per_iteration(stack: ExitStack) -> None:
    bench = Bench(stack, ClientLimits())
    client = bench.connect(b"a", REQUEST * 3)
    seen: list[int] = []
    for _ in range(4):
        seen.append(client.recv(4096).count(OK) if len(seen) < 3 else 0)
        bench.turn()
    assert seen == [1, 1, 1, 0]
    assert bench.connections.deadline() > time.monotonic()


def test_an_iteration_serves_a_limited_number_of_pipelining_clients(stack: ExitStack) -> None:
    """Otherwise a new probe would wait until all of them are answered."""
    bench = Bench(stack, ClientLimits())
    answered: list[HttpRequest] = []

    def answer(request: HttpRequest) -> Reply:
        answered.append(request)
        return Reply(200, TEXT, b"ok")

    bench.handler = HttpHandler(answer)
    clients = [bench.connect(bytes([n]), REQUEST * 3) for n in range(60)]
    answered.clear()
    bench.turn()
    assert len(answered) < 10
    for _ in range(60):
        bench.turn()
    assert [client.recv(4096).count(OK) for client in clients] == [3] * 60


def test_a_client_that_reads_nothing_is_not_read_from(stack: ExitStack) -> None:
    bench = Bench(stack, ClientLimits())
    handler = HttpHandler(lambda _request: Reply(200, TEXT, bytes(8_000_000)))
    client = bench.connect(b"a", REQUEST, handler)
    sent = 0
    with suppress(BlockingIOError):
        while sent < 10_000_000:
            sent += client.send(bytes(65536))
            bench.turn()
    assert sent < 10_000_000


def test_a_defect_ends_its_connection_and_is_logged_once(stack: ExitStack) -> None:
    def broken(_request: HttpRequest) -> Reply:
        raise ZeroDivisionError

    bench = Bench(stack, ClientLimits())
    with capture_logs() as lines:
        clients = [bench.connect(b"a", REQUEST, HttpHandler(broken)) for _ in range(10)]
    assert not any(is_open(client) for client in clients)
    assert [line["event"] for line in lines] == ["http.defect"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:0:0:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::1", True),
    ],
)
def test_clients_are_identified_by_address_or_prefix(one: str, other: str, *, same: bool) -> None:
    assert (_peer((one, 1)) == _peer((other, 2))) is same
