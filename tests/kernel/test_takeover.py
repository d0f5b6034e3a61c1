"""kube-proxy leaves, svcproxy comes, and back: in every pair of modes, without a failed connection.

kube-proxy is played by its rules (``testbed.kube_proxy``); leaving them in place is what it does
when it ends. The pairs of IPVS mode with itself and with legacy iptables run in User Mode Linux,
whose nf_tables has no tables for IP; those with the nft variant and with nftables mode in a virtual machine.
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
"""Connections a second."""
PATIENCE = 10.0 if SLOW else 1.0
"""Seconds that a connection may take: the load shares the guest's only CPU with the daemon, and
waits for it. That no packet is lost is told there by the kernel, which sends none again."""
MODES = ("nft", "legacy", "nftables")
PROGRAMS = ("iptables", "ip6tables")
VARIANTS = ("legacy",) if uml.inside() else ("nft", "legacy")
LONG = 60.0 if SLOW else 5.0
"""Seconds until the leftovers are gone; it takes many programs, which start slowly in the guest."""
IPVS_PAIRS = [
    pytest.param(*pair, marks=pytest.mark.uml)
    for pair in (("ipvs", "ipvs"), ("ipvs", "legacy"), ("legacy", "ipvs"))
] + [
    pytest.param(*pair, marks=pytest.mark.vm)
    for pair in (("ipvs", "nft"), ("nft", "ipvs"), ("ipvs", "nftables"), ("nftables", "ipvs"))
]
IPVS_VARIANT = "nft" if vm.inside() else "legacy"
"""Of iptables, for what IPVS mode needs of it."""
VIPS = {4: "10.96.0.10", 6: "fd00:10:96::10"}
NODE_PORT = 30080
SECOND = {4: "192.168.50.101", 6: "fd00:192:168:50::101"}
"""The client's addresses for node ports. IPVS tells connections by client and endpoint: one that
uses a port for a cluster IP and for a node port at a time confuses it, if both lead to one pod."""
KUBELETS = ("KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=1, pods=3) as built:
        built.serve(tcp=(8080,))
        lengths = ((SECOND[4], "/24"), (SECOND[6], "/64 nodad"))
        changes = (f"addr add {address}{length} dev eth0" for address, length in lengths)
        ip_batch(changes, built.client.netns.name)
        if SLOW:
            daemons()  # what starts them takes seconds to start, more so under load
        yield built


@pytest.fixture(scope="module")
def folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = ManifestFolder(tmp_path_factory.mktemp("manifests"))
    port = manifests.port(80, name="http", target=8080, node_port=NODE_PORT)
    web = manifests.service("web", VIPS.values(), [port], type="NodePort")
    # What only we serve: it has ipsets with the iptables variants.
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
    """What a client asks, from where (empty for any of its addresses), and how often a second."""

    address: str
    port: int
    rate: float
    source: str = ""


class Open:
    """Connections that stay open."""

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
        """Close them, each of which must still be answered."""
        for target, connection in zip(self._targets, self._held, strict=True):
            answer = connection.check(PATIENCE)
            assert isinstance(answer, Answer), f"an old connection to {target}"
            connection.close()

    def renew(self) -> None:
        """Close them and open others."""
        self.close()
        self._open()


class Machine:
    """The node as a takeover sees it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self.node = cluster.nodes[0]
        self.space = self.node.netns

    def kube_proxy(self, how: str) -> KubeProxyRules | KubeProxyIpvs:
        """What kube-proxy lays for the Service ``web``, in one of its modes."""
        return (
            self.kube_proxy_ipvs() if how == "ipvs" else KubeProxyRules(self.space, how, self._web)
        )

    def kube_proxy_ipvs(self, variant: str = IPVS_VARIANT, *more: Offered) -> KubeProxyIpvs:
        """kube-proxy's IPVS mode, for ``web`` and more Services."""
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
        # What open connections keep in place is looked at again after this time.
        again = period_flags(mode, longest="1s") if SLOW else {}
        return Daemon(self.node, self._folder, flags={**mode_flags(mode), **variant, **again})

    @contextlib.contextmanager
    def traffic(self) -> Iterator["Open"]:
        """``RATE`` connections a second, to cluster IPs and node ports; none may fail.

        Gives the connections that are open all the while.
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
            assert self._sent_again() == before, "a connection had to be asked for again"

    def _sent_again(self) -> int:
        """How many first packets the client had to send once more, after a second."""
        text = self._cluster.client.netns.run("cat", "/proc/net/netstat").stdout
        names, figures = (line.split() for line in text.splitlines() if line[:6] == "TcpExt")
        return int(figures[names.index("TCPSynRetrans")])

    def chains(self, variant: str) -> set[str]:
        """The names of kube-proxy's and our chains in one variant, kubelet's left out."""
        found: set[str] = set()
        for program, tables in zip(PROGRAMS, ("ip_tables_names", "ip6_tables_names"), strict=True):
            names = self.space.run("cat", f"/proc/net/{tables}", check=False).stdout.split()
            if variant == "nft" or names:
                saved = self.space.run(f"{program}-{variant}-save").stdout
                found |= {line.split()[0][1:] for line in saved.splitlines() if line[:1] == ":"}
        return {c for c in found if c.startswith("KUBE-") and c not in KUBELETS}

    def tables(self) -> set[str]:
        """The nftables tables that are no iptables'."""
        if "nft" not in VARIANTS:
            return set()
        lines = self.space.run("nft", "list", "tables").stdout.splitlines()
        return {line.removeprefix("table ") for line in lines if "proxy" in line}

    def sets(self) -> set[str]:
        return set(self.space.run("ipset", "list", "-n").stdout.split())

    def remains_of_others(self, mode: str) -> dict[str, set[str]]:
        """What is not ``mode``'s; empty when all of it has gone."""
        ours = {"ip svcproxy", "ip6 svcproxy"} if mode == "nftables" else set()
        found = {
            "tables": self.tables() - ours,
            "sets": {name for name in self.sets() if not _is_set_of(mode, name)},
            **{
                v: self.chains(v)
                for v in VARIANTS
                if v != (IPVS_VARIANT if mode == "ipvs" else mode)
            },
        }
        if mode in VARIANTS:
            strange = ("KUBE-IPVS", "KUBE-NODE-PORT", "KUBE-LOAD", "KUBE-SOURCE", "KUBE-PROXY-CAN")
            found[mode] = {c for c in self.chains(mode) if c.startswith(strange)}
        if mode == "ipvs":
            strange = ("KUBE-SVC", "KUBE-SEP", "KUBE-EXT", "KUBE-NODEPORTS", "KUBE-PROXY-CAN")
            found[IPVS_VARIANT] = {c for c in self.chains(IPVS_VARIANT) if c.startswith(strange)}
            # Both modes have a chain of this name, but not in this table.
            filters = [
                self.space.run(f"{p}-{IPVS_VARIANT}-save", "-t", "filter").stdout for p in PROGRAMS
            ]
            found["filter"] = {"KUBE-SERVICES" for saved in filters if "KUBE-SERVICES" in saved}
        return {what: names for what, names in found.items() if names}

    def wait_only(self, mode: str, daemon: Daemon | None = None, held: Open | None = None) -> None:
        """Wait until there is nothing of other modes.

        If IPVS carries connections, the ``held`` ones, it stays with what guards it; they are
        closed when that has been seen, and others opened.
        """
        if daemon and held and mode != "ipvs":
            daemon.wait_log("cleanup.not_removed", timeout=LONG)
            assert self.ipvs_remains()
            held.renew()
            self.wait_no_ipvs()
        eventually(lambda: not self.remains_of_others(mode), f"nothing but {mode}", timeout=LONG)

    def ipvs_remains(self) -> str:
        """What there is of IPVS itself, as text; empty if there is nothing."""
        servers = self.space.run("ipvsadm", "-S", "-n").stdout
        return servers + self.space.run("ip", "link", "show", IPVS_DEVICE, check=False).stdout

    def wait_no_ipvs(self) -> None:
        eventually(lambda: not self.ipvs_remains(), "IPVS's end", timeout=LONG)

    def clean_up(self) -> int:
        """``svcproxy --cleanup``; its exit status."""
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


@pytest.mark.parametrize(("theirs", "ours"), [*itertools.product(MODES, MODES), *IPVS_PAIRS])
def test_takeover_and_rollback(machine: Machine, theirs: str, ours: str) -> None:
    rules = machine.kube_proxy(theirs)
    rules.install()
    with machine.traffic() as held:
        with machine.daemon(ours) as daemon:
            machine.wait_only(ours, daemon, held if theirs == "ipvs" else None)
        rules.install()
        if ours == "nftables":
            # kube-proxy knows nothing of our table: docs say to delete it once kube-proxy serves.
            for family in ("ip", "ip6"):
                machine.space.run("nft", "delete", "table", family, "svcproxy")


@pytest.mark.uml
def test_what_only_kube_proxys_ipvs_mode_served_goes(machine: Machine) -> None:
    """Also when our mode is IPVS, too: its Service was deleted while nobody was there."""
    gone = [
        Offered("gone", vip, 80, NODE_PORT + 1, [], 8080)
        for vip in ("10.96.0.99", "fd00:10:96::99")
    ]
    machine.kube_proxy_ipvs("legacy", *gone).install()
    assert all(o.vip in machine.ipvs_remains() for o in gone)
    with machine.daemon("ipvs"):
        for o in gone:
            eventually(lambda o=o: o.vip not in machine.ipvs_remains(), f"the end of {o.vip}")  # type: ignore[misc]
        addresses = machine.space.run("ip", "address", "show", "dev", IPVS_DEVICE).stdout
        assert VIPS[4] in addresses
        assert gone[0].vip not in addresses


def test_every_change_of_our_own_mode(machine: Machine) -> None:
    """All six changes without IPVS, under one load; nothing of the former mode is left after each."""
    first, *others = ("nft", "legacy", "nft", "nftables", "legacy", "nftables", "nft")
    with machine.daemon(first) as daemon:
        daemon.stop()
    with machine.traffic():
        for mode in others:
            with machine.daemon(mode):
                machine.wait_only(mode)


@pytest.mark.vm
def test_every_change_of_our_own_mode_with_ipvs(machine: Machine) -> None:
    """From IPVS to all others and back, also on the ports that it still remembers."""
    modes = ("ipvs", "nft", "ipvs", "legacy", "ipvs", "nftables", "ipvs")
    with machine.daemon(modes[0]) as daemon:
        daemon.stop()
    with machine.traffic() as held:
        for former, mode in itertools.pairwise(modes):
            with machine.daemon(mode) as daemon:
                machine.wait_only(mode, daemon, held if former == "ipvs" else None)
                if mode == "ipvs":
                    held.renew()  # so that IPVS has something to carry


@pytest.mark.parametrize("mode", MODES)
def test_ipvs_modes_rules_go(machine: Machine, mode: str) -> None:
    """Its chains share names with iptables mode's: those stay where they are in use."""
    for variant in ("nft", "legacy"):
        machine.kube_proxy_ipvs(variant).install_rules()
    # This kernel has no dummy links; what counts is the name.
    machine.space.run("ip", "link", "add", IPVS_DEVICE, "type", "bridge")
    with machine.daemon(mode):
        assert machine.sets()
        machine.wait_only(mode)
        eventually(
            lambda: machine.space.run("ip", "link", "show", IPVS_DEVICE, check=False).returncode,
            "no device",
        )


def test_cleanup_leaves_nothing_of_any_mode_and_others_alone(machine: Machine) -> None:
    foreign = {
        "nat": ["-A", "PREROUTING", "-p", "tcp", "--dport", "9999", "-j", "RETURN"],
        "filter": ["-N", "KUBE-FIREWALL"],
        "mangle": ["-N", "KUBE-KUBELET-CANARY"],
    }
    for variant in ("nft", "legacy"):
        for table, rule in foreign.items():
            # Kubelet's may be there already: our daemon lays that chain, too.
            machine.space.run(f"iptables-{variant}", "-t", table, *rule, check=False)
    machine.space.run("nft", "add", "table", "ip", "others")
    machine.space.run("ipset", "create", "OTHERS", "hash:ip")
    for theirs in MODES:
        machine.kube_proxy(theirs).install()
        machine.kube_proxy_ipvs("legacy" if theirs == "legacy" else "nft").install_rules()
    for ours in MODES:
        with machine.daemon(ours):
            pass
    assert machine.clean_up() == 0
    assert machine.remains_of_others("") == {"sets": {"OTHERS"}}
    assert "ip others" in machine.space.run("nft", "list", "tables").stdout
    for variant in ("nft", "legacy"):
        saved = machine.space.run(f"iptables-{variant}-save").stdout
        assert "--dport 9999" in saved
        assert all(f":{name} " in saved for name in KUBELETS[:2])
        rule = ["-D" if word == "-A" else word for word in foreign["nat"]]
        machine.space.run(f"iptables-{variant}", "-t", "nat", *rule)
    machine.space.run("nft", "delete", "table", "ip", "others")
    machine.space.run("ipset", "destroy", "OTHERS")
    assert machine.clean_up() == 0, "once more, with nothing left to remove"


def test_cleanup_makes_no_legacy_tables(cluster: Cluster) -> None:
    """To look at a legacy table with its own tools would create it."""
    space = cluster.pods[0].netns
    done = space.run(sys.executable, "-m", "svcproxy", "--cleanup")
    assert done.returncode == 0
    assert not space.run("cat", "/proc/net/ip_tables_names").stdout
    assert not space.run("cat", "/proc/net/ip6_tables_names").stdout


def test_a_failed_removal_is_told_and_tried_again(machine: Machine, folder: Path) -> None:
    """A foreign rule that uses one of the ipsets keeps it; when the rule goes, the set goes."""
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
        eventually(lambda: "KUBE-CLUSTER-IP" not in machine.sets(), "the set's end", timeout=3.0)


def test_invalid_packets_pass_where_conntrack_is_liberal(machine: Machine) -> None:
    """kube-proxy reads the parameter, whoever has set it."""
    for liberal in (True, False):
        value = str(int(liberal))
        machine.space.sysctl({"netfilter/nf_conntrack_tcp_be_liberal": value})
        with machine.daemon("nft"):
            saved = machine.space.run("iptables-nft-save", "-t", "filter").stdout
            drops = [line for line in saved.splitlines() if "--ctstate INVALID" in line]
            assert all(line.endswith("-j DROP") for line in drops)
            assert bool(drops) is not liberal
