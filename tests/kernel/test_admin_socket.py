"""The admin socket of a running daemon, asked with the client of the commands."""

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from benchmarks.usage import usage
from svcproxy.admin.client import AdminClient, NoDaemonError
from svcproxy.admin.core.protocol import Status
from svcproxy.explain.mode_explainer import mode_explainer
from svcproxy.model.names import IPFamily, Kind, NamespacedName
from svcproxy.model.objects import EndpointSlice, Service
from testbed.netns import NetNS
from testbed.waiting import PATIENCE, eventually
from tests.kernel.conftest import ALL_VARIANTS, Flags, Stage, at, mode_flags, period_flags

pytestmark = pytest.mark.kernel

VARIANTS = ALL_VARIANTS
_NONSENSE = (
    b"",
    b"\x16\x03\x01" + bytes(range(256)),
    b"GET /v1/objects?kind=EndpointSlice HTTP/1.1\r\n\r\n",
    b"GET /v1/metrics HTTP/1.1\r\n" + b"X-Long: " + b"x" * 100_000,
    b"GET /v1/repairs?wait=30 HTTP/1.1\r\n\r\n",
    b"POST /v1/status HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n{",
)
FAMILIES = {4: IPFamily.IPV4, 6: IPFamily.IPV6}


@pytest.fixture(scope="module")
def flags(variant: str) -> Flags:
    return period_flags(variant, longest="1s")


@pytest.fixture
def client(stage: Stage) -> AdminClient:
    return AdminClient(str(stage.daemon.admin_socket), 3 * PATIENCE)


def settled(client: AdminClient) -> Status:
    """The status, once nothing waits for a sync."""

    def done() -> bool:
        families = client.status().families.values()
        return all(about.synced and not about.pending for about in families)

    eventually(done, "a sync")
    return client.status()


def test_status(stage: Stage, client: AdminClient) -> None:
    status = settled(client)
    assert status.node == stage.node.name
    assert status.mode == stage.daemon.flags["proxy-mode"]
    assert status.flags["svcproxy-admin-socket"] == str(stage.daemon.admin_socket)
    assert set(status.families) == set(IPFamily)
    assert not any(about.failing or about.held for about in status.families.values())
    watch = status.watches[Kind.SERVICE]
    assert watch.synced
    assert status.started < watch.heard <= status.now


def test_settings_are_those_of_the_mode_with_the_facts_about_the_kernel(
    stage: Stage, client: AdminClient
) -> None:
    status = settled(client)
    explainer = mode_explainer(status.mode)
    assert explainer is not None
    for family, about in status.families.items():
        settings = explainer.settings(about.settings)
        assert settings.family is family
        assert msgspec.json.decode(msgspec.json.encode(settings)) == about.settings
    if stage.variant == "ipvs":
        facts = status.families[IPFamily.IPV4].settings["facts"]
        assert stage.node.ipv4 in facts["addresses"]


@pytest.mark.parametrize("family", [4, 6])
def test_objects(stage: Stage, client: AdminClient, family: int) -> None:
    offer = stage.offer(family, [at(pod, family) for pod in stage.here])
    name = NamespacedName("default", offer.service["metadata"]["name"])
    services = [obj for obj in client.objects(Kind.SERVICE) if isinstance(obj, Service)]
    assert len({obj.name for obj in services}) == len(services)
    (service,) = (obj for obj in services if obj.name == name)
    assert service.cluster_ips == (offer.vip,)
    slices = [s for s in client.objects(Kind.ENDPOINT_SLICE) if isinstance(s, EndpointSlice)]
    (found,) = (one for one in slices if one.service == name)
    assert {e.address for e in found.endpoints} == {pod.ip(family) for pod in stage.here}
    assert found.family is FAMILIES[family]
    (node,) = client.objects(Kind.NODE)
    assert node.name == stage.node.name
    assert list(client.objects(Kind.SERVICE, name)) == [service]
    assert list(client.objects(Kind.ENDPOINT_SLICE, name)) == [found]


def test_one_service_comes_with_those_that_claim_its_addresses(
    stage: Stage, client: AdminClient
) -> None:
    older = stage.offer(4, externalIPs=["203.0.113.77"], created="2024-01-01T00:00:00Z")
    newer = stage.offer(4, externalIPs=["203.0.113.77"], created="2025-01-01T00:00:00Z")
    names = {
        NamespacedName("default", offer.service["metadata"]["name"]) for offer in (older, newer)
    }
    for name in names:
        assert {obj.name for obj in client.objects(Kind.SERVICE, name)} == names


def test_revision_tells_whether_objects_changed(stage: Stage, client: AdminClient) -> None:
    def revision() -> int:
        return settled(client).families[IPFamily.IPV4].revision

    def stable() -> bool:
        """Whether the manifests that the last test removed have been read."""
        first = revision()
        time.sleep(0.5)
        return revision() == first

    eventually(stable, "no more changes")
    before = revision()
    assert before % 2 == 0
    assert revision() == before
    stage.offer(4, [at(stage.here[0], 4)])
    assert revision() > before


@pytest.mark.parametrize("family", [4, 6])
def test_it_says_since_when_an_endpoint_is_not_ready(
    stage: Stage, client: AdminClient, family: int
) -> None:
    pods = stage.here[:2]
    offer = stage.offer(family, [at(pods[0], family), at(pods[1], family, ready=False)])
    name = f"default/{offer.service['metadata']['name']}"
    assert name not in client.status().not_ready_since
    before = client.status().now
    offer.endpoints(at(pods[0], family, ready=False), at(pods[1], family))
    status = client.status()
    times = status.not_ready_since[name]
    assert list(times) == [pods[0].ip(family)]
    assert before <= times[pods[0].ip(family)] <= status.now
    offer.endpoints(at(pods[0], family), at(pods[1], family))
    assert name not in client.status().not_ready_since


def damage(stage: Stage, vip: str) -> None:
    match stage.variant:
        case "nftables":
            element = f"{{ {vip} . tcp . 80 }}"
            command = ["nft", "delete", "element", "ip", "svcproxy", "cluster-ips", element]
        case "ipvs":
            command = ["ip", "address", "delete", f"{vip}/32", "dev", "kube-ipvs0"]
        case _:
            stage.iptables(4, "-t", "nat", "-F", "KUBE-SERVICES")
            return
    stage.node.netns.run(*command)


def test_repairs_are_in_the_journal(stage: Stage, client: AdminClient) -> None:
    """With the culprit where the kernel names it: in the nft variants."""
    offer = stage.offer(4, [at(stage.here[0], 4)])
    stage.daemon.wait_idle(1.1)
    before = client.repairs().total
    damage(stage, offer.vip)
    repair = eventually(lambda: client.repairs(before, wait=5.0).repairs, "a repair", timeout=60)[0]
    assert repair.number > before
    assert repair.family is IPFamily.IPV4
    assert sum(repair.operations.values()) > 0
    assert 0 < repair.seconds < 60
    assert client.status().started < repair.at <= client.status().now
    if stage.variant in {"nft", "nftables"}:
        assert repair.reported
        assert repair.process.startswith(("nft", "iptables"))
        assert repair.pid > 0
    else:
        assert not repair.reported


def test_log_and_metrics(stage: Stage, client: AdminClient) -> None:
    assert "starting" in client.log() or "log.suppressed" in client.log()
    assert client.log().splitlines()[-1] in stage.daemon.logs()
    assert "svcproxy_drift_repairs_total" in client.metrics()


def test_a_client_of_another_user_is_refused(stage: Stage, client: AdminClient) -> None:
    """Also if the file system would let it in."""
    path = stage.daemon.admin_socket
    program = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect(sys.argv[1])\n"
        "except PermissionError: sys.exit(5)\n"
        "try: s.sendall(b'GET /v1/status HTTP/1.1\\r\\n\\r\\n'); got = s.recv(1)\n"
        "except OSError: got = b''\n"
        "sys.exit(len(got))\n"
    )

    def outcome() -> int:
        return subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode

    assert outcome() == 5
    path.parent.chmod(0o755)
    path.chmod(0o666)
    assert outcome() == 0
    assert client.status().node == stage.node.name


def test_clients_that_send_nonsense_or_read_nothing_cost_the_daemon_nothing(
    stage: Stage, client: AdminClient
) -> None:
    path = str(stage.daemon.admin_socket)
    offer = stage.offer(4, [at(stage.here[0], 4)])
    before = usage(stage.daemon.pid)
    with contextlib.ExitStack() as stack:
        for number in range(60):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(0.05)
            with contextlib.suppress(OSError):
                sock.connect(path)
                sock.sendall(_NONSENSE[number % len(_NONSENSE)])
        offer.endpoints(at(stage.here[1], 4))  # waits until it is programmed
        after = usage(stage.daemon.pid)
    assert after.rss - before.rss < 20 << 20
    assert client.status().pid == stage.daemon.pid
    assert not [line for line in stage.daemon.logs() if "admin.failed" in line]


def test_show_asks_the_daemon(stage: Stage) -> None:
    offer = stage.offer(4, [at(stage.here[0], 4)])
    done = stage.node.netns.run(
        *(sys.executable, "-m", "svcproxy", "show", f"--socket={stage.daemon.admin_socket}")
    )
    assert offer.vip in done.stdout


def test_a_killed_daemon_leaves_a_socket_that_the_next_one_replaces(
    stage: Stage, client: AdminClient
) -> None:
    before = client.status().pid
    stage.daemon.kill()
    assert Path(stage.daemon.admin_socket).exists()
    with pytest.raises(NoDaemonError, match="start svcproxy"):
        client.status()
    stage.daemon.start()
    stage.daemon.wait_ready()
    assert client.status().pid != before


@pytest.mark.parametrize("options", ["ro", "nr_inodes=1"])
def test_a_folder_that_cannot_be_written_to_costs_only_the_socket(
    space: NetNS, tmp_path: Path, options: str
) -> None:
    """The file system is read-only or full."""
    folder, manifests, log = tmp_path / "run", tmp_path / "manifests", tmp_path / "log"
    folder.mkdir()
    manifests.mkdir()
    script = 'mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@"'
    command = [
        *("unshare", "--mount", "sh", "-c", script, "sh", options, str(folder)),
        *(sys.executable, "-m", "svcproxy", f"--manifests={manifests}"),
        *(f"--{name}={value}" for name, value in mode_flags("nftables").items()),
        *(f"--svcproxy-admin-socket={folder}/admin.sock", "--conntrack-max-per-core=0"),
        *("--oom-score-adj=0", "--healthz-bind-address=", "--metrics-bind-address="),
    ]
    with log.open("wb") as output:
        daemon = space.popen(command, output=output.fileno())
    try:
        eventually(lambda: log.read_text().count("sync.done") >= 1, "a sync", timeout=60)
        text = log.read_text()
        assert "admin.not_serving" in text
        assert "--svcproxy-admin-socket" in text
        assert daemon.poll() is None
    finally:
        daemon.kill()
        daemon.wait()
