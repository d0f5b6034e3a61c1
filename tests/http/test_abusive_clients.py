"""Abusive clients of svcproxy's HTTP servers: memory, log and probes. The servers run in a process."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from svcproxy.limits import HTTP_CONNECTIONS_PER_PEER
from testbed.waiting import eventually

PROGRAM = """
import json, signal, threading, time
from svcproxy.observe import debug
from svcproxy.observe.health import HealthState
from svcproxy.observe.metrics import Metrics
from svcproxy.observe.pages import health_server, metrics_server
from svcproxy.config.parsing import Bind

metrics = Metrics()
health = HealthState(sync_period=30.0, clock=time.monotonic, wall=time.time, needs_node=False)
servers = [
    health_server(Bind("0.0.0.0", 0), health, metrics),
    metrics_server(Bind("0.0.0.0", 0), metrics, "nftables", debug=debug.routes(print)),
]
for server in servers:
    server.start()
print(json.dumps([server.address.port for server in servers]), flush=True)
signal.pause()
"""
MB = 1 << 20
READINESS_PROBE = 5.0
"""The timeout of the readiness probe in deploy/daemonset.yaml."""


class ServerProcess:
    """A process with the health and the metrics server."""

    def __init__(self, folder: Path) -> None:
        self.stderr = folder / "stderr"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=stderr
            )
        assert self.process.stdout is not None
        self.health, self.metrics = json.loads(self.process.stdout.readline())
        self.get(self.metrics, "/metrics")  # imports what a page needs

    def get(self, port: int, path: str) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client:
            client.request("GET", path)
            response = client.getresponse()
            return response.status, response.read()

    def refused(self, limit: str) -> float:
        name = f'svcproxy_refused_inputs_total{{input="http",limit="{limit}"}} '
        text = self.get(self.metrics, "/metrics")[1].decode()
        return next(float(line[len(name) :]) for line in text.splitlines() if name in line)

    @property
    def peak(self) -> int:
        """The peak memory of the process, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) * 1024

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[ServerProcess]:
    with closing(ServerProcess(tmp_path)) as made:
        yield made


def abusive_client(port: int, source: str = "127.0.0.2") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10, source_address=(source, 0))


def send_all(client: socket.socket, pieces: list[bytes]) -> None:
    try:
        for piece in pieces:
            client.sendall(piece)
    except OSError:
        return


@pytest.mark.parametrize("number", [64, 1000])
def test_unfinished_requests_with_6_mb_of_headers(
    server_process: ServerProcess, number: int
) -> None:
    before = server_process.peak
    line = b"a" * 65_000 + b": b\r\n"
    pieces = [b"GET /healthz HTTP/1.1\r\n", *[line] * 95]
    longest = 0.0
    with ExitStack() as stack:
        clients = []
        for index in range(number):
            client = abusive_client(server_process.health, f"127.0.{1 + index % 50}.2")
            clients.append(stack.enter_context(client))
            send_all(client, pieces[:2])
        threads = [threading.Thread(target=send_all, args=(c, pieces[2:])) for c in clients[-64:]]
        for thread in threads:
            thread.start()
        for _ in range(20):
            begin = time.monotonic()
            assert server_process.get(server_process.health, "/livez")[0] == 200
            longest = max(longest, time.monotonic() - begin)
        for thread in threads:
            thread.join()
        assert server_process.peak - before < 6 * MB
        assert longest < READINESS_PROBE
    assert server_process.refused("header_bytes") >= 64
    assert server_process.stderr.read_bytes() == b""


def test_a_content_length_of_5000_digits_is_counted_and_not_logged(
    server_process: ServerProcess,
) -> None:
    request = b"PUT /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"
    for _ in range(100):
        with abusive_client(server_process.metrics) as client:
            client.sendall(request)
            assert client.recv(64).startswith(b"HTTP/1.1 400 ")
    assert server_process.refused("malformed") == 100
    assert server_process.stderr.read_bytes() == b""


def test_one_client_address_does_not_use_up_all_connections(server_process: ServerProcess) -> None:
    with (
        ExitStack() as stack,
        closing(http.client.HTTPConnection("127.0.0.1", server_process.health, timeout=10)) as kept,
    ):
        kept.request("GET", "/livez")
        assert kept.getresponse().read()
        local = kept.sock.getsockname()
        for _ in range(200):
            stack.enter_context(abusive_client(server_process.health))
        eventually(
            lambda: (
                server_process.refused("connections_per_peer") == 200 - HTTP_CONNECTIONS_PER_PEER
            ),
            "the end of all but one client's share",
        )
        kept.request("GET", "/livez")
        assert kept.getresponse().read()
        assert kept.sock.getsockname() == local


def test_probes_do_not_wait_for_slow_pages(server_process: ServerProcess) -> None:
    """A profile of 30 s occupies one worker, scrapes the others; a probe has 10 s."""

    def profiling() -> bool:
        page = server_process.get(server_process.metrics, "/debug/pprof/profile?seconds=0")[1]
        return b"a profile is being taken" in page

    with abusive_client(server_process.metrics) as client:
        client.sendall(b"GET /debug/pprof/profile?seconds=30 HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(profiling, "the profile")
        scrapes = [
            threading.Thread(target=server_process.get, args=(server_process.metrics, "/metrics"))
            for _ in range(10)
        ]
        for thread in scrapes:
            thread.start()
        for _ in range(20):
            assert server_process.get(server_process.metrics, "/healthz")[0] == 200
        assert profiling()
        for thread in scrapes:
            thread.join()


def test_pipelined_requests_do_not_delay_other_clients(server_process: ServerProcess) -> None:
    with abusive_client(server_process.health) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        assert server_process.get(server_process.health, "/livez")[0] == 200
        answers = b""
        while answers.count(b"HTTP/1.1 200 OK") < 100:
            piece = client.recv(65536)
            assert piece
            answers += piece
