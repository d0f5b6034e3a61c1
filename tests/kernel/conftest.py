"""The stage of all scenarios: two nodes with pods, an outside client, and the daemon on node1.

Each test creates its own Services. A change is in the kernel when the call returns, so that a
test can immediately check what must no longer work.
"""

import contextlib
import itertools
import json
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Self

import pytest

from testbed import manifests as m
from testbed import netns
from testbed.cluster import SERVICE_CIDRS, VIP_RANGES, Cluster, Host, Node, Pod
from testbed.daemon import Daemon
from testbed.manifests import Object
from testbed.netns import NetNS
from testbed.outcomes import Answer, Outcome, Refused, TimedOut, Unreachable
from testbed.waiting import PATIENCE, eventually

Flags = Mapping[str, str | None]
Seen = set[tuple[str, str]]

TCP, UDP = ("tcp", 80), ("udp", 53)
PORTS = (
    m.port(80, name="http", target=8080),
    m.port(53, name="dns", target=5353, protocol="UDP"),
)
ENOUGH = 40
"""Connections after which one of up to three endpoints is still missing once in 10^6 times."""
SOON = 0.15 * PATIENCE
"""Seconds within which every answer or refusal has arrived."""
CLIENTS = 24
"""The number of addresses of the outside client."""
_MARKER = {4: "10.96.255.254", 6: "fd00:10:96::fffe"}


def at(pod: Host, family: int, **options: Any) -> Object:
    """An endpoint in a pod, or on a node's host network; ``options`` as ``m.endpoint`` has."""
    return m.endpoint(pod.ip(family), node=getattr(pod, "node", pod.name), **options)


def all_at(pods: Iterable[Host], family: int, **options: Any) -> list[Object]:
    return [at(pod, family, **options) for pod in pods]


def ask(
    host: Host,
    proto: str,
    address: str,
    port: int,
    *,
    n: int = ENOUGH,
    source: str = "",
) -> Seen:
    """Open ``n`` new connections, all of which must be answered; return servers and sources seen.

    Args:
        host: the client.
        proto: ``tcp`` or ``udp``.
        address: the destination address.
        port: the destination port.
        n: the number of connections.
        source: the source address, if the host has several.
    """
    connect = host.traffic.connect
    outcomes = (
        [connect(proto, address, port, source_address=source) for _ in range(n)]
        if source
        else host.traffic.dial(proto, address, port, n)
    )
    failures = [outcome for outcome in outcomes if not isinstance(outcome, Answer)]
    assert not failures, f"{host.name} to {address} {port}/{proto}: {failures[:3]}"
    return {(o.server, o.source) for o in outcomes if isinstance(o, Answer)}


def servers(host: Host, proto: str, address: str, port: int, n: int = ENOUGH) -> set[str]:
    """Return the names of the servers that answered ``n`` new connections."""
    return {server for server, _ in ask(host, proto, address, port, n=n)}


def _attempt(host: Host, proto: str, address: str, port: int, source: str) -> Outcome:
    if proto == "udp" and isinstance(host, Node):
        # If the node's own kernel drops its datagram, sending fails with EPERM; an ICMP error is
        # reported by the next datagram.
        with host.traffic.hold(proto, address, port, timeout=SOON) as held:
            return held.check(SOON) if isinstance(held.first, Unreachable) else held.first
    return host.traffic.connect(proto, address, port, timeout=SOON, source_address=source)


def assert_refused(
    host: Host, proto: str, address: str, port: int, *, how: str = "icmp", source: str = ""
) -> None:
    """Assert that connections are refused immediately.

    ``how`` is ``icmp`` if the proxy refuses, ``reset`` if the node's own TCP stack does.
    """
    outcome = _attempt(host, proto, address, port, source)
    if isinstance(outcome, TimedOut):
        # An ICMP error may be lost when both CPUs are busy.
        outcome = _attempt(host, proto, address, port, source)
    where = f"{host.name} to {address} {port}/{proto}"
    assert isinstance(outcome, Refused), f"{where}: {outcome}"
    if proto == "tcp":
        assert outcome.how == how, f"{where}: {outcome}"


def assert_dropped(host: Host, proto: str, address: str, port: int, *, source: str = "") -> None:
    """Assert that packets are dropped without an answer."""
    outcome = _attempt(host, proto, address, port, source)
    where = f"{host.name} to {address} {port}/{proto}"
    if proto == "udp" and isinstance(host, Node):
        assert isinstance(outcome, TimedOut | Unreachable), f"{where}: {outcome}"
    else:
        assert isinstance(outcome, TimedOut), f"{where}: {outcome}"


def assert_even(counts: Mapping[Any, int], among: int) -> None:
    """Assert that counts are evenly distributed (a false alarm once in 10^6 times)."""
    total = sum(counts.values())
    share = total / among
    assert len(counts) == among, counts
    chi_square = sum((count - share) ** 2 / share for count in counts.values())
    freedom = among - 1
    # Wilson and Hilferty's normal approximation, at 4.75 standard deviations.
    spread = 2 / (9 * freedom)
    assert chi_square < freedom * (1 - spread + 4.75 * spread**0.5) ** 3, counts


@pytest.fixture
def space() -> Iterator[NetNS]:
    """A network namespace of its own; all its interfaces are down."""
    made = NetNS(f"svp-space-{os.getpid()}-{id(object())}")
    netns.ip_batch([f"netns add {made.name}"])
    yield made
    netns.remove([made.name])


ALL_VARIANTS = ("nft", "legacy", "nftables", "ipvs")
"""iptables mode with either variant, nftables mode, and IPVS mode (in User Mode Linux)."""
IPTABLES = ("nft", "legacy")


def mode_flags(variant: str) -> dict[str, str]:
    """Return the daemon's flags for a variant; all of them serve node ports on all addresses."""
    if variant == "nftables":
        return {"proxy-mode": "nftables", "nodeport-addresses": "0.0.0.0/0,::/0"}
    if variant == "ipvs":
        return {"proxy-mode": "ipvs", "svcproxy-iptables-variant": "legacy"}
    return {"svcproxy-iptables-variant": variant}


def period_flags(variant: str, *, shortest: str = "", longest: str = "") -> dict[str, str]:
    """Return the flags for the minimum and the full sync period.

    IPVS mode has its own, as in kube-proxy; nftables mode has none on the command line.

    Args:
        variant: the variant.
        shortest: the minimum duration between two syncs.
        longest: the duration after which all rules are compared.
    """
    mode = "ipvs" if variant == "ipvs" else "iptables"
    found = {f"{mode}-min-sync-period": shortest, f"{mode}-sync-period": longest}
    return {name: value for name, value in found.items() if value}


class Offer:
    """A Service of one family on the stage, with its slices; calls return when it is programmed."""

    def __init__(self, stage: "Stage", family: int, service: Object) -> None:
        self.stage = stage
        self.family = family
        self.service = service
        self.slices: dict[str, Object] = {}

    @property
    def vip(self) -> str:
        return str(self.service["spec"]["clusterIP"])

    @property
    def spec(self) -> Object:
        spec: Object = self.service["spec"]
        return spec

    @property
    def node_ports(self) -> list[tuple[str, int]]:
        """Protocol and number of every node port."""
        return [(p["protocol"].lower(), p["nodePort"]) for p in self.spec["ports"]]

    @property
    def ports(self) -> list[tuple[str, int]]:
        """Protocol and number of every port."""
        return [(p["protocol"].lower(), p["port"]) for p in self.spec["ports"]]

    def endpoints(self, *endpoints: Object) -> None:
        """Replace the endpoints, in one slice."""
        self.slices = {"": m.endpoint_slice(self.service, endpoints)} if endpoints else {}
        self.stage.sync()

    def put_slices(self, **slices: Object) -> None:
        """Replace the slices."""
        self.slices = slices
        self.stage.sync()

    def change(self, **spec: Any) -> None:
        """Set fields of the Service's spec by their API names; ``None`` removes one."""
        self.spec.update(spec)
        for field in [field for field, value in spec.items() if value is None]:
            del self.spec[field]
        self.stage.sync()

    def load_balancer(self, *ingress: Object) -> None:
        """Set the Service's ingress points."""
        self.service["status"] = {"loadBalancer": {"ingress": list(ingress)}}
        self.stage.sync()

    def label(self, labels: Mapping[str, str]) -> None:
        """Set the Service's labels."""
        self.service["metadata"]["labels"] = dict(labels)
        self.stage.sync()

    def remove(self) -> None:
        """Delete the Service and its slices."""
        self.stage.offers.remove(self)
        self.stage.sync()

    @property
    def objects(self) -> list[Object]:
        return [self.service, *self.slices.values()]


class Stage:
    """The cluster, the daemon on its first node, and the objects that the daemon receives."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        variant: str,
        flags: Flags | None = None,
        *,
        known: bool = True,
    ) -> None:
        self.cluster = cluster
        self.variant = variant
        self.client = cluster.client
        self.node, self.other = cluster.nodes
        self.here: list[Pod] = self.node.pods
        self.there: list[Pod] = self.other.pods
        self.offers: list[Offer] = []
        self.node_object: Object | None = self._own_node() if known else None
        self.service_cidrs: list[str] = []
        self.folder = m.ManifestFolder(folder)
        self._numbers = itertools.count(1)
        self._revision = 0
        self._gathering = False
        self._write()
        fixed = {**mode_flags(variant), **period_flags(variant, shortest="0s")}
        self.daemon = Daemon(self.node, folder, flags={**fixed, **(flags or {})})

    def _own_node(self) -> Object:
        return m.node(self.node.name, addresses=[self.node.ipv4, self.node.ipv6])

    def clear(self) -> None:
        """Reset to the initial state: no Services, and the initial Node."""
        self.offers, self.service_cidrs = [], []
        self.node_object = self._own_node()
        self.sync()

    # --- Objects -----------------------------------------------------------------------------

    def address(self, family: int, *, outside: bool = False) -> str:
        """Return an unused address for a Service; ``outside`` ones are for load balancers."""
        number = next(self._numbers)
        if outside:
            return f"203.0.113.{number}" if family == 4 else f"fd00:203::{number:x}"
        return f"10.96.1.{number}" if family == 4 else f"fd00:10:96::{number:x}"

    def with_node_ports(self, ports: Iterable[Object] = PORTS) -> list[Object]:
        """Return the same ports with unused node ports."""
        return [{**port, "nodePort": 30000 + next(self._numbers)} for port in ports]

    def offer(
        self,
        family: int,
        endpoints: Iterable[Object] = (),
        *,
        ports: Iterable[Object] = PORTS,
        created: str = "",
        **spec: Any,
    ) -> Offer:
        """Create a Service of one family; ``spec`` as in ``m.service``.

        With ``type="NodePort"`` or ``"LoadBalancer"``, ports get node ports unless
        ``allocateLoadBalancerNodePorts`` is false.
        """
        external = spec.get("type") in {"NodePort", "LoadBalancer"}
        if external and spec.get("allocateLoadBalancerNodePorts", True):
            ports = [p if "nodePort" in p else self.with_node_ports([p])[0] for p in ports]
        name = spec.pop("name", f"s{next(self._numbers)}")
        vip = spec.pop("vip", None) or self.address(family)
        service = m.service(name, [vip], ports, **spec)
        if created:
            service["metadata"]["creationTimestamp"] = created
        made = Offer(self, family, service)
        self.offers.append(made)
        made.endpoints(*endpoints)
        return made

    def put_node(self, node: Object | None) -> None:
        """Change this node's Node object, or delete it with ``None``."""
        self.node_object = node
        self.sync()

    def put_service_cidrs(self, *cidrs: str) -> None:
        """Replace the ServiceCIDR by one with these ranges, or delete it."""
        self.service_cidrs = list(cidrs)
        self.sync()

    def sync(self) -> None:
        """Write all objects to the manifests folder and wait until the daemon has programmed them.

        They are in one file, whose last object is a marker: a Service whose port changes with
        every call. When it answers at the new port, all objects are in the kernel.
        """
        if self._gathering:
            return
        self._write()
        try:
            for vip in _MARKER.values():
                eventually(
                    lambda vip=vip: self._answers(vip),  # type: ignore[misc]
                    f"programming of revision {self._revision} at {vip}",
                    timeout=10.0,
                )
            if self.variant == "ipvs":
                # IPVS has no transactions: the marker may answer before all objects are programmed.
                eventually(self._is_settled, f"the end of revision {self._revision}")
        except AssertionError as error:
            error.add_note("\n".join(self.daemon.logs()[-20:]))
            raise

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Write all changes of the context together, at its end."""
        self._gathering = True
        try:
            yield
        finally:
            self._gathering = False
        self.sync()

    def _is_settled(self) -> bool:
        return self.daemon.metrics().value("svcproxy_queue_age_seconds") == 0

    def _answers(self, vip: str) -> bool:
        if not self.daemon.running:
            raise RuntimeError("the daemon is gone:\n" + "\n".join(self.daemon.logs()[-20:]))
        port = 10000 + self._revision
        outcome = self.node.traffic.connect("tcp", vip, port, timeout=0.02 * PATIENCE)
        return isinstance(outcome, Answer)

    def _write(self) -> None:
        self._revision += 1
        marker = m.service(
            "zz-marker",
            _MARKER.values(),
            [m.port(10000 + self._revision, name="marker", target=8080)],
        )
        slices = [m.endpoint_slice(marker, [at(self.here[0], family)]) for family in (4, 6)]
        nodes = [self.node_object] if self.node_object else []
        offered = [obj for offer in self.offers for obj in offer.objects]
        ranges = [m.service_cidr("kubernetes", self.service_cidrs)] if self.service_cidrs else []
        items = [*nodes, *ranges, *offered, *slices, marker]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        self.folder.write("stage.json", text)

    # --- Expected results --------------------------------------------------------------------

    def kept(self, source: Host, pods: Iterable[Host], family: int) -> Seen:
        """Return the sources that pods see for connections from ``source`` without masquerading.

        A pod that connects to itself sees its node: otherwise it would answer itself directly.
        """
        return {
            (pod.name, self.masked(pod, family) if pod is source else source.ip(family))
            for pod in pods
        }

    def masqueraded(self, pods: Iterable[Host], family: int) -> Seen:
        """Return the sources that pods see for masqueraded connections through node1."""
        return {(pod.name, self.masked(pod, family)) for pod in pods}

    def masked(self, pod: Host, family: int) -> str:
        """Return the address of node1 in the network of a pod."""
        if isinstance(pod, Pod) and pod.node == self.node.name:
            return self.node.bridge_ips[0 if family == 4 else 1]
        return self.node.ip(family)

    # --- The kernel --------------------------------------------------------------------------

    def iptables(self, family: int, *arguments: str) -> str:
        """Run iptables in node1."""
        variant = {"nftables": "nft", "ipvs": "legacy"}.get(self.variant, self.variant)
        program = f"{'iptables' if family == 4 else 'ip6tables'}-{variant}"
        return self.node.netns.run(program, *arguments).stdout

    def rules(self, family: int) -> list[str]:
        """Return all rules of the filter and nat tables of node1."""
        program = f"{'iptables' if family == 4 else 'ip6tables'}-{self.variant}-save"
        saved = (self.node.netns.run(program, "-t", t).stdout for t in ("filter", "nat"))
        return [line for text in saved for line in text.splitlines() if line.startswith("-A ")]

    @contextlib.contextmanager
    def own_address(self, address: str) -> Iterator[None]:
        """Give node1 an additional address within the context."""
        with contextlib.ExitStack() as stack:
            with self._noticed():
                stack.enter_context(another_address(self.node, address))
            yield
            with self._noticed():
                stack.close()

    @contextlib.contextmanager
    def _noticed(self) -> Iterator[None]:
        """Wait until IPVS mode has synced a change of addresses: it has virtual servers for each."""
        before = self._comparisons()
        yield
        if self.variant == "ipvs":
            eventually(
                lambda: all(
                    now > then for then, now in zip(before, self._comparisons(), strict=True)
                ),
                "virtual servers for the new addresses",
            )

    def _comparisons(self) -> list[float]:
        name = "kubeproxy_sync_full_proxy_rules_duration_seconds_count"
        metrics = self.daemon.metrics()
        return [metrics.value(name, ip_family=family) for family in ("IPv4", "IPv6")]


_RTF_LOCAL = 1 << 31
"""The flag of routes in the table ``local`` in /proc/net/ipv6_route (``linux/ipv6_route.h``)."""


def _is_local(host: Host, address: str) -> bool:
    """Whether a machine accepts packets to its new address.

    The kernel adds two routes for an IPv6 address on ``lo``: immediately one in the table
    ``main`` that rejects packets with "no route", and a moment later, from a work queue
    (``addrconf_dad_work``), the one in the table ``local`` that takes precedence.
    """
    if ":" not in address:
        return True
    routes = host.netns.call(Path("/proc/thread-self/net/ipv6_route").read_text)
    packed = f"{int(IPv6Address(address)):032x}"
    fields = (line.split() for line in routes.splitlines())
    return any(f[0] == packed and int(f[8], 16) & _RTF_LOCAL for f in fields)


@contextlib.contextmanager
def another_address(host: Host, address: str) -> Iterator[None]:
    """Give a machine an additional address within the context."""
    bits = "128 nodad" if ":" in address else "32"
    netns.ip_batch([f"addr add {address}/{bits} dev lo"], host.netns.name)
    try:
        eventually(lambda: _is_local(host, address), f"a local route to {address} on {host.name}")
        yield
    finally:
        netns.ip_batch([f"addr del {address}/{bits.split(maxsplit=1)[0]} dev lo"], host.netns.name)


def client_addresses(cluster: Cluster, family: int) -> list[str]:
    """Return the addresses of the outside client."""
    return [_client_address(family, index) for index in range(CLIENTS)]


def _client_address(family: int, index: int) -> str:
    return f"192.168.50.{100 + index}" if family == 4 else f"fd00:192:168:50::{100 + index}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests with a variant once for each; a module may limit them with ``VARIANTS``."""
    own = hasattr(metafunc.module, "variant") or "cluster" not in metafunc.fixturenames
    if "variant" in metafunc.fixturenames and not own:
        variants = getattr(metafunc.module, "VARIANTS", ALL_VARIANTS)
        if metafunc.definition.get_closest_marker("iptables_only"):
            variants = IPTABLES
        if metafunc.definition.get_closest_marker("nftables_only"):
            variants = ("nftables",)
        if metafunc.definition.get_closest_marker("localhost"):
            variants = tuple(variant for variant in variants if variant != "ipvs")
        metafunc.parametrize("variant", variants, scope="module")


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def flags() -> Flags:
    """Flags of the module's daemon, to be overridden."""
    return {}


@pytest.fixture(scope="module")
def cluster(variant: str) -> Iterator[Cluster]:
    """Two nodes with two pods each; every machine reaches Services through node1."""
    with Cluster(nodes=2, pods=2) as made:
        made.serve(tcp=(8080,), udp=(5353,))
        node, other = made.nodes
        netns.ip_batch(
            (
                f"route add {cidr} via {node.ip(6 if ':' in cidr else 4)}"
                for cidr in (*SERVICE_CIDRS, *VIP_RANGES)
            ),
            other.netns.name,
        )
        more = [_client_address(f, index) for f in (4, 6) for index in range(1, CLIENTS)]
        netns.ip_batch(
            (
                # deprecated: the kernel uses such a source address only if a socket is bound to it
                f"addr add {a}/64 dev eth0 nodad preferred_lft 0"
                if ":" in a
                else f"addr add {a}/24 dev eth0"
                for a in more
            ),
            made.client.netns.name,
        )
        yield made


@pytest.fixture(scope="module")
def stage(
    cluster: Cluster, variant: str, flags: Flags, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """The stage with the module's daemon."""
    made = Stage(cluster, tmp_path_factory.mktemp("manifests"), variant, flags)
    with made.daemon:
        made.sync()
        yield made


StageWith = Callable[..., Stage]


class Stages:
    """The stages of a module whose tests choose flags; one at a time, as there is one node.

    A test with the flags of the previous test uses the same daemon, but without its objects. This
    saves half of the daemon starts.
    """

    def __init__(self, cluster: Cluster, variant: str, folders: pytest.TempPathFactory) -> None:
        self._cluster, self._variant, self._folders = cluster, variant, folders
        self._started: tuple[object, Stage] | None = None

    def start(
        self, program: Sequence[str] = (), *, known: bool = True, **flags: str | None
    ) -> Stage:
        """Start a stage; flags are named with underscores.

        Args:
            program: the first words of the daemon's command line.
            known: whether a Node object for node1 exists from the start.
            flags: additional or changed flags; ``None`` removes a default flag.
        """
        asked = (tuple(program), flags)
        if self._started is not None:
            present, stage = self._started
            if present == asked and known and stage.daemon.running:
                stage.clear()
                return stage
        self.close()
        named = {name.replace("_", "-"): value for name, value in flags.items()}
        folder = self._folders.mktemp("manifests")
        stage = Stage(self._cluster, folder, self._variant, named, known=known)
        stage.daemon.program = program or stage.daemon.program
        self._started = (asked if known else None), stage
        stage.daemon.start()
        stage.daemon.wait_ready()
        stage.sync()
        return stage

    def close(self) -> None:
        """Stop the daemon of the current stage."""
        if self._started is not None:
            self._started[1].daemon.close()
            self._started = None


@pytest.fixture(scope="module")
def stages(
    cluster: Cluster, variant: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stages]:
    made = Stages(cluster, variant, tmp_path_factory)
    yield made
    made.close()


@pytest.fixture
def stage_with(stages: Stages) -> StageWith:
    """Create a stage whose daemon has other flags, see ``Stages.start``."""
    return stages.start


# --- Packets -------------------------------------------------------------------------------------


FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP or UDP packet; ``flags`` and ``sequence`` are 0 for UDP."""

    source: str
    target: str
    source_port: int
    port: int
    flags: int = 0
    sequence: int = 0


class Watch:
    """Captures the TCP and UDP packets that a machine receives from its network."""

    def __init__(self, host: Host) -> None:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
            made.bind(("eth0", 0x0003))  # every protocol
            made.setblocking(False)  # noqa: FBT003 - the only way to say it
            return made

        self._socket = host.netns.call(make)

    def packets(self) -> list[Packet]:
        """Return the packets received since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (_, _, kind, _, _) = self._socket.recvfrom(2000)
                packet = _parse(data) if kind != socket.PACKET_OUTGOING else None
                if packet is not None:
                    found.append(packet)
        return found

    def targets(self) -> set[str]:
        """Return the destinations of the packets received since the last call."""
        return {packet.target for packet in self.packets()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()


def _parse(data: bytes) -> Packet | None:
    if data[0] >> 4 == 4:
        head, proto, ends = (data[0] & 15) * 4, data[9], (data[12:16], data[16:20])
    else:
        head, proto, ends = 40, data[6], (data[8:24], data[24:40])
    if proto not in {socket.IPPROTO_TCP, socket.IPPROTO_UDP}:
        return None
    source, target = (str(ip_address(end)) for end in ends)
    source_port, port = struct.unpack("!HH", data[head : head + 4])
    if proto == socket.IPPROTO_UDP:
        return Packet(source, target, source_port, port)
    (sequence,) = struct.unpack("!I", data[head + 4 : head + 8])
    return Packet(source, target, source_port, port, data[head + 13], sequence)
