"""A small Kubernetes-like network: nodes, their pods, a shared wire and a client outside.

Every machine is a network namespace::

    client 192.168.50.100 ----+
                              |  wire (a bridge)
    node1  192.168.50.1 ------+------ node2 192.168.50.2
      br0 10.244.1.1                    br0 10.244.2.1
       |-- pod1a 10.244.1.2              |-- pod2a 10.244.2.2
       `-- pod1b 10.244.1.3              `-- pod2b 10.244.2.3

IPv6 is the same: ``fd00:192:168:50::<n>`` on the wire, ``fd00:10:244:<n>::/64`` for pods.
Pods have host addresses (/32, /128) and route all traffic through their node, even that to pods
of the same node: so all replies pass the node's connection tracking without br_netfilter.
"""

import itertools
import os
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed import netns
from testbed.netns import NetNS
from testbed.traffic import Traffic

PREFIX = "svp"
SERVICE_CIDRS = ("10.96.0.0/16", "fd00:10:96::/112")
CLUSTER_CIDRS = ("10.244.0.0/16", "fd00:10:244::/56")
VIP_RANGES = ("203.0.113.0/24", "fd00:203::/64")
CLIENT_IPV4, CLIENT_IPV6 = "192.168.50.100", "fd00:192:168:50::100"

_serials = itertools.count(1)

_HOST_SYSCTLS = {
    # Addresses are usable immediately, and only the routes below decide where packets go.
    "ipv6/conf/all/disable_ipv6": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/all/accept_ra": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/all/accept_redirects": "0",
    "ipv6/conf/default/accept_redirects": "0",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/default/accept_redirects": "0",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    # Every refused packet is answered: rate limits would turn some refusals into time-outs.
    "ipv4/icmp_ratelimit": "0",
    "ipv4/icmp_ratemask": "0",
    "ipv6/icmp/ratelimit": "0",
    "ipv6/icmp/ratemask": "\n",
    # Enough ports for load at hundreds of connections a second, but none on which the daemon
    # listens: a connection in TIME_WAIT would keep such a port in use for a minute.
    "ipv4/ip_local_port_range": "10240 65000",
    "ipv4/ip_local_reserved_ports": "10249,10256,20000-20099,30000-32767",
    "ipv4/tcp_tw_reuse": "1",
}
_NODE_SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/forwarding": "1",
    **_HOST_SYSCTLS,
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
}
# iptables does not see bridged frames; the files exist only if br_netfilter is loaded.
_BRIDGE_SYSCTLS = {
    key: "0"
    for key in ("bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables")
    if Path("/proc/sys/net", key).exists()
}


class Host:
    """One machine of the cluster: a namespace with one address of each family."""

    def __init__(self, name: str, space: NetNS, ipv4: str, ipv6: str) -> None:
        self.name = name
        self.netns = space
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self._traffic: Traffic | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    @property
    def traffic(self) -> Traffic:
        """Servers and clients on this machine; the helper process starts on first use."""
        if self._traffic is None:
            self._traffic = Traffic(self.name, self.netns)
        return self._traffic

    def ip(self, family: int) -> str:
        """The address of family 4 or 6."""
        return self.ipv4 if family == 4 else self.ipv6

    def close(self) -> None:
        """Stop the helper process."""
        if self._traffic is not None:
            self._traffic.close()
            self._traffic = None


class Pod(Host):
    """A pod; ``node`` is the name of its node."""

    def __init__(self, node: "Node", index: int, space: NetNS) -> None:
        n = node.number
        host = index + 2  # .1 is the node's bridge
        super().__init__(
            f"pod{n}{string.ascii_lowercase[index]}",
            space,
            f"10.244.{n}.{host}",
            f"fd00:10:244:{n:x}::{host:x}",
        )
        self.node = node.name


class Node(Host):
    """A node with its pods; its addresses are those on the wire."""

    def __init__(self, number: int, space: NetNS) -> None:
        super().__init__(
            f"node{number}", space, f"192.168.50.{number}", f"fd00:192:168:50::{number:x}"
        )
        self.number = number
        self.pods: list[Pod] = []
        self.pod_cidrs = (f"10.244.{number}.0/24", f"fd00:10:244:{number:x}::/64")
        self.bridge_ips = (f"10.244.{number}.1", f"fd00:10:244:{number:x}::1")


class Cluster:
    """A cluster of namespaces; a context manager that removes everything at its end.

    Args:
        nodes: how many nodes (``node1``, ``node2``, ...).
        pods: how many pods on each (``pod1a``, ``pod1b``, ...; ``pod2a``, ...).
    """

    def __init__(self, nodes: int = 1, pods: int = 3) -> None:
        if not (1 <= nodes <= 50 and 0 <= pods <= len(string.ascii_lowercase)):
            raise ValueError("1 to 50 nodes with up to 26 pods each")
        self.prefix = f"{PREFIX}-{os.getpid()}-{next(_serials)}"
        self.wire = self._space("wire")
        self.client = Host("client", self._space("client"), CLIENT_IPV4, CLIENT_IPV6)
        self.nodes = [Node(number, self._space(f"node{number}")) for number in range(1, nodes + 1)]
        for node in self.nodes:
            for index in range(pods):
                name = f"pod{node.number}{string.ascii_lowercase[index]}"
                node.pods.append(Pod(node, index, self._space(name)))
        self.pods = [pod for node in self.nodes for pod in node.pods]

    def _space(self, name: str) -> NetNS:
        return NetNS(f"{self.prefix}-{name}")

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def hosts(self) -> list[Host]:
        """Every machine that can have servers and clients."""
        return [self.client, *self.nodes, *self.pods]

    def host(self, name: str) -> Host:
        """The machine of this name: ``client``, ``node1``, ``pod1a``."""
        return next(host for host in self.hosts if host.name == name)

    def serve(self, *, tcp: Iterable[int] = (8080,), udp: Iterable[int] = ()) -> None:
        """Start the echo servers on every pod, all helper processes at the same time."""
        tcp, udp = list(tcp), list(udp)
        self.warm_up()
        for pod in self.pods:
            pod.traffic.serve(tcp=tcp, udp=udp)

    def warm_up(self) -> None:
        """Start all helper processes in parallel; otherwise each starts on first use."""
        for host in self.hosts:
            host.traffic  # noqa: B018 - the property starts it

    def route_vips(self, node: Node, ranges: Iterable[str] = (*SERVICE_CIDRS, *VIP_RANGES)) -> None:
        """Let the client send traffic for these ranges through ``node`` from now on."""
        netns.ip_batch(
            (f"route replace {cidr} via {node.ip(_family(cidr))}" for cidr in ranges),
            self.client.netns.name,
        )

    def close(self) -> None:
        """Stop every process in the cluster and remove its namespaces."""
        for host in self.hosts:
            host.close()
        netns.remove([self.wire.name, *(host.netns.name for host in self.hosts)])

    def _build(self) -> None:
        names = [self.wire.name, *(host.netns.name for host in self.hosts)]
        netns.ip_batch(f"netns add {name}" for name in names)
        self.wire.sysctl(_HOST_SYSCTLS | _BRIDGE_SYSCTLS)
        for node in self.nodes:
            node.netns.sysctl(_NODE_SYSCTLS | _BRIDGE_SYSCTLS)
        for host in (self.client, *self.pods):
            host.netns.sysctl(_HOST_SYSCTLS)
        netns.ip_batch(self._wire_lines(), self.wire.name)
        for node in self.nodes:
            netns.ip_batch(self._node_lines(node), node.netns.name)
            for pod in node.pods:
                netns.ip_batch(_pod_lines(node, pod), pod.netns.name)
        netns.ip_batch(self._client_lines(), self.client.netns.name)
        self.route_vips(self.nodes[0])

    def _wire_lines(self) -> Iterator[str]:
        yield "link set lo up"
        yield _bridge("wire")
        yield "link set wire up"
        for host in (self.client, *self.nodes):
            yield f"link add {host.name} type veth peer name eth0 netns {host.netns.name}"
            yield f"link set {host.name} master wire up"

    def _node_lines(self, node: Node) -> Iterator[str]:
        yield "link set lo up"
        yield "link set eth0 up"
        yield f"addr add {node.ipv4}/24 dev eth0"
        yield f"addr add {node.ipv6}/64 dev eth0 nodad"
        yield _bridge("br0")
        yield "link set br0 up"
        yield f"addr add {node.bridge_ips[0]}/24 dev br0"
        yield f"addr add {node.bridge_ips[1]}/64 dev br0 nodad"
        for pod in node.pods:
            yield f"link add {pod.name} type veth peer name eth0 netns {pod.netns.name}"
            yield f"link set {pod.name} master br0 up"
            yield f"link set {pod.name} type bridge_slave hairpin on"
        # Without a route for its address, the node's own traffic to a ClusterIP would fail
        # before OUTPUT sees it.
        yield f"route add default via {CLIENT_IPV4}"
        yield f"route add default via {CLIENT_IPV6}"
        yield from self._pod_routes(node)

    def _pod_routes(self, leave_out: Node | None = None) -> Iterator[str]:
        for node in self.nodes:
            if node is not leave_out:
                for cidr in node.pod_cidrs:
                    yield f"route add {cidr} via {node.ip(_family(cidr))}"

    def _client_lines(self) -> Iterator[str]:
        yield "link set lo up"
        yield "link set eth0 up"
        yield f"addr add {CLIENT_IPV4}/24 dev eth0"
        yield f"addr add {CLIENT_IPV6}/64 dev eth0 nodad"
        yield from self._pod_routes()


def cleanup_stale() -> list[str]:
    """Remove namespaces of clusters whose process is dead; return their names."""
    stale = []
    for name in netns.existing(f"{PREFIX}-"):
        owner = name.split("-")[1]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            stale.append(name)
    if stale:
        netns.remove(stale)
    return stale


def _family(address: str) -> int:
    return 6 if ":" in address else 4


def _bridge(name: str) -> str:
    # Without a querier, multicast snooping could block neighbour discovery.
    return f"link add {name} type bridge mcast_snooping 0 forward_delay 0"


def _pod_lines(node: Node, pod: Pod) -> Iterator[str]:
    gateway4, gateway6 = node.bridge_ips
    yield "link set lo up"
    yield "link set eth0 up"
    yield f"addr add {pod.ipv4}/32 dev eth0"
    yield f"addr add {pod.ipv6}/128 dev eth0 nodad"
    yield f"route add {gateway4} dev eth0"
    yield f"route add {gateway6} dev eth0"
    yield f"route add default via {gateway4} src {pod.ipv4}"
    yield f"route add default via {gateway6} src {pod.ipv6}"
