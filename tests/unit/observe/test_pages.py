"""The pages of both ports, requested over real sockets."""

import gzip
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from svcproxy.config import Config, ProxyMode, flags_of
from svcproxy.config.parsing import Bind
from svcproxy.observe import debug
from svcproxy.observe.health import HealthState
from svcproxy.observe.http_server import HttpServer
from svcproxy.observe.metrics import Metrics
from svcproxy.observe.pages import Effective, health_server, metrics_server
from svcproxy.ui.routes import UserInterface
from tests.fakes.compatibility import rows

ANY = Bind("127.0.0.1", 0)
OPENMETRICS = "application/openmetrics-text;version=1.0.0,application/json;q=0.1"
# The headers of Prometheus, which prefers OpenMetrics
PROMETHEUS = (
    (
        "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;"
        "q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    ),
    (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
        "application/openmetrics-text;version=0.0.1;q=0.4,"
        "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    ),
)


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Ports:
    """Both servers, with all pages."""

    def __init__(self) -> None:
        self.metrics = Metrics(ProxyMode.NFTABLES)
        self.metrics.network_programming_duration.labels("IPv4")
        health = HealthState(sync_period=30.0, clock=time.monotonic, wall=time.time)
        self.verbosity: list[int] = []
        effective = Effective(
            flags=lambda: flags_of(Config(verbosity=3)),
            configuration=lambda: {"kind": "KubeProxyConfiguration", "mode": "nftables"},
        )
        self.servers = {
            "health": health_server(ANY, health, self.metrics),
            "metrics": metrics_server(
                ANY,
                self.metrics,
                ProxyMode.NFTABLES,
                effective=effective,
                debug=debug.routes(self.verbosity.append),
                ui=UserInterface(None, health.healthz, "node1").routes,
            ),
        }

    def ask(
        self,
        path: str,
        method: str = "GET",
        *,
        port: str = "metrics",
        body: str | None = None,
        **headers: str,
    ) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        address = self.servers[port].address
        with closing(http.client.HTTPConnection(address.host, address.port, timeout=10)) as client:
            client.request(method, path, body, named)
            with client.getresponse() as response:
                return Answer(response.status, dict(response.getheaders()), response.read())

    def json(self, path: str, accept: str) -> dict[str, Any]:
        answer = self.ask(path, accept=accept)
        assert answer.status == 200
        parsed: dict[str, Any] = json.loads(answer.body)
        return parsed


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    made = Ports()
    for server in made.servers.values():
        server.start()
    yield made
    for server in made.servers.values():
        server.stop()


@pytest.mark.parametrize(("path", "port", "here"), rows("Endpoints", columns=3))
def test_every_endpoint_of_the_table(ports: Ports, path: str, port: str, here: str) -> None:
    query = "?seconds=0" if path.endswith("/profile") else ""
    status = ports.ask(path + query, port=port).status
    assert (status == 404) is here.startswith("not applicable")


def test_without_profiling_there_are_no_debug_pages(ports: Ports) -> None:
    server = metrics_server(ANY, ports.metrics, "iptables")
    assert not [path for path in server.paths if "debug" in path]


def test_the_configuration_in_force(ports: Ports) -> None:
    answer = ports.ask("/configz")
    assert answer.headers["Content-Type"] == "application/json"
    wanted = {"kind": "KubeProxyConfiguration", "mode": "nftables"}
    assert json.loads(answer.body) == {"kubeproxy.config.k8s.io": wanted}


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "text/html;q=0.9, text/*;q=0.1"])
@pytest.mark.parametrize(("path", "line"), [("/flagz", "v=3"), ("/statusz", "Emulation version:")])
def test_status_pages_are_text_by_default(ports: Ports, accept: str, path: str, line: str) -> None:
    answer = ports.ask(path, accept=accept)
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.text.startswith(f"\nkube-proxy {path[1:]}\n")
    assert any(one.startswith(line) for one in answer.text.splitlines())


@pytest.mark.parametrize(("path", "kind"), [("/flagz", "Flagz"), ("/statusz", "Statusz")])
@pytest.mark.parametrize("version", ["v1beta1", "v1alpha1"])
def test_status_pages_are_objects_on_request(
    ports: Ports, path: str, kind: str, version: str
) -> None:
    parameters = f"g=config.k8s.io;v={version};as={kind}"
    page = ports.json(path, f"application/json;v={version};as={kind};g=config.k8s.io")
    assert (page["kind"], page["apiVersion"]) == (kind, f"config.k8s.io/{version}")
    assert page["metadata"] == {"name": "kube-proxy"}
    answer = ports.ask(path, accept=f"application/yaml;{parameters}, text/plain;q=0.1")
    assert answer.headers["Content-Type"] == f"application/yaml;{parameters}"
    assert ("Warning" in answer.headers) is (version == "v1alpha1")
    again = yaml.safe_load(answer.body)
    volatile = {"uptimeSeconds"}
    assert {k: v for k, v in again.items() if k not in volatile} == {
        k: v for k, v in page.items() if k not in volatile
    }


def test_the_content_of_the_objects(ports: Ports) -> None:
    accept = "application/json;g=config.k8s.io;v=v1beta1;as="
    flags = ports.json("/flagz", accept + "Flagz")["flags"]
    assert flags["healthz-bind-address"] == "0.0.0.0:10256"
    assert flags["iptables-sync-period"] == "30s"
    status = ports.json("/statusz", accept + "Statusz")
    assert status["emulationVersion"] == "1.36"
    assert status["uptimeSeconds"] >= 0
    assert status["paths"] == ["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"]


@pytest.mark.parametrize("path", ["/flagz", "/statusz"])
@pytest.mark.parametrize(
    "accept",
    [
        "application/json",
        "text/html",
        "application/json;g=config.k8s.io;v=v1beta1;as=Podz",
        "application/json;g=config.k8s.io;v=v2;as=Flagz, application/yaml;as=Statusz",
        "text/plain;q=0",
    ],
)
def test_unsupported_versions_are_refused_as_by_the_api_server(
    ports: Ports, path: str, accept: str
) -> None:
    answer = ports.ask(path, accept=accept)
    refusal = json.loads(answer.body)
    assert (answer.status, refusal["code"], refusal["reason"]) == (406, 406, "NotAcceptable")


def test_healthz_of_the_metrics_port_is_counted(ports: Ports) -> None:
    assert ports.ask("/metrics/slis", "DELETE").text == "metrics reset\n"
    assert "kubernetes_healthcheck{" not in ports.ask("/metrics/slis").text
    assert ports.ask("/healthz?verbose").text == "[+]ping ok\nhealthz check passed\n"
    excluded = ports.ask("/healthz?verbose=1&exclude=ping").text
    assert excluded == "[+]ping excluded: ok\nhealthz check passed\n"
    assert ports.ask("/healthz/ping").text == "ok"
    text = ports.ask("/metrics/slis").text
    assert 'kubernetes_healthcheck{name="ping",type="healthz"} 1\n' in text
    line = 'kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 3\n'
    assert line in text
    assert "# HELP kubernetes_healthchecks_total [STABLE] " in text
    assert "\nprocess_start_time_seconds 1" in text


@pytest.mark.parametrize("path", ["/metrics", "/metrics/slis"])
def test_a_scrape_in_either_format_can_be_parsed(ports: Ports, path: str) -> None:
    plain = ports.ask(path)
    assert plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    started = int(plain.headers["Process-Start-Time-Unix"])
    assert 0 <= time.time() - started < 86400
    names = {family.name for family in text_string_to_metric_families(plain.text)}
    modern = ports.ask(path, accept=OPENMETRICS)
    kind = modern.headers["Content-Type"]
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert modern.text.endswith("# EOF\n")
    families = openmetrics_families(modern.text)  # type: ignore[no-untyped-call]
    assert {family.name for family in families} == names
    assert "_created" not in plain.text + modern.text


@pytest.mark.parametrize(
    "accept",
    [
        *PROMETHEUS,
        "",
        "*/*",
        "text/html",
        "text/plain",
        "application/openmetrics-text;version=one",
        "application/openmetrics-text;q=0",
    ],
)
def test_clients_that_accept_text_get_kube_proxy_s_bucket_names(ports: Ports, accept: str) -> None:
    answer = ports.ask("/metrics", accept=accept)
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="1"} 0\n' in (
        answer.text
    )


@pytest.mark.parametrize(("accept", "is_text"), [("", True), (OPENMETRICS, False)])
def test_a_scrape_is_compressed_on_request(ports: Ports, accept: str, *, is_text: bool) -> None:
    answer = ports.ask("/metrics", accept=accept, accept_encoding="deflate, gzip;q=0.5")
    assert answer.headers["Content-Encoding"] == "gzip"
    text = gzip.decompress(answer.body).decode()
    assert text.endswith("# EOF\n") is not is_text
    for encoding in ("identity", "gzip;q=0", "br"):
        plain = ports.ask("/metrics", accept=accept, accept_encoding=encoding)
        assert "Content-Encoding" not in plain.headers
        assert b"svcproxy_build_info" in plain.body


def test_the_verbosity_can_be_put(ports: Ports) -> None:
    assert ports.ask("/debug/flags/v").status == 406
    answer = ports.ask("/debug/flags/v", "PUT", body="4")
    assert (answer.status, ports.verbosity) == (200, [4])
    for wrong in ("", "x", "-1", "4" * 20):
        assert ports.ask("/debug/flags/v", "PUT", body=wrong).status == 400
    assert ports.ask("/debug/flags/v", "PUT", body="1" * 100_000).status == 413
    assert ports.verbosity == [4]
    assert ports.ask("/debug/flags/x").status == 404


def test_the_stacks_of_threads(ports: Ports) -> None:
    release = threading.Event()
    thread = threading.Thread(target=stand_still, args=(release,), name="a-thread-that-waits")
    thread.start()
    try:
        stacks = ports.ask("/debug/pprof/goroutine?debug=2").text
        assert "thread a-thread-that-waits:\n" in stacks
        assert "in stand_still" in stacks
        folded = ports.ask("/debug/pprof/profile?seconds=0.1").text.splitlines()
        mine = next(line for line in folded if line.startswith("a-thread-that-waits;"))
        assert "stand_still;" in mine
        assert int(mine.rpartition(" ")[2]) >= 1
    finally:
        release.set()
        thread.join()


def stand_still(until: threading.Event) -> None:
    until.wait()


def test_other_debug_pages(ports: Ports) -> None:
    moved = ports.ask("/debug/pprof")
    assert (moved.status, moved.headers["Location"]) == (302, "/debug/pprof/")
    assert "goroutine" in ports.ask("/debug/pprof/").text
    assert ports.ask("/debug/pprof/heap").text == "Unknown profile\n"
    assert b"python" in ports.ask("/debug/pprof/cmdline").body
    assert ports.ask("/debug/pprof/profile?seconds=soon").status == 400


def test_all_servers_have_distinct_names(ports: Ports) -> None:
    assert all(isinstance(server, HttpServer) for server in ports.servers.values())
    assert ports.ask("/metrics", port="health").status == 404
    assert ports.ask("/livez").status == 404
