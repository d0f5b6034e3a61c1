"""``svcproxy trace`` on manifests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.commands.core.trace_text import final
from svcproxy.explain.core.trace_document import UNREACHABLE, Trace
from svcproxy.main import main
from testbed import manifests as m

MODES = ("iptables", "nftables", "ipvs")
Run = Callable[..., tuple[ExitCode, str]]

WEB = m.service(
    "web",
    ["10.96.0.10", "fd00:10:96::10"],
    [m.port(80, name="http", target=8080, node_port=30080), m.port(53, name="d", protocol="UDP")],
    type="NodePort",
    externalTrafficPolicy="Local",
)
IDLE = m.service("idle", ["10.96.0.11"], [m.port(80)], externalIPs=["203.0.113.9"])
ENDPOINTS = m.endpoint_slice(
    WEB,
    [
        m.endpoint("10.244.1.2", node="node1"),
        m.endpoint("10.244.2.3", node="node2"),
        m.endpoint("10.244.2.4", node="node2", ready=False),
    ],
)
OBJECTS = [
    m.node("node1", addresses=["192.168.50.1", "fd00:192:168:50::1"]),
    m.service_cidr("kubernetes", ["10.96.0.0/16"]),
    WEB,
    IDLE,
    ENDPOINTS,
]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run ``svcproxy trace`` on the objects; return its exit code and its output, or its error."""
    monkeypatch.setattr("os.nice", lambda _: 0)
    m.ManifestFolder(tmp_path / "m").put(*OBJECTS)
    flags = (f"--proxy-mode={mode}", "--cluster-cidr=10.244.0.0/16", "--hostname-override=node1")

    def traced(*arguments: str) -> tuple[ExitCode, str]:
        code = main(["trace", *arguments, "--manifests", str(tmp_path / "m"), "--", *flags])
        out, err = capsys.readouterr()
        assert bool(out) != bool(err)
        return ExitCode(code), out or err

    return traced


def test_steps_of_a_delivered_packet(run: Run, mode: str) -> None:
    code, out = run("10.244.1.7", "default/web:http")
    assert code is ExitCode.OK
    lines = out.splitlines()
    assert lines[0].startswith(f"node1  {mode}  IPv4    manifests")
    rest = "\n".join(lines[1:])
    assert "10.244.1.7 -> 10.96.0.10:80/tcp" in rest
    assert "from a pod (cluster CIDR 10.244.0.0/16 contains it)" in rest
    assert "default/web:http, cluster IP, policy Cluster" in rest
    assert "kept: a pod" in rest
    assert "1/2 each" in rest
    assert "10.244.1.2:8080  this node" in rest
    assert "10.244.2.4:8080  not ready" in rest
    assert lines[-1] == "DELIVERED"


def test_the_document(run: Run, mode: str) -> None:
    code, out = run("outside", "node:30080", "-o", "json")
    document: dict[str, Any] = json.loads(out)
    assert code is ExitCode.OK
    assert (document["kind"], document["apiVersion"]) == ("Trace", "svcproxy.io/v1")
    assert document["node"]["mode"] == mode
    assert document["packet"]["client"] == "outside"
    assert document["frontend"]["type"] == "node port"
    assert document["frontend"]["policy"] == "Local"
    (only,) = document["endpoints"]
    assert (only["endpoint"], only["masqueraded"]) == ("10.244.1.2:8080", False)
    reasons = {each["endpoint"]: each["because"] for each in document["notUsed"]}
    assert reasons["10.244.2.3:8080"] == "on node node2, and the policy is Local"
    assert document["desired"]["agrees"] is True
    assert document["kernel"] is None


def test_verbose_adds_rules(run: Run) -> None:
    (_, brief), (_, verbose) = (
        run("outside", "default/web:80"),
        run("outside", "default/web:80", "-v"),
    )
    assert "svcproxy's own rules:" not in brief
    assert "svcproxy's own rules:" in verbose
    assert "10.244.1.2:8080 masqueraded" in verbose


@pytest.mark.parametrize(
    ("source", "target", "code", "last"),
    [
        ("node", "node:30080", ExitCode.OK, "DELIVERED"),
        ("outside", "default/idle:80", ExitCode.DIFFERENT, "REFUSED: no endpoint on any node"),
        ("outside", "203.0.113.9:80", ExitCode.DIFFERENT, "REFUSED: no endpoint on any node"),
        ("outside", "192.0.2.1:443", ExitCode.NOT_FOUND, "NOT A SERVICE: no Service has"),
        ("outside", "node:22", ExitCode.NOT_FOUND, "NOT A SERVICE: no Service has"),
    ],
)
def test_the_last_word_and_the_exit_code(
    run: Run, source: str, target: str, code: ExitCode, last: str
) -> None:
    found, out = run(source, target)
    assert found is code
    assert out.splitlines()[-1].startswith(last)


def test_an_unassigned_cluster_ip_is_dropped_where_the_mode_does_that(run: Run, mode: str) -> None:
    code, out = run("outside", "10.96.0.99:80")
    dropped = mode == "nftables"
    assert code is (ExitCode.DIFFERENT if dropped else ExitCode.NOT_FOUND)
    assert out.splitlines()[-1].startswith("DROPPED: in the ServiceCIDR" if dropped else "NOT A")


def test_the_protocol_is_that_of_the_port(run: Run) -> None:
    assert "10.96.0.10:53/udp" in run("outside", "default/web:53")[1]
    assert "10.96.0.10:53/udp" in run("outside", "10.96.0.10:53")[1]
    assert "10.96.0.10:53/tcp" in run("outside", "10.96.0.10:53/tcp")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("outside", "default/wep:80"), ExitCode.NOT_FOUND, "did you mean default/web"),
        (("outside", "shop/web:80"), ExitCode.NOT_FOUND, "did you mean default/web"),
        (("outside", "default/web:metrics"), ExitCode.NOT_FOUND, "it has http/tcp, d/udp"),
        (("outside", "default/idle:80", "--family=6"), ExitCode.NOT_FOUND, "has no IPv6 address"),
        (("fd00::7", "10.96.0.10:80"), ExitCode.USAGE, "different IP families"),
        (("default/client", "default/web:80"), ExitCode.USAGE, "give its address as FROM"),
        (("outside", "10.96.0.10:0"), ExitCode.USAGE, "is not a port"),
        (("outside", "10.96.0.10:80", "--live"), ExitCode.USAGE, "leave out --manifests"),
        (("outside", "10.96.0.10:80", "--interface=" + "x" * 16), ExitCode.USAGE, "--interface"),
        (("node", "[fd00::1]:80", "--family=4"), ExitCode.USAGE, "different IP families"),
    ],
)
def test_bad_input_is_one_line(
    run: Run, arguments: tuple[str, ...], code: ExitCode, message: str
) -> None:
    found, err = run(*arguments)
    assert found is code
    assert len(err.splitlines()) == 1
    assert message in err


def test_without_a_daemon(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.nice", lambda _: 0)
    arguments = ["trace", "outside", "default/web:80", "--socket", "/nonexistent/admin.sock"]
    assert main(arguments) == ExitCode.NO_DAEMON
    assert "no daemon" in capsys.readouterr().err


def test_the_last_word_counts_endpoints_without_a_route(run: Run) -> None:
    """Rules deliver the packet, but the node cannot send it on."""
    _, text = run("outside", "default/web:80", "-o", "json")
    document = msgspec.json.decode(text, type=Trace)
    assert final(document) == "DELIVERED"
    first, *others = document.endpoints
    lost = structs.replace(first, route=UNREACHABLE)
    one_lost = structs.replace(document, endpoints=(lost, *others))
    assert final(one_lost) == f"DELIVERED; but the node has no route to {first.endpoint}"
    all_lost = structs.replace(document, endpoints=(lost, lost))
    assert final(all_lost) == "DELIVERED; but the node has no route to 2 of 2 endpoints"
