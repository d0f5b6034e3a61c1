"""The pages of a real daemon, over HTTP and in a real browser."""

import http.client
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from svcproxy.admin.client import AdminClient
from svcproxy.ui.core.node import Health
from svcproxy.ui.core.overview import overview
from svcproxy.ui.core.rows import Trouble
from svcproxy.ui.node_reader import NodeReader
from svcproxy.ui.routes import HEADERS
from testbed import netns
from testbed.browser import Browser
from testbed.cluster import Host
from testbed.daemon import METRICS_PORT, Daemon
from testbed.manifests import ManifestFolder
from testbed.netns import NetNS
from testbed.screenshots import objects
from testbed.waiting import PATIENCE, eventually

pytestmark = pytest.mark.kernel

PODS = ["10.244.1.2", "10.244.1.3", "10.244.1.4"]
SITE = f"http://127.0.0.1:{METRICS_PORT}/ui"


class Answer(NamedTuple):
    status: int
    text: str
    seconds: float


class Node:
    """A node with a daemon, without a network."""

    def __init__(self, space: NetNS, folder: Path, **flags: str) -> None:
        self.space = space
        netns.ip_batch(["link set lo up"], netns=space.name)
        ManifestFolder(folder).put(*objects(PODS))
        self.host = Host("node1", space, "127.0.0.1", "::1")
        self.daemon = Daemon(self.host, folder, flags={"proxy-mode": "nftables", **flags})

    def __enter__(self) -> Self:
        self.daemon.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.daemon.close()
        self.host.close()

    def ask(self, path: str, source: str = "127.0.0.1") -> Answer:
        def ask() -> Answer:
            began = time.monotonic()
            client = http.client.HTTPConnection(
                "127.0.0.1", METRICS_PORT, timeout=60, source_address=(source, 0)
            )
            with closing(client):
                client.request("GET", path)
                with client.getresponse() as response:
                    text = response.read().decode()
                    return Answer(response.status, text, time.monotonic() - began)

        return self.space.call(ask)

    def page_processes(self) -> list[int]:
        """The page processes of the daemon, zombies included."""
        found = Path(f"/proc/{self.daemon.pid}/task").glob("*/children")
        children = [int(pid) for file in found for pid in file.read_text().split()]
        return [pid for pid in children if _is_python(pid)]


def _is_python(pid: int) -> bool:
    """Whether a child is Python: the daemon also runs iptables. A zombie has kept its name."""
    try:
        return "python" in Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return False


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    space = NetNS(f"svp-ui-{os.getpid()}")
    netns.ip_batch([f"netns add {space.name}"])
    try:
        with Node(space, tmp_path_factory.mktemp("manifests")) as made:
            yield made
    finally:
        netns.remove([space.name])


def test_the_overview_shows_the_state_of_the_node(node: Node) -> None:
    answer = node.ask("/ui/")
    assert answer.status == 200
    for expected in ("node1", "Healthy", "Up to date", "Kernel agrees", "shop/", "reports"):
        assert expected in answer.text
    assert "203.0.113.7:80/tcp is served by the older Service edge/front" in answer.text


def test_the_page_of_a_service_has_its_endpoints_and_kernel_objects(node: Node) -> None:
    answer = node.ask("/ui/service?name=shop/orders")
    assert answer.status == 200
    for expected in (
        "10.244.1.2:8080",
        "terminating while others serve",
        "add element ip svcproxy",
    ):
        assert expected in answer.text
    assert node.ask("/ui/service?name=shop/none").status == 404


def test_a_trace_says_what_the_node_does_and_whether_the_kernel_agrees(node: Node) -> None:
    answer = node.ask("/ui/trace?from=10.244.1.9&to=shop/orders:80")
    assert answer.status == 200
    for expected in ("Delivered", "10.244.2.7:8080", "The kernel's rules agree", "not ready"):
        assert expected in answer.text
    refused = node.ask("/ui/trace?from=10.244.1.9&to=shop/reports:80")
    assert "Refused" in refused.text
    assert "Not traced" not in node.ask("/ui/trace").text


@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ("from=outside&to=nonsense", 400, "has no port"),
        ("from=default/pod&to=shop/orders:80", 400, "does not look up pods"),
        ("from=outside&to=shop/none:80", 404, "shop/none"),
        ("to=shop/orders:80", 400, "FROM"),
    ],
)
def test_what_cannot_be_traced_has_a_reason(
    node: Node, query: str, status: int, reason: str
) -> None:
    answer = node.ask(f"/ui/trace?{query}")
    assert answer.status == status
    assert "Not traced" in answer.text
    assert reason in answer.text


def test_a_repair_is_on_the_page_with_its_culprit(node: Node) -> None:
    assert "No other program has changed the rules" in node.ask("/ui/").text
    element = "{ 10.96.0.21 . tcp . 80 }"
    node.space.run("nft", "delete", "element", "ip", "svcproxy", "cluster-ips", element)
    eventually(lambda: "<code>nft</code>" in node.ask("/ui/").text, "the repair")
    eventually(lambda: "Kernel agrees" in node.ask("/ui/").text, "the kernel as it was")


def test_what_the_kernel_lacks_is_a_difference(node: Node, space: NetNS) -> None:
    """Another namespace has no rules at all."""
    reader = NodeReader(AdminClient(str(node.daemon.admin_socket)))
    reading = space.call(reader.read)
    assert reading.comparison.differences
    differing = {row.name for row in reading.rows if Trouble.DIFFERS in row.troubles}
    assert {"shop/orders", "shop/reports", "edge/ingress"} <= differing
    html = overview(reader.snapshot(), Health(fit=True), {}).decode()
    assert "kernel differs" in html


def test_a_killed_page_process_is_replaced(node: Node) -> None:
    assert node.ask("/ui/").status == 200
    (pid,) = node.page_processes()
    os.kill(pid, signal.SIGKILL)
    assert node.ask("/ui/").status == 200
    eventually(lambda: len(node.page_processes()) == 1, "one process, and no zombie")
    assert node.page_processes() != [pid]


def test_the_page_process_has_the_lowest_priority(node: Node) -> None:
    node.ask("/ui/")
    (pid,) = node.page_processes()
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 10
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"


def test_a_page_that_hangs_delays_no_probe(node: Node) -> None:
    node.ask("/ui/")
    (pid,) = node.page_processes()
    os.kill(pid, signal.SIGSTOP)
    waiting = threading.Thread(target=lambda: node.ask("/ui/"), daemon=True)
    try:
        waiting.start()
        for _ in range(20):
            for path in ("/healthz", "/proxyMode", "/metrics"):
                answer = node.ask(path)
                assert answer.status == 200
                assert answer.seconds < PATIENCE
        assert waiting.is_alive()
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    waiting.join(60)
    assert not waiting.is_alive()


def test_fifty_clients_at_once_are_served_by_one_process(node: Node) -> None:
    answers: list[Answer] = []

    def ask(number: int) -> None:
        path = ("/ui/", "/ui/service?name=shop/orders", "/ui/?find=web")[number % 3]
        answers.append(node.ask(path, source=f"127.0.1.{number + 1}"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [answer.status for answer in answers] == [200] * 50
    assert len(node.page_processes()) == 1


def test_a_client_that_leaves_is_no_harm(node: Node) -> None:
    def leave() -> None:
        with closing(socket.create_connection(("127.0.0.1", METRICS_PORT))) as client:
            client.sendall(b"GET /ui/ HTTP/1.1\r\nHost: localhost\r\n\r\n")

    for _ in range(30):
        node.space.call(leave)
    assert node.ask("/ui/").status == 200


LINK = re.compile(r'href="([^"#]*)')


def test_a_browser_shows_every_page_without_a_complaint(node: Node) -> None:
    """No violation of the policy, no script, and all links lead to pages."""
    browser = Browser(node.space)
    seen: dict[str, str] = {}
    pages = ("/", "/service?name=edge/ingress", "/trace?from=outside&to=203.0.113.9:443")
    for page in pages:
        found = browser.open(SITE + page)
        assert found.console == ()
        assert "<script" not in found.html
        seen[page] = found.html
    assert "Services in trouble" in seen["/"]
    links = {link.replace("&amp;", "&") for html in seen.values() for link in LINK.findall(html)}
    assert any(link.startswith("service?name=") for link in links)
    for link in sorted(links):
        assert node.ask(f"/ui/{link.removeprefix('./')}").status == 200, link


def test_the_style_sheet_applies_in_light_and_dark(node: Node, tmp_path: Path) -> None:
    """Screenshots differ only if the browser loaded the style sheet and followed the preference."""
    browser = Browser(node.space)
    pictures = {}
    for dark in (False, True):
        file = tmp_path / f"{dark}.png"
        assert browser.screenshot(f"{SITE}/?find=nothing", file, (800, 600), dark=dark) == ()
        pictures[dark] = file.read_bytes()
    assert pictures[False] != pictures[True]


class BrokenPage(BaseHTTPRequestHandler):
    """A page with the headers of the pages, and with what their policy forbids."""

    def do_GET(self) -> None:
        body = b"<p style='color:red'>text</p><script>document.title = 'ran'</script>"
        self.send_response(200)
        for name, value in {**HEADERS, "Content-Type": "text/html"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


def test_the_browser_enforces_the_policy_and_complains(node: Node) -> None:
    """So that its silence about the real pages means something."""
    server = node.space.call(lambda: HTTPServer(("127.0.0.1", 20001), BrokenPage))
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = Browser(node.space).open("http://127.0.0.1:20001/")
        server.shutdown()
    complaints = "\n".join(found.console)
    assert "inline style violates" in complaints
    assert "inline script violates" in complaints
    assert "ran" not in found.html.partition("<script>")[0]


@pytest.mark.parametrize(
    ("mode", "objects_of_a_service"),
    [
        ("iptables", "-A KUBE-SVC-"),
        pytest.param("ipvs", "add KUBE-LOOP-BACK 10.244.1.2", marks=pytest.mark.uml),
    ],
)
def test_the_pages_in_other_modes(
    space: NetNS, tmp_path: Path, mode: str, objects_of_a_service: str
) -> None:
    variant = "legacy" if mode == "ipvs" else "auto"
    flags = {"proxy-mode": mode, "svcproxy-iptables-variant": variant}
    with Node(space, tmp_path, **flags) as node:
        assert "Kernel agrees" in node.ask("/ui/").text
        assert objects_of_a_service in node.ask("/ui/service?name=shop/orders").text
        found = node.ask("/ui/trace?from=10.244.1.9&to=shop/orders:80").text
        assert "The kernel's rules agree" in found


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_ends_leaves_no_page_process(
    space: NetNS, tmp_path: Path, how: signal.Signals
) -> None:
    with Node(space, tmp_path) as node:
        assert node.ask("/ui/").status == 200
        (pid,) = node.page_processes()
        node.daemon.signal(how)
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the end of the page process")


def test_the_pages_can_be_turned_off(space: NetNS, tmp_path: Path) -> None:
    with Node(space, tmp_path, **{"svcproxy-ui": "false"}) as node:
        assert node.ask("/ui/").status == 404
        assert node.page_processes() == []
