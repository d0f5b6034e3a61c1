"""The routes of ``/ui``, requested over real sockets from a server with a real page process."""

import http.client
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from svcproxy.config import ProxyMode
from svcproxy.config.parsing import Bind
from svcproxy.limits import UI_QUERY_CHARACTERS
from svcproxy.observe.health import ProbeResult
from svcproxy.observe.metrics import Metrics
from svcproxy.observe.pages import metrics_server
from svcproxy.ui.process import PageProcess, command
from svcproxy.ui.routes import HEADERS, UserInterface

ECHO = """
import socket
from svcproxy.ui.channel import receive, send
from svcproxy.ui.core.messages import Page, PageQuery
channel = socket.socket(fileno=0)
while True:
    query = receive(channel, PageQuery, 60)
    if query.query.get("find") == "hang": receive(channel, PageQuery, 60)
    if query.query.get("find") == "defect": send(channel, Page(500, b"", "Traceback"), 60)
    else: send(channel, Page(200, repr((query.path, query.query, query.health)).encode()), 60)
"""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    text: str


class Site:
    """A metrics server with the pages."""

    def __init__(self, process: PageProcess | None) -> None:
        pages = UserInterface(process, lambda: ProbeResult(503, b'{"healthy":false}'), "Node1")
        self._pages = pages
        self.process = process
        self.server = metrics_server(
            Bind("127.0.0.1", 0), Metrics(ProxyMode.NFTABLES), "nftables", ui=pages.routes
        )
        self.server.start()

    def ask(self, path: str, method: str = "GET", host: str = "localhost") -> Answer:
        address = self.server.address
        with closing(http.client.HTTPConnection(address.host, address.port, timeout=60)) as client:
            client.request(method, path, headers={"Host": host})
            with client.getresponse() as response:
                return Answer(
                    response.status, dict(response.getheaders()), response.read().decode()
                )

    def close(self) -> None:
        self._pages.stop()
        self.server.stop()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site(PageProcess([sys.executable, "-c", ECHO], 60.0))
    yield made
    made.close()


def test_a_page_is_what_the_process_rendered_with_known_parameters_only(site: Site) -> None:
    answer = site.ask("/ui/?find=%3Cb%3E&page=2&evil=1&find=x")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.text == repr(("", {"find": "<b>", "page": "2"}, b'{"healthy":false}'))


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/service?name=a/b", "/ui/style.css", "/ui/no"])
def test_every_answer_has_the_security_headers(site: Site, path: str) -> None:
    headers = site.ask(path).headers
    assert HEADERS.items() <= headers.items()
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["Cache-Control"] == "no-store"


def test_the_folder_is_redirected_to_relatively(site: Site) -> None:
    answer = site.ask("/ui")
    assert (answer.status, answer.headers["Location"]) == (307, "ui/")


def test_a_head_has_no_body(site: Site) -> None:
    answer = site.ask("/ui/", "HEAD")
    assert (answer.status, answer.text) == (200, "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/style.css"])
def test_pages_can_only_be_read(site: Site, path: str, method: str) -> None:
    answer = site.ask(path, method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["/ui/nothing", "/ui/../metrics", "/ui/%2e%2e/", "/ui/a/b", "/uix"]
)
def test_other_paths_do_not_exist(site: Site, path: str) -> None:
    assert site.ask(path).status == 404


def test_a_parameter_has_a_limit(site: Site) -> None:
    assert site.ask("/ui/?find=" + "a" * UI_QUERY_CHARACTERS).status == 200
    assert site.ask("/ui/?find=" + "a" * (UI_QUERY_CHARACTERS + 1)).status == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:10249", 200),
        ("127.0.0.1:10249", 200),
        ("192.0.2.7", 200),
        ("[::1]:10249", 200),
        ("node1:10249", 200),
        ("attacker.example", 421),
        ("127.0.0.1.attacker.example:10249", 421),
        ("node1.attacker.example", 421),
        ("localhost.attacker.example", 421),
        ("[::1.attacker.example]", 421),
    ],
)
def test_a_web_site_cannot_use_a_host_name_of_its_own(site: Site, host: str, status: int) -> None:
    assert site.ask("/ui/", host=host).status == status


def test_a_defect_is_a_page_with_status_500(site: Site) -> None:
    assert site.ask("/ui/?find=defect").status == 500


def test_statusz_lists_kube_proxys_pages_only(site: Site) -> None:
    assert "/ui" not in site.ask("/statusz").text


def test_a_page_that_hangs_delays_no_other_page() -> None:
    site = Site(PageProcess([sys.executable, "-c", ECHO], 1000.0))

    def hang() -> None:
        with suppress(OSError, http.client.HTTPException):
            site.ask("/ui/?find=hang")

    hanging = [threading.Thread(target=hang, daemon=True) for _ in range(5)]
    try:
        for thread in hanging:
            thread.start()
        for path in ("/healthz", "/metrics", "/metrics/slis", "/statusz"):
            assert site.ask(path).status == 200, path
        assert any(thread.is_alive() for thread in hanging)
    finally:
        site.close()
        for thread in hanging:
            thread.join(0)


def test_a_process_that_takes_too_long_is_an_error_page() -> None:
    site = Site(PageProcess([sys.executable, "-c", ECHO], 2.0))
    try:
        answer = site.ask("/ui/?find=hang")
        assert answer.status == 503
        assert "took longer than 2 s" in answer.text
        assert HEADERS.items() <= answer.headers.items()
    finally:
        site.close()


def test_without_an_admin_socket_there_is_no_page_but_a_reason() -> None:
    site = Site(None)
    try:
        answer = site.ask("/ui/")
        assert answer.status == 503
        assert "--svcproxy-admin-socket" in answer.text
        assert site.ask("/ui/style.css").status == 200
    finally:
        site.close()


def test_the_real_process_says_why_the_daemon_cannot_be_asked(tmp_path: Path) -> None:
    site = Site(PageProcess(command(str(tmp_path / "<none>")), 60.0))
    try:
        answer = site.ask("/ui/")
        assert answer.status == 503
        assert "no daemon" in answer.text
        assert "&lt;none&gt;" in answer.text
        assert "<none>" not in answer.text
    finally:
        site.close()
