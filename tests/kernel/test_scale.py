"""1,000 Services from an API server over HTTP, and the cost of one changed endpoint."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import manifests
from testbed.apiserver.server import FakeApiServer
from testbed.cluster import Cluster
from testbed.daemon import Daemon
from testbed.metrics import Metrics
from testbed.outcomes import Answer
from testbed.waiting import eventually

pytestmark = pytest.mark.kernel

SERVICES = 1000
ENDPOINTS = 5
PROBE = 500


def cluster_ip(number: int) -> str:
    return f"10.96.{number // 250}.{number % 250 + 1}"


def service(number: int) -> dict[str, Any]:
    return manifests.service(
        f"svc-{number}", [cluster_ip(number)], [manifests.port(80, name="http", target=8080)]
    )


def piece(number: int, addresses: list[str]) -> dict[str, Any]:
    return manifests.endpoint_slice(service(number), addresses)


def addresses(number: int) -> list[str]:
    first = number * ENDPOINTS
    return [f"10.244.{100 + i // 250}.{i % 250 + 2}" for i in range(first, first + ENDPOINTS)]


class Recorder:
    """Precedes the restore programs in PATH and records their inputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        for variant in ("nft", "legacy"):
            for base in ("iptables", "ip6tables"):
                name = f"{base}-{variant}-restore"
                script = self.programs / name
                script.write_text(
                    "#!/bin/sh\n"
                    f'input="{folder}/{base}.$(date +%s%N).$$"\n'
                    'cat >"$input.part" && mv "$input.part" "$input"\n'
                    f'exec {shutil.which(name)} "$@" <"$input"\n'
                )
                script.chmod(0o755)

    def inputs(self, base: str = "iptables") -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob(f"{base}.*[0-9]"))]


@pytest.fixture(params=["nft", "legacy"])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=1, pods=3) as built:
        built.serve(tcp=(8080,))
        yield built


@pytest.fixture
def api(cluster: Cluster) -> Iterator[FakeApiServer]:
    """An API server on the node's loopback address."""
    server = cluster.nodes[0].netns.call(lambda: FakeApiServer().start())
    server.put_many([service(n) for n in range(SERVICES)])
    server.put_many([piece(n, addresses(n)) for n in range(SERVICES)])
    yield server
    server.stop()


def test_a_thousand_services_and_one_changed_endpoint(
    cluster: Cluster, api: FakeApiServer, variant: str, tmp_path: Path
) -> None:
    node = cluster.nodes[0]
    recorder = Recorder(tmp_path)
    flags = {
        "kubeconfig": str(api.write_kubeconfig(tmp_path / "kubeconfig")),
        "svcproxy-iptables-variant": variant,
    }
    daemon = Daemon(node, flags=flags)
    daemon.program = ("env", f"PATH={recorder.programs}:/usr/sbin:/usr/bin:/bin", sys.executable)
    daemon.program = (*daemon.program, "-m", "svcproxy")
    with daemon:
        saved = node.netns.run(f"iptables-{variant}-save", "-t", "nat").stdout
        assert saved.count("-j DNAT") == SERVICES * ENDPOINTS
        assert saved.count(' cluster IP"') == SERVICES
        before, before_ipv6 = len(recorder.inputs()), len(recorder.inputs("ip6tables"))
        written = daemon.metrics()

        api.put(piece(PROBE, [node.pods[0].ipv4, *addresses(PROBE)[1:]]))
        eventually(lambda: len(recorder.inputs()) > before, "a restore")
        only_the_probe_service_was_written(recorder.inputs()[before:])

        api.put(piece(PROBE, [node.pods[0].ipv4]))
        eventually(lambda: _served_by(cluster, PROBE) == node.pods[0].name, "the new endpoint")

        def counted() -> bool:
            now = daemon.metrics()
            assert operations(now, written) == {"restore": 2, "chain_written": 2, "rule_written": 6}
            return True

        eventually(counted, "the operations of two partial syncs")
        assert len(recorder.inputs("ip6tables")) == before_ipv6, "IPv6 was touched"


def test_a_thousand_services_in_nftables_mode(
    cluster: Cluster, api: FakeApiServer, tmp_path: Path
) -> None:
    """Replacing an endpoint replaces one map element, regardless of the number of Services.

    It also replaces one hairpin element, because these endpoints have no node name.
    """
    flags = {"proxy-mode": "nftables"}
    wanted = {"element_added": 2, "element_deleted": 2}
    one_changed_endpoint_takes(wanted, cluster, api, tmp_path, flags)


@pytest.mark.uml
def test_a_thousand_services_in_ipvs_mode(
    cluster: Cluster, api: FakeApiServer, tmp_path: Path
) -> None:
    """Replacing an endpoint replaces one real server, regardless of the number of Services.

    The old one first gets weight 0 and is removed when it has no connections; the ipset for
    hairpin connections gets one entry and loses one.
    """
    flags = {"proxy-mode": "ipvs", "svcproxy-iptables-variant": "legacy"}
    wanted = {
        "real_server_written": 2,
        "real_server_deleted": 1,
        "set_entry_added": 1,
        "set_entry_deleted": 1,
        "message": 6,
    }
    one_changed_endpoint_takes(wanted, cluster, api, tmp_path, flags)


def one_changed_endpoint_takes(
    wanted: dict[str, int],
    cluster: Cluster,
    api: FakeApiServer,
    folder: Path,
    flags: dict[str, str],
) -> None:
    """Change one endpoint of one Service, and check the number of kernel operations."""
    kubeconfig = str(api.write_kubeconfig(folder / "kubeconfig"))
    node = cluster.nodes[0]
    with Daemon(node, flags={"kubeconfig": kubeconfig, **flags}) as daemon:
        before = daemon.metrics()
        written = sum(operations(before, Metrics()).values())
        assert written > SERVICES * ENDPOINTS
        api.put(piece(PROBE, [node.pods[0].ipv4, *addresses(PROBE)[1:]]))

        def counted() -> bool:
            assert operations(daemon.metrics(), before) == wanted
            return True

        eventually(counted, "the operations of one partial sync")


def only_the_probe_service_was_written(inputs: list[str]) -> None:
    assert len(inputs) == 1, "one partial restore"
    lines = inputs[0].splitlines()
    assert [line for line in lines if line.startswith("*")] == ["*nat"]
    chains = {line[1:].split()[0] for line in lines if line.startswith(":")}
    assert len(chains) == 1, chains
    chain = chains.pop()
    rules = [line for line in lines if line.startswith("-")]
    assert len(rules) == ENDPOINTS
    assert all(line.startswith(f"-A {chain} ") for line in rules)


def operations(now: Metrics, before: Metrics) -> dict[str, float]:
    """Return the kernel operations for IPv4 between two scrapes."""
    name = "svcproxy_kernel_operations_total"
    return {
        sample.labels["operation"]: grown
        for sample in now.matching(name, ip_family="IPv4")
        if (grown := sample.value - before.value(name, **sample.labels))
    }


def _served_by(cluster: Cluster, number: int) -> str:
    outcome = cluster.client.traffic.connect("tcp", cluster_ip(number), 80, timeout=0.5)
    return outcome.server if isinstance(outcome, Answer) else ""
