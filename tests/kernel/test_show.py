"""``svcproxy show`` of a running daemon: what it says is what traffic meets."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from testbed import manifests as m
from testbed.waiting import PATIENCE, eventually
from tests.kernel.conftest import (
    Offer,
    Stage,
    all_at,
    ask,
    assert_dropped,
    assert_refused,
)

pytestmark = pytest.mark.kernel

HTTP = (m.port(80, name="http", target=8080),)
SHOW = (sys.executable, "-m", "svcproxy", "show")


def show(stage: Stage, *arguments: str) -> Any:
    """Run the command on the node; return its document."""
    socket = ("--socket", str(stage.daemon.admin_socket))
    done = stage.node.netns.run(*SHOW, *arguments, *socket, "-o", "json", timeout=100)
    assert not done.stderr
    return json.loads(done.stdout)


def service(found: Any, offer: Offer) -> Any:
    name = offer.service["metadata"]["name"]
    (wanted,) = (each for each in found["services"] if each["name"] == name)
    return wanted


def frontends(described: Any) -> Iterator[Any]:
    for port in described["ports"]:
        yield from port["frontends"]


def check_traffic(stage: Stage, frontend: Any, family: int) -> None:
    """Check that a client outside the cluster meets what is said about a frontend."""
    address, port = frontend["address"] or stage.node.ip(family), frontend["port"]
    match frontend["verdict"]:
        case "forward":
            ask(stage.client, "tcp", address, port, n=2)
        case "reject":
            assert_refused(stage.client, "tcp", address, port)
        case "drop":
            assert_dropped(stage.client, "tcp", address, port)


def test_verdicts_are_those_that_traffic_meets(stage: Stage, family: int) -> None:
    local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    ingress = [stage.address(family, outside=True) for _ in range(2)]
    with stage.at_once():
        good = stage.offer(family, all_at([stage.here[0], stage.there[0]], family), ports=HTTP)
        empty = stage.offer(family, ports=HTTP, type="NodePort")
        elsewhere = stage.offer(
            family,
            all_at([stage.there[0]], family),
            ports=HTTP,
            load_balancer_ips=ingress[:1],
            **local,
        )
        unready = stage.offer(family, all_at([stage.here[0]], family, ready=False), ports=HTTP)
    found = show(stage, "--sample", "0")
    for offer in (good, empty, elsewhere, unready):
        described = service(found, offer)
        assert len(list(frontends(described))) == len(offer.ports) * (
            1 + (offer is empty) + 2 * (offer is elsewhere)
        )
        for frontend in frontends(described):
            check_traffic(stage, frontend, family)
    reasons = [
        {frontend.get("reason", "") for frontend in frontends(service(found, offer))}
        for offer in (good, empty, elsewhere, unready)
    ]
    assert reasons == [
        {""},
        {"REJECT: no endpoints"},
        {"", "DROP: no endpoint on this node (external traffic policy Local)"},
        {"REJECT: no endpoint is ready"},
    ]


def test_the_node_is_described_with_its_kernel_state(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here, family))
    found = show(stage, "--sample", "0")
    assert (found["node"]["node"], found["node"]["mode"]) == (
        stage.node.name,
        str(stage.daemon.flags["proxy-mode"]),
    )
    for about in found["node"]["families"]:
        assert about["upToDate"], about
        assert about["kernelAgrees"], about
        assert "kernelDifferences" not in about
    for port in service(found, offer)["ports"]:
        assert port.get("kernelDifferences") == 0


def test_a_service_is_described_with_the_objects_that_carry_it(stage: Stage, family: int) -> None:
    entries = [*all_at(stage.here[:1], family), *all_at(stage.there[:1], family, ready=False)]
    offer = stage.offer(family, entries, ports=HTTP)
    found = show(stage, offer.service["metadata"]["name"], "--sample", "0")
    assert found["kind"] == "ServiceDetail"
    (port,) = found["ports"]
    used = {entry["address"]: entry["cluster"] for entry in port["endpoints"]}
    assert used == {stage.here[0].ip(family): True, stage.there[0].ip(family): False}
    offer.endpoints(*all_at([stage.here[0], stage.there[0]], family))
    offer.endpoints(*entries)
    (port,) = show(stage, offer.service["metadata"]["name"], "--sample", "0")["ports"]
    (unused,) = (entry for entry in port["endpoints"] if not entry["cluster"])
    assert unused["text"].startswith("not ready for ")
    assert 0 <= unused["notReadySeconds"] < 300 * PATIENCE
    assert port["objectsFrom"] == "kernel"
    assert any(offer.vip in line for line in port["objects"])


def test_a_kernel_that_may_not_be_read_is_mentioned(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here[:1], family), ports=HTTP)
    unprivileged = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    socket = ("--socket", str(stage.daemon.admin_socket))
    done = stage.node.netns.run(*unprivileged, *SHOW, *socket)
    first, *others = done.stdout.splitlines()
    assert "kernel not read: " in first
    (line,) = (line for line in others if f"{offer.vip}:80" in line or f"[{offer.vip}]:80" in line)
    assert "1 of 1" in line


def test_connections_are_counted(stage: Stage, family: int) -> None:
    offer = stage.offer(family, all_at(stage.here[:1], family), ports=HTTP)
    found: list[Any] = []
    shower = Thread(target=lambda: found.append(show(stage, "--sample", f"{2 * PATIENCE:g}")))
    with stage.client.traffic.hold("tcp", offer.vip, 80):
        shower.start()
        while shower.is_alive():
            ask(stage.client, "tcp", offer.vip, 80, n=5)
            shower.join(0.1 * PATIENCE)  # a machine may have one processor
    (frontend,) = frontends(service(found[0], offer))
    assert frontend["connections"]["open"] >= 1
    assert frontend["connections"]["newPerSecond"] > 0
    assert found[0]["notes"] == []


@pytest.mark.nftables_only
def test_an_interrupt_ends_a_long_sample(stage: Stage) -> None:
    command = (*SHOW, "--socket", str(stage.daemon.admin_socket), "--sample", "60")
    begin = time.monotonic()
    process = stage.node.netns.popen(command)
    with process:
        eventually(lambda: _listens(process.pid), "a thread that samples")
        process.send_signal(signal.SIGINT)
        assert process.wait(30 * PATIENCE) == 130
    assert time.monotonic() - begin < 60


def _listens(pid: int) -> bool:
    """Whether there are three threads; the second one watches the priority."""
    return len(list(Path(f"/proc/{pid}/task").iterdir())) > 2
