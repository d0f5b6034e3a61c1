"""Takeover from kube-proxy and rollback, in each pair of modes, without a failed connection.

``testbed.kube_proxy`` writes the rules of kube-proxy, which stay when kube-proxy stops. The pairs
of IPVS mode with itself and with legacy iptables run in User Mode Linux, whose nf_tables has no
tables for IP; those with the nft variant and with nftables mode run in a virtual machine.
"""

import contextlib
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from testbed import manifests, uml, vm
from testbed.cluster import Cluster
from testbed.daemon import Daemon
from testbed.forkserver import daemons
from testbed.kube_proxy import KubeProxyRules, Offered
from testbed.kube_proxy_ipvs import IPVS_DEVICE, KubeProxyIpvs
from testbed.manifests import ManifestFolder
from testbed.netns import ip_batch
from testbed.outcomes import Answer
from testbed.traffic import Held, Traffic
from testbed.waiting import SLOW, eventually
from tests.kernel.conftest import mode_flags, period_flags

pytestmark = pytest.mark.kernel

RATE = 300
"""Connections per second."""
PATIENCE = 10.0 if SLOW else 1.0
"""Seconds that a connection may take: in the guest, the load shares the only CPU with the daemon.
Lost packets are detected there by the kernel's counter of retransmitted SYNs."""
MODES = ("nft", "legacy", "nftables")
PROGRAMS = ("iptables", "ip6tables")
VARIANTS = ("legacy",) if uml.inside() else ("nft", "legacy")
LONG = 60.0 if SLOW else 5.0
"""Seconds until the clean-up is complete; it runs many programs, which start slowly in the guest."""
IPVS_PAIRS = [
    pytest.param(*pair, marks=pytest.mark.uml)
    for pair in (("ipvs", "ipvs"), ("ipvs", "legacy"), ("legacy", "ipvs"))
] + [
    pytest.param(*pair, marks=pytest.mark.vm)
    for pair in (("ipvs", "nft"), ("nft", "ipvs"), ("ipvs", "nftables"), ("nftables", "ipvs"))
]
IPVS_VARIANT = "nft" if vm.inside() else "legacy"
"""The variant of iptables that IPVS mode uses."""
VIPS = {4: "10.96.0.10", 6: "fd00:10:96::10"}
NODE_PORT = 30080
SECOND = {4: "192.168.50.101", 6: "fd00:192:168:50::101"}
"""The client's addresses for node ports. IPVS identifies connections by client and endpoint, so a
client port must not be used for a cluster IP and a node port of the same pod at the same time."""
KUBELETS = ("KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=1, pods=3) as built:
        built.serve(tcp=(8080,))
        lengths = ((SECOND[4], "/24"), (SECOND[6], "/64 nodad"))
        changes = (f"addr add {address}{length} dev eth0" for address, length in lengths)
        ip_batch(changes, built.client.netns.name)
        if SLOW:
            daemons()  # the fork server takes seconds to start, longer under load
        yield built


@pytest.fixture(scope="module")
def folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = ManifestFolder(tmp_path_factory.mktemp("manifests"))
    port = manifests.port(80, name="http", target=8080, node_port=NODE_PORT)
    web = manifests.service("web", VIPS.values(), [port], type="NodePort")
    # A Service without rules of kube-proxy; in iptables mode it has ipsets.
    sticky = manifests.service(
        "sticky",
        ["10.96.0.12", "fd00:10:96::12"],
        [manifests.port(80, name="http", target=8080)],
        sessionAffinity="ClientIP",
    )
    made.put(web, sticky)
    for service, family in itertools.product((web, sticky), (4, 6)):
        pods = [p.ip(family) for p in cluster.pods]
        made.put(manifests.endpoint_slice(service, pods, suffix=f"v{family}"))
    return made.path


class Target(NamedTuple):
    """An address and port that a client connects to, its rate per second, and its source address."""

    address: str
    port: int
    rate: float
    source: str = ""


class Open:
    """Connections that are kept open."""

    def __init__(self, client: Traffic, targets: Sequence[Target]) -> None:
        self._client, self._targets = client, targets
        self._held: list[Held] = []
        self._open()

    def _open(self) -> None:
        self._held = [
            self._client.hold("tcp", t.address, t.port, source_address=t.source, timeout=PATIENCE)
            for t in self._targets
        ]

    def close(self) -> None:
        """Close them; each must still get an answer."""
        for target, connection in zip(self._targets, self._held, strict=True):
            answer = connection.check(PATIENCE)
            assert isinstance(answer, Answer), f"an old connection to {target}"
            connection.close()

    def renew(self) -> None:
        """Close them and open new ones."""
        self.close()
        self._open()


class Machine:
    """The node, and what each mode of svcproxy and kube-proxy has in its kernel."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self.node = cluster.nodes[0]
        self.space = self.node.netns

    def kube_proxy(self, how: str) -> KubeProxyRules | KubeProxyIpvs:
        """Return kube-proxy's rules for the Service ``web`` in one of its modes."""
        return (
            self.kube_proxy_ipvs() if how == "ipvs" else KubeProxyRules(self.space, how, self._web)
        )

    def kube_proxy_ipvs(self, variant: str = IPVS_VARIANT, *more: Offered) -> KubeProxyIpvs:
        """Return kube-proxy's objects in IPVS mode, for ``web`` and more Services."""
        addresses = (*self.node.bridge_ips, *(self.node.ip(family) for family in VIPS))
        return KubeProxyIpvs(self.space, variant, (*self._web, *more), addresses)

    @property
    def _web(self) -> list[Offered]:
        pods = self._cluster.pods
        return [
            Offered("web", vip, 80, NODE_PORT, [p.ip(f) for p in pods], 8080)
            for f, vip in VIPS.items()
        ]

    def daemon(self, mode: str) -> Daemon:
        variant = {"svcproxy-iptables-variant": IPVS_VARIANT} if mode == "ipvs" else {}
        # Seconds until the clean-up is retried while connections are open.
        again = period_flags(mode, longest="1s") if SLOW else {}
        return Daemon(self.node, self._folder, flags={**mode_flags(mode), **variant, **again})

    @contextlib.contextmanager
    def traffic(self) -> Iterator["Open"]:
        """Open ``RATE`` connections per second, to cluster IPs and node ports; none may fail.

        Yields the connections that are open all the time.
        """
        client = self._cluster.client.traffic
        targets = [
            Target(VIPS[4], 80, RATE / 2),
            Target(VIPS[6], 80, RATE / 4),
            *(Target(self.node.ip(f), NODE_PORT, RATE / 8, SECOND[f]) for f in VIPS),
        ]
        before = self._sent_again()
        loads = [
            client.load(
                "tcp", t.address, t.port, rate=t.rate, source_address=t.source, timeout=PATIENCE
            )
            for t in targets
        ]
        held = Open(client, targets)
        yield held
        for target, load in zip(targets, loads, strict=True):
            result = load.stop()
            assert not result.failures, (target, result.labels)
            assert result.total >= target.rate / 4, (target, result.total)
        held.close()
        if SLOW:
            assert self._sent_again() == before, "a SYN was lost"

    def _sent_again(self) -> int:
        """Return how many SYNs the client had to retransmit."""
        text = self._cluster.client.netns.run("cat", "/proc/net/netstat").stdout
        names, figures = (line.split() for line in text.splitlines() if line[:6] == "TcpExt")
        return int(figures[names.index("TCPSynRetrans")])

    def chains(self, variant: str) -> set[str]:
        """Return the chains of kube-proxy and svcproxy in one variant, without those of kubelet."""
        found: set[str] = set()
        for program, tables in zip(PROGRAMS, ("ip_tables_names", "ip6_tables_names"), strict=True):
            names = self.space.run("cat", f"/proc/net/{tables}", check=False).stdout.split()
            if variant == "nft" or names:
                saved = self.space.run(f"{program}-{variant}-save").stdout
                found |= {line.split()[0][1:] for line in saved.splitlines() if line[:1] == ":"}
        return {c for c in found if c.startswith("KUBE-") and c not in KUBELETS}

    def tables(self) -> set[str]:
        """Return the nftables tables of kube-proxy and svcproxy."""
        if "nft" not in VARIANTS:
            return set()
        lines = self.space.run("nft", "list", "tables").stdout.splitlines()
        return {line.removeprefix("table ") for line in lines if "proxy" in line}

    def sets(self) -> set[str]:
        return set(self.space.run("ipset", "list", "-n").stdout.split())

    def stale_objects(self, mode: str) -> dict[str, set[str]]:
        """Return the objects of modes other than ``mode``; empty after a complete clean-up."""
        own = {"ip svcproxy", "ip6 svcproxy"} if mode == "nftables" else set()
        found = {
            "tables": self.tables() - own,
            "sets": {name for name in self.sets() if not _is_set_of(mode, name)},
            **{
                v: self.chains(v)
                for v in VARIANTS
                if v != (IPVS_VARIANT if mode == "ipvs" else mode)
            },
        }
        if mode in VARIANTS:
            other = ("KUBE-IPVS", "KUBE-NODE-PORT", "KUBE-LOAD", "KUBE-SOURCE", "KUBE-PROXY-CAN")
            found[mode] = {c for c in self.chains(mode) if c.startswith(other)}
        if mode == "ipvs":
            other = ("KUBE-SVC", "KUBE-SEP", "KUBE-EXT", "KUBE-NODEPORTS", "KUBE-PROXY-CAN")
            found[IPVS_VARIANT] = {c for c in self.chains(IPVS_VARIANT) if c.startswith(other)}
            # Both modes have a chain of this name, but not in this table.
            filters = [
                self.space.run(f"{p}-{IPVS_VARIANT}-save", "-t", "filter").stdout for p in PROGRAMS
            ]
            found["filter"] = {"KUBE-SERVICES" for saved in filters if "KUBE-SERVICES" in saved}
        return {what: names for what, names in found.items() if names}

    def wait_only(self, mode: str, daemon: Daemon | None = None, held: Open | None = None) -> None:
        """Wait until the objects of other modes are removed.

        If IPVS carries the ``held`` connections, it stays together with its access filter until
        they are closed and new ones opened.
        """
        if daemon and held and mode != "ipvs":
            daemon.wait_log("cleanup.not_removed", timeout=LONG)
            assert self.ipvs_objects()
            held.renew()
            self.wait_no_ipvs()
        eventually(lambda: not self.stale_objects(mode), f"nothing but {mode}", timeout=LONG)

    def ipvs_objects(self) -> str:
        """Return IPVS's virtual servers and interface as text; empty if there are none."""
        servers = self.space.run("ipvsadm", "-S", "-n").stdout
        return servers + self.space.run("ip", "link", "show", IPVS_DEVICE, check=False).stdout

    def wait_no_ipvs(self) -> None:
        eventually(lambda: not self.ipvs_objects(), "no IPVS objects", timeout=LONG)

    def clean_up(self) -> int:
        """Run ``svcproxy --cleanup`` and return its exit status."""
        command = (sys.executable, "-m", "svcproxy", "--cleanup")
        return self.space.run(*command, check=False).returncode


def _is_set_of(mode: str, name: str) -> bool:
    if name.startswith("KUBE-SEP"):
        return mode in {"nft", "legacy"}
    return mode == "ipvs" and name.startswith("KUBE-")


@pytest.fixture
def machine(cluster: Cluster, folder: Path) -> Iterator[Machine]:
    made = Machine(cluster, folder)
    yield made
    assert made.clean_up() == 0


@pytest.mark.parametrize(("before", "after"), [*itertools.product(MODES, MODES), *IPVS_PAIRS])
@pytest.mark.behaviour("The kernel: Takeover and rollback")
def test_takeover_and_rollback(machine: Machine, before: str, after: str) -> None:
    rules = machine.kube_proxy(before)
    rules.install()
    with machine.traffic() as held:
        with machine.daemon(after) as daemon:
            machine.wait_only(after, daemon, held if before == "ipvs" else None)
        rules.install()
        if after == "nftables":
            # kube-proxy ignores svcproxy's table: docs say to delete it once kube-proxy serves.
            for family in ("ip", "ip6"):
                machine.space.run("nft", "delete", "table", family, "svcproxy")


@pytest.mark.uml
@pytest.mark.behaviour("The kernel: Takeover and rollback")
def test_stale_services_of_kube_proxys_ipvs_mode_are_removed(machine: Machine) -> None:
    """In IPVS mode too: the Service was deleted while no proxy ran."""
    stale = [
        Offered("stale", vip, 80, NODE_PORT + 1, [], 8080)
        for vip in ("10.96.0.99", "fd00:10:96::99")
    ]
    machine.kube_proxy_ipvs("legacy", *stale).install()
    assert all(o.vip in machine.ipvs_objects() for o in stale)
    with machine.daemon("ipvs"):
        for vip in (o.vip for o in stale):
            eventually(lambda vip=vip: vip not in machine.ipvs_objects(), f"no {vip}")  # type: ignore[misc]
        addresses = machine.space.run("ip", "address", "show", "dev", IPVS_DEVICE).stdout
        assert VIPS[4] in addresses
        assert stale[0].vip not in addresses


@pytest.mark.behaviour("The kernel: Change of the mode")
def test_every_change_of_mode(machine: Machine) -> None:
    """All six changes without IPVS, under one load; each removes the objects of the former mode."""
    first, *others = ("nft", "legacy", "nft", "nftables", "legacy", "nftables", "nft")
    with machine.daemon(first) as daemon:
        daemon.stop()
    with machine.traffic():
        for mode in others:
            with machine.daemon(mode):
                machine.wait_only(mode)


@pytest.mark.vm
@pytest.mark.behaviour("The kernel: Change of the mode")
def test_every_change_of_mode_with_ipvs(machine: Machine) -> None:
    """From IPVS to all others and back, also from client ports that IPVS still remembers."""
    modes = ("ipvs", "nft", "ipvs", "legacy", "ipvs", "nftables", "ipvs")
    with machine.daemon(modes[0]) as daemon:
        daemon.stop()
    with machine.traffic() as held:
        for former, mode in itertools.pairwise(modes):
            with machine.daemon(mode) as daemon:
                machine.wait_only(mode, daemon, held if former == "ipvs" else None)
                if mode == "ipvs":
                    held.renew()  # these connections go through IPVS


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.behaviour("The kernel: Takeover and rollback")
def test_rules_of_ipvs_mode_are_removed(machine: Machine, mode: str) -> None:
    """Chains whose names iptables mode uses as well stay in the variant that it uses."""
    for variant in ("nft", "legacy"):
        machine.kube_proxy_ipvs(variant).install_rules()
    # This kernel has no dummy links; only the name matters.
    machine.space.run("ip", "link", "add", IPVS_DEVICE, "type", "bridge")
    with machine.daemon(mode):
        assert machine.sets()
        machine.wait_only(mode)
        eventually(
            lambda: machine.space.run("ip", "link", "show", IPVS_DEVICE, check=False).returncode,
            "no device",
        )


@pytest.mark.behaviour("The kernel: `--cleanup`")
def test_cleanup_removes_all_modes_and_keeps_objects_of_other_programs(machine: Machine) -> None:
    foreign = {
        "nat": ["-A", "PREROUTING", "-p", "tcp", "--dport", "9999", "-j", "RETURN"],
        "filter": ["-N", "KUBE-FIREWALL"],
        "mangle": ["-N", "KUBE-KUBELET-CANARY"],
    }
    for variant in ("nft", "legacy"):
        for table, rule in foreign.items():
            # The chain of kubelet may exist already: svcproxy creates it, too.
            machine.space.run(f"iptables-{variant}", "-t", table, *rule, check=False)
    machine.space.run("nft", "add", "table", "ip", "others")
    machine.space.run("ipset", "create", "OTHERS", "hash:ip")
    for mode in MODES:
        machine.kube_proxy(mode).install()
        machine.kube_proxy_ipvs("legacy" if mode == "legacy" else "nft").install_rules()
    for mode in MODES:
        with machine.daemon(mode):
            pass
    assert machine.clean_up() == 0
    assert machine.stale_objects("") == {"sets": {"OTHERS"}}
    assert "ip others" in machine.space.run("nft", "list", "tables").stdout
    for variant in ("nft", "legacy"):
        saved = machine.space.run(f"iptables-{variant}-save").stdout
        assert "--dport 9999" in saved
        assert all(f":{name} " in saved for name in KUBELETS[:2])
        rule = ["-D" if word == "-A" else word for word in foreign["nat"]]
        machine.space.run(f"iptables-{variant}", "-t", "nat", *rule)
    machine.space.run("nft", "delete", "table", "ip", "others")
    machine.space.run("ipset", "destroy", "OTHERS")
    assert machine.clean_up() == 0, "again, with nothing to remove"


@pytest.mark.behaviour("The kernel: `--cleanup`")
def test_cleanup_creates_no_legacy_tables(cluster: Cluster) -> None:
    """Reading a legacy table with iptables-legacy-save would create it."""
    space = cluster.pods[0].netns
    done = space.run(sys.executable, "-m", "svcproxy", "--cleanup")
    assert done.returncode == 0
    assert not space.run("cat", "/proc/net/ip_tables_names").stdout
    assert not space.run("cat", "/proc/net/ip6_tables_names").stdout


@pytest.mark.behaviour("The kernel: Change of the mode")
def test_a_failed_removal_is_reported_once_and_retried(machine: Machine, folder: Path) -> None:
    """An ipset stays as long as a rule of another program uses it."""
    machine.kube_proxy_ipvs("nft").install_rules()
    rule = ["FORWARD", "-m", "set", "--match-set", "KUBE-CLUSTER-IP", "dst,dst", "-j", "DROP"]
    machine.space.run("iptables-nft", "-A", *rule)
    with Daemon(
        machine.node, folder, flags={**mode_flags("nft"), "iptables-sync-period": "1s"}
    ) as daemon:
        line = daemon.wait_log("cleanup.not_removed")
        assert "KUBE-CLUSTER-IP" in line
        assert "KUBE-CLUSTER-IP" in machine.sets()
        time.sleep(1.5)  # no second report in the next sync period
        assert sum("cleanup.not_removed" in line for line in daemon.logs()) == 1, "reported once"
        machine.space.run("iptables-nft", "-D", *rule)
        eventually(
            lambda: "KUBE-CLUSTER-IP" not in machine.sets(), "the removal of the ipset", timeout=3.0
        )


def test_invalid_packets_are_accepted_if_conntrack_is_liberal(machine: Machine) -> None:
    """As in kube-proxy, the value of the parameter counts, not the flag."""
    for liberal in (True, False):
        value = str(int(liberal))
        machine.space.sysctl({"netfilter/nf_conntrack_tcp_be_liberal": value})
        with machine.daemon("nft"):
            saved = machine.space.run("iptables-nft-save", "-t", "filter").stdout
            drops = [line for line in saved.splitlines() if "--ctstate INVALID" in line]
            assert all(line.endswith("-j DROP") for line in drops)
            assert bool(drops) is not liberal
