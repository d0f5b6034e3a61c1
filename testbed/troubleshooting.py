"""Writes the output of commands in ``docs/troubleshooting.md``: ``python -m testbed.troubleshooting``.

It builds a cluster of network namespaces with two real daemons, causes each problem, and runs the
commands. A block of the page is what lies between its marker and the end of the code block. With
``--check`` it changes nothing, and fails if an output has changed in more than numbers.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from testbed import ROOT
from testbed import manifests as m
from testbed.apiserver.server import FakeApiServer
from testbed.cluster import Cluster, cleanup_stale
from testbed.daemon import Daemon
from testbed.manifests import Object
from testbed.waiting import eventually

PAGE = ROOT / "docs" / "troubleshooting.md"
KUBECTL = ROOT / "tests" / "fakes" / "kubectl"
BLOCK = re.compile(r"<!-- output: (?P<name>[\w-]+) -->\n```\n(?P<text>.*?)```\n", re.DOTALL)
BALANCER = "203.0.113.9"


class Situations:
    """A cluster in which things go wrong.

    Args:
        stack: cleans up.
        folder: for files of the fake ``kubectl``.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.cluster = stack.enter_context(Cluster(nodes=2, pods=2))
        self.client, (self.node, self.other) = self.cluster.client, self.cluster.nodes
        self.cluster.serve(tcp=[8080], udp=[5353])
        self.cluster.route_vips(self.node)
        self.api = self.client.netns.call(lambda: FakeApiServer(host=self.client.ipv4).start())
        stack.callback(self.api.stop)
        for zone, node in zip("ab", self.cluster.nodes, strict=True):
            self.api.put(m.node(node.name, addresses=[node.ipv4], zone=zone))
        self._put_services()
        flags: dict[str, str | None] = {"proxy-mode": "nftables", "master": self.api.url}
        flags["svcproxy-accounting"] = "refusals"
        self.daemons = [Daemon(node, flags={**flags}) for node in self.cluster.nodes]
        for daemon in self.daemons:
            stack.enter_context(daemon)
        self._cluster_file = folder / "cluster.json"
        self._write_cluster(folder)

    def _put_services(self) -> None:
        pods = self.cluster.pods
        port = [m.port(80, name="http", target=8080, node_port=30080)]
        local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
        web = m.service("web", ["10.96.0.10"], port, load_balancer_ips=[BALANCER], **local)
        self._put(web, [m.endpoint(pod.ipv4, node=pod.node) for pod in pods[2:]])
        port = [m.port(80, name="http", target=8080)]
        shop = m.service("shop", ["10.96.0.20"], port)
        self._put(shop, [m.endpoint(pods[0].ipv4, node=pods[0].node, ready=False)])
        self.cart = m.service("cart", ["10.96.0.30"], port)
        hints = [{"forZones": ["a"]}, {"forZones": ["b"]}]
        found = zip(pods[:1] + pods[2:3], hints, strict=True)
        self._put(self.cart, [m.endpoint(p.ipv4, node=p.node, hints=h) for p, h in found])
        port = [m.port(53, name="dns", target=5353, protocol="UDP")]
        dns = m.service("dns", ["10.96.0.53"], port, namespace="kube-system")
        self._put(dns, [m.endpoint(pod.ipv4, node=pod.node) for pod in pods[1:3]])
        port = [m.port(80, name="http", target=8080, node_port=30090)]
        api = m.service("api", ["10.96.0.40"], port, type="NodePort")
        self._put(api, [m.endpoint(pod.ipv4, node=pod.node) for pod in pods[1:3]])

    def _put(self, service: Object, endpoints: list[Object]) -> None:
        self.api.put(service)
        self.api.put(m.endpoint_slice(service, endpoints))

    def _write_cluster(self, folder: Path) -> None:
        pods, places = [], {}
        for daemon in self.daemons:
            name = f"svcproxy-{daemon.node.name}"
            containers = [{"name": "svcproxy", "image": "svcproxy:0.1.0"}]
            spec = {"nodeName": daemon.node.name, "containers": containers}
            status = {"phase": "Running"}
            pods.append({"metadata": {"name": name}, "spec": spec, "status": status})
            flags = [f"--socket={daemon.admin_socket}"]
            places[name] = {"netns": daemon.node.netns.name, "flags": flags}
        program, log = [sys.executable, "-m", "svcproxy"], str(folder / "log")
        found = {"pods": pods, "exec": places, "svcproxy": program, "log": log}
        self._cluster_file.write_text(json.dumps(found), encoding="utf-8")

    def ask(self, command: str) -> str:
        """Run ``svcproxy …`` on the first node, or ``kubectl svcproxy …``; return a console text."""
        kubectl = command.startswith("kubectl svcproxy ")
        words = command.split()
        if kubectl:
            program = [sys.executable, "-m", "svcproxy.kubectl.main", *words[2:]]
        else:
            program = [sys.executable, "-m", "svcproxy", *words[1:]]
            program += [f"--socket={self.daemons[0].admin_socket}"]
        path = f"PATH={KUBECTL}:{os.environ['PATH']}"
        environment = ["env", path, f"SVCPROXY_TEST_CLUSTER={self._cluster_file}"]
        done = self.node.netns.run(*environment, *program, check=False, timeout=60)
        text = f"{done.stdout}{done.stderr}".rstrip()
        return f"$ {command}\n{text}\n"

    def refused(self) -> str:
        """A Service without a ready endpoint."""
        return self.ask("svcproxy show default/shop")

    def dropped(self) -> str:
        """A load balancer with policy Local, and endpoints on another node only."""
        return self.ask(f"svcproxy trace outside {BALANCER}:80")

    def wrong_endpoint(self) -> str:
        """Hints that keep traffic in a zone."""
        return self.ask("svcproxy show default/cart --no-kernel")

    def from_outside(self) -> str:
        """The same Service for a pod and for a client outside."""
        pod = self.cluster.pods[0].ipv4
        return self.ask(f"svcproxy trace {pod} {BALANCER}:80")

    def one_node(self) -> str:
        """The Service on all nodes."""
        return self.ask("kubectl svcproxy show default/web")

    def source(self) -> str:
        """Masquerading at a node port."""
        return self.ask(f"svcproxy trace {self.client.ipv4} node:30090")

    def live(self) -> str:
        """A real probe."""
        pod = self.cluster.pods[0].ipv4
        return self.ask(f"svcproxy trace {pod} default/api:80 --live")

    def vanished(self) -> str:
        """Rules that another program deletes."""
        nft = ["nft", "delete", "element", "ip", "svcproxy", "cluster-ips"]
        self.node.netns.run(*nft, "{ 10.96.0.40 . tcp . 80 }")
        self.daemons[0].wait_log("process=nft")
        return self.ask("svcproxy diff")

    def node_port(self) -> str:
        """A node port on an address that is not the primary one."""
        self.node.netns.run("ip", "address", "add", "192.168.77.1/32", "dev", "lo")
        return self.ask(f"svcproxy trace {self.client.ipv4} 192.168.77.1:30090")

    def udp(self) -> str:
        """A UDP flow that exists already."""
        pod = self.cluster.pods[0]
        with pod.traffic.hold("udp", "10.96.0.53", 53):
            return self.ask(f"svcproxy trace {pod.ipv4} kube-system/dns:53/udp")

    def top(self) -> str:
        """Connections while clients connect."""
        pod = self.cluster.pods[0]
        loads = [pod.traffic.load("tcp", vip, 80, rate=20) for vip in ("10.96.0.40", "10.96.0.20")]
        try:
            return self.ask("svcproxy top --once")
        finally:
            for load in loads:
                load.stop()

    def behind(self) -> str:
        """A node that the API server does not reach."""
        with self._unreachable():
            self._put(self.cart, [m.endpoint(self.cluster.pods[0].ipv4, node="node1")])
            needle = "10.244.2.2"
            eventually(lambda: needle not in self.ask("svcproxy show default/cart"), "the change")
            return self.ask("kubectl svcproxy diff")

    @contextmanager
    def _unreachable(self) -> Iterator[None]:
        route = ("blackhole", f"{self.other.ipv4}/32")
        self.client.netns.run("ip", "route", "add", *route)
        try:
            yield
        finally:
            self.client.netns.run("ip", "route", "del", *route)

    def api_down(self) -> str:
        """No API server."""
        self.api.outage()
        self.daemons[0].wait_log("Connection refused", timeout=30)
        return self.ask("svcproxy status")


NAMES: tuple[str, ...] = (
    "refused",
    "dropped",
    "wrong_endpoint",
    "from_outside",
    "one_node",
    "source",
    "live",
    "vanished",
    "node_port",
    "udp",
    "top",
    "behind",
    "api_down",
)
"""The situations in the order in which they are caused; the last ones do not end."""


def outputs() -> dict[str, str]:
    """Cause all problems; return the output of the commands by name."""
    with ExitStack() as stack:
        cleanup_stale()
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="svcproxy-docs-"))
        situations = Situations(stack, Path(folder))
        return {name.replace("_", "-"): _run(getattr(situations, name)) for name in NAMES}


def _run(situation: Callable[[], str]) -> str:
    lines = situation().splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def comparable(text: str) -> list[str]:
    """Return an output without numbers, and with even white space."""
    return [" ".join(re.sub(r"\d+", "0", line).split()) for line in text.splitlines()]


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    text, found = PAGE.read_text(encoding="utf-8"), outputs()
    changed = [
        match["name"]
        for match in BLOCK.finditer(text)
        if comparable(match["text"]) != comparable(found[match["name"]])
    ]
    if options.check:
        print("\n".join(f"changed: {name}\n{found[name]}" for name in changed) or "unchanged")
        return bool(changed)

    def replaced(match: re.Match[str]) -> str:
        return f"<!-- output: {match['name']} -->\n```\n{found[match['name']]}```\n"

    PAGE.write_text(BLOCK.sub(replaced, text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
