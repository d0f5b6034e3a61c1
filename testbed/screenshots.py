"""Takes the screenshots of docs/ui.md: python -m testbed.screenshots (root).

It builds a small cluster of network namespaces with Services of every kind and some trouble, starts
the daemon, and opens its pages in Chromium.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from testbed import ROOT
from testbed import manifests as m
from testbed.browser import Browser
from testbed.cluster import Cluster
from testbed.daemon import METRICS_PORT, Daemon
from testbed.manifests import ManifestFolder, Object
from testbed.waiting import eventually

FOLDER = ROOT / "docs/screenshots"
_NAMES = (
    *("shop/cart", "shop/catalogue", "shop/checkout", "shop/images", "shop/search"),
    *("payments/ledger", "payments/gateway", "kube-system/metrics-server", "monitoring/grafana"),
    *("monitoring/prometheus", "monitoring/alertmanager", "default/web", "default/api"),
)


def objects(pods: list[str]) -> Iterator[Object]:
    """Yield the objects of the cluster; ``pods`` are the addresses of the pods on the node."""
    yield m.node("node1", addresses=["192.168.50.1"], zone="zone-a")
    for number, full in enumerate(_NAMES, 10):
        namespace, _, name = full.partition("/")
        ports = [m.port(80, name="http", target=8080)]
        if name in {"gateway", "prometheus"}:
            ports.append(m.port(9090, name="metrics", target=9090))
        addresses = [f"10.96.0.{number}"]
        service = m.service(name, addresses, ports, namespace=namespace)
        yield service
        remote = [m.endpoint(f"10.244.2.{number + n}", node="node2") for n in range(number % 4)]
        local = [m.endpoint(pod, node="node1") for pod in pods]
        yield m.endpoint_slice(service, [*local, *remote])
    yield from _dns(pods)
    yield from _trouble(pods)


def _dns(pods: list[str]) -> Iterator[Object]:
    ports = [
        m.port(53, name="dns", target=5353, protocol="UDP"),
        m.port(53, name="dns-tcp", target=5353),
    ]
    service = m.service("kube-dns", ["10.96.0.3"], ports, namespace="kube-system")
    yield service
    yield m.endpoint_slice(service, [m.endpoint(pods[0], node="node1")])


def _trouble(pods: list[str]) -> Iterator[Object]:
    """Yield Services that do not serve, or not everything."""
    http = [m.port(80, name="http", target=8080)]
    empty = m.service("reports", ["10.96.0.40"], http, namespace="shop")
    yield from (empty, m.endpoint_slice(empty, []))
    local = m.service(
        "ingress",
        ["10.96.0.41"],
        [m.port(443, name="https", target=8443, node_port=30443)],
        namespace="edge",
        type="LoadBalancer",
        load_balancer_ips=["203.0.113.9"],
        externalTrafficPolicy="Local",
        healthCheckNodePort=30999,
    )
    yield from (local, m.endpoint_slice(local, [m.endpoint("10.244.2.9", node="node2")]))
    taken = m.service("legacy", ["10.96.0.42"], http, namespace="edge", externalIPs=["203.0.113.7"])
    holder = m.service("front", ["10.96.0.43"], http, namespace="edge", externalIPs=["203.0.113.7"])
    holder["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z"
    taken["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    for service in (taken, holder):
        yield from (service, m.endpoint_slice(service, [m.endpoint(pods[1], node="node1")]))
    rollout = m.service(
        "orders",
        ["10.96.0.44"],
        http,
        namespace="shop",
        sessionAffinity="ClientIP",
        internalTrafficPolicy="Cluster",
    )
    yield rollout
    entries = [
        m.endpoint(pods[0], node="node1"),
        m.endpoint(pods[1], node="node1", ready=False, serving=True, terminating=True),
        m.endpoint("10.244.2.7", node="node2"),
        m.endpoint("10.244.2.8", node="node2", ready=False),
    ]
    yield m.endpoint_slice(rollout, entries)


class Shot(NamedTuple):
    """A screenshot: its file, the page below ``/ui/``, the size of the window, and the colours."""

    file: str
    page: str
    size: tuple[int, int] = (1280, 1010)
    dark: bool = False


SHOTS = (
    Shot("overview-light.png", ""),
    Shot("overview-dark.png", "", dark=True),
    Shot("service.png", "service?name=shop/orders"),
    Shot("trace.png", "trace?from=10.244.1.4&to=shop/orders:80"),
    Shot("overview-narrow.png", "", (500, 900)),
)


def take(folder: Path) -> None:
    """Take all screenshots."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="svcproxy-ui-") as name, Cluster(1, 3) as cluster:
        node = cluster.nodes[0]
        manifests = ManifestFolder(Path(name))
        pods = [pod.ipv4 for pod in cluster.pods]
        manifests.put(*objects(pods))
        with Daemon(node, manifests.path, flags={"proxy-mode": "nftables"}) as daemon:
            _live_through(daemon, manifests, pods)
            browser = Browser(node.netns)
            for shot in SHOTS:
                url = f"http://127.0.0.1:{METRICS_PORT}/ui/{shot.page}"
                browser.screenshot(url, folder / shot.file, shot.size, dark=shot.dark)


def _live_through(daemon: Daemon, manifests: ManifestFolder, pods: list[str]) -> None:
    """Change some endpoints, and delete a rule of the daemon's as another program would."""
    space = daemon.node.netns
    for number in range(20):
        service = m.service("web", ["10.96.0.21"], [m.port(80, name="http", target=8080)])
        manifests.put(m.endpoint_slice(service, pods[: number % 3 + 1]))
        time.sleep(0.1)
    element = "{ 10.96.0.21 . tcp . 80 }"
    space.run("nft", "delete", "element", "ip", "svcproxy", "cluster-ips", element)
    eventually(
        lambda: "<code>nft</code>" in daemon.node.traffic.fetch(METRICS_PORT, "/ui/")[1],
        "the repair",
    )


def main() -> None:
    """Take the screenshots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where to write them")
    folder = parser.parse_args().folder
    take(folder)
    for shot in SHOTS:
        print(f"{folder / shot.file} {(folder / shot.file).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
