"""The daemon's HTTP servers for various flags, over real sockets."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from svcproxy import servers
from svcproxy.config import Config, ProxyMode
from svcproxy.config.export import as_document
from svcproxy.config.parsing import Bind
from svcproxy.kube.event_recorder import LoggingRecorder
from svcproxy.observe.health import HealthState
from svcproxy.observe.http_server import BindError
from svcproxy.observe.log import Verbosity
from svcproxy.observe.metrics import Metrics
from svcproxy.servers import Servers
from testbed.waiting import eventually


class Event(NamedTuple):
    reason: str
    note: str
    warning: bool
    action: str


class Recorder(LoggingRecorder):
    """Records events about the node."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def node(
        self, reason: str, note: str, *, warning: bool = False, action: str = "StartKubeProxy"
    ) -> None:
        self.events.append(Event(reason, note, warning, action))


def free_address() -> Bind:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return Bind("127.0.0.1", sock.getsockname()[1])


@pytest.fixture
def config() -> Config:
    return Config(
        proxy_mode=ProxyMode.NFTABLES,
        healthz_bind_address=free_address(),
        metrics_bind_address=free_address(),
    )


@contextmanager
def serving(
    config: Config, recorder: Recorder | None = None, verbosity: Verbosity | None = None
) -> Iterator[Servers]:
    health = HealthState(sync_period=30.0, clock=lambda: 0.0, wall=lambda: 0.0, needs_node=False)
    made = Servers(
        config, Metrics(), health, recorder or Recorder(), verbosity, mode=config.proxy_mode
    )
    try:
        made.start()
        yield made
    finally:
        made.stop()


def get(address: Bind | None, path: str, method: str = "GET", body: str = "") -> tuple[int, bytes]:
    assert address is not None
    with closing(http.client.HTTPConnection(address.host, address.port, timeout=5)) as client:
        client.request(method, path, body or None)
        response = client.getresponse()
        return response.status, response.read()


def answers(address: Bind | None, path: str) -> bool:
    try:
        return get(address, path)[0] == 200
    except ConnectionError:
        return False


def test_the_effective_configuration_is_served(config: Config) -> None:
    with serving(config):
        page: dict[str, Any] = json.loads(get(config.metrics_bind_address, "/configz")[1])
        assert page == {"kubeproxy.config.k8s.io": as_document(config)}
        _, flags = get(config.metrics_bind_address, "/flagz")
        assert b"\nproxy-mode=nftables\n" in flags
        assert get(config.metrics_bind_address, "/proxyMode") == (200, b"nftables")
        assert get(config.healthz_bind_address, "/healthz")[0] == 200


def test_the_verbosity_can_be_changed_with_profiling_only(config: Config) -> None:
    verbosity = Verbosity(0)
    with serving(config, verbosity=verbosity):
        assert get(config.metrics_bind_address, "/debug/flags/v", "PUT", "2")[0] == 200
        assert verbosity.debug
        assert get(config.metrics_bind_address, "/debug/flags/v", "PUT", "1")[0] == 200
        assert not verbosity.debug
    with serving(config):
        assert get(config.metrics_bind_address, "/debug/flags/v", "PUT", "2")[0] == 404


def test_no_address_is_no_server(config: Config) -> None:
    with serving(Config(healthz_bind_address=None, metrics_bind_address=None)):
        for address in (config.healthz_bind_address, config.metrics_bind_address):
            with pytest.raises(ConnectionRefusedError):
                get(address, "/healthz")


def test_ports_in_use_are_reported_by_events_and_retried(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_RETRY_SECONDS", 0.05)
    recorder = Recorder()
    with serving(config):
        taking_over = serving(config, recorder)
        taking_over.__enter__()
    health, metrics = recorder.events
    assert health.reason == "FailedToStartProxierHealthcheck"
    assert metrics.reason == "FailedToStartMetricServer"
    for event, address in (
        (health, config.healthz_bind_address),
        (metrics, config.metrics_bind_address),
    ):
        assert (event.warning, event.action) == (True, "StartKubeProxy")
        assert f" on {address}: the port is in use; " in event.note
    eventually(lambda: answers(config.healthz_bind_address, "/livez"), "health")
    eventually(lambda: answers(config.metrics_bind_address, "/healthz"), "metrics")
    assert len(recorder.events) == 2
    taking_over.__exit__(None, None, None)


@pytest.mark.parametrize("port", ["health", "metrics"])
def test_a_port_in_use_can_be_fatal(config: Config, port: str) -> None:
    strict = replace(config, bind_address_hard_fail=True)
    bind = strict.healthz_bind_address if port == "health" else strict.metrics_bind_address
    assert bind is not None
    with (
        socket.create_server(bind),
        pytest.raises(BindError, match=str(bind)),
        serving(strict),
    ):
        pass
