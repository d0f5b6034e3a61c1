"""``/readyz`` is 200 once rules are in the kernel; ``/healthz`` keeps kube-proxy's meaning."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from testbed import netns
from testbed.apiserver.server import FakeApiServer
from testbed.netns import NetNS
from testbed.waiting import eventually
from tests.fakes import objects

pytestmark = pytest.mark.kernel

HEALTH = 10256


@pytest.fixture
def space() -> Iterator[NetNS]:
    made = NetNS(f"svp-ready-{id(object())}")
    netns.ip_batch([f"netns add {made.name}"])
    netns.ip_batch(["link set lo up"], netns=made.name)
    yield made
    netns.remove([made.name])


@pytest.fixture
def api(space: NetNS) -> Iterator[FakeApiServer]:
    server = FakeApiServer()
    server.put_many(
        [objects.node(), objects.service("web"), objects.endpoint_slice(addresses=("10.0.0.1",))]
    )
    space.call(server.start)
    yield server
    server.stop()


def ask(space: NetNS, path: str) -> tuple[int, dict[str, Any]]:
    def fetch() -> tuple[int, dict[str, Any]]:
        with closing(http.client.HTTPConnection("127.0.0.1", HEALTH, timeout=5)) as client:
            client.request("GET", path)
            response = client.getresponse()
            return response.status, json.loads(response.read())

    try:
        return space.call(fetch)
    except ConnectionError:
        return 0, {}


@contextmanager
def daemon(space: NetNS, api: FakeApiServer, log: Path) -> Iterator[None]:
    command = (
        *(sys.executable, "-m", "svcproxy", f"--master={api.url}", "--hostname-override=node-1"),
        "--svcproxy-admin-socket=",
        *("--proxy-mode=nftables", "--conntrack-max-per-core=0", "--oom-score-adj=0"),
    )
    with log.open("wb") as output:
        process = space.popen(command, output=output.fileno())
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_a_list_that_is_refused_is_named(space: NetNS, api: FakeApiServer, tmp_path: Path) -> None:
    api.behaviour.refused["EndpointSlice"] = 403
    with daemon(space, api, tmp_path / "log"):

        def waits() -> bool:
            status, body = ask(space, "/readyz")
            return status == 503 and body["unlisted"] == ["EndpointSlice"]

        eventually(waits, "all other lists", timeout=20)
        _, body = ask(space, "/readyz")
        missing = {"ready": False, "reasons": ["waiting for the first list of EndpointSlices"]}
        assert body["status"] == {"IPv4": missing, "IPv6": missing}
        assert ask(space, "/healthz")[0] == 200
        assert ask(space, "/livez")[0] == 200
        assert "cluster-ips" not in space.run("nft", "list", "ruleset").stdout
        api.behaviour.refused.clear()
        eventually(lambda: ask(space, "/readyz")[0] == 200, "readiness", timeout=60)
        _, body = ask(space, "/readyz")
        assert (body["ready"], body["unlisted"]) == (True, [])
        assert "10.96.0.10" in space.run("nft", "list", "ruleset").stdout


@contextmanager
def held(space: NetNS, *commands: str) -> Iterator[None]:
    """Have a table that only the process that holds it may change."""
    process = space.call(
        lambda: subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    )
    assert process.stdin is not None
    with process:
        process.stdin.write("".join(f"{command}\n" for command in commands).encode())
        process.stdin.flush()
        yield
        process.stdin.close()


def _tables(space: NetNS) -> Sequence[str]:
    return space.run("nft", "list", "tables").stdout.splitlines()


def test_a_family_that_fails_its_first_sync_is_not_ready(
    space: NetNS, api: FakeApiServer, tmp_path: Path
) -> None:
    with ExitStack() as holder:
        holder.enter_context(held(space, "add table ip6 svcproxy { flags owner; }"))
        eventually(lambda: "table ip6 svcproxy" in _tables(space), "the foreign table")
        with daemon(space, api, tmp_path / "log"):

            def partly() -> bool:
                status = ask(space, "/readyz")[1].get("status", {})
                return bool(status and status["IPv4"]["ready"])

            eventually(partly, "IPv4", timeout=20)
            status, body = ask(space, "/readyz")
            assert status == 503
            reasons = ["waiting for the first sync to succeed"]
            assert body["status"]["IPv6"] == {"ready": False, "reasons": reasons}
            assert ask(space, "/healthz")[0] == 200
            holder.close()
            eventually(lambda: ask(space, "/readyz")[0] == 200, "readiness", timeout=60)
