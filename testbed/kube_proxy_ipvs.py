"""Installs the IPVS mode of kube-proxy 1.36 for a few Services; see ``testbed.kube_proxy``.

Written by hand after ``pkg/proxy/ipvs``. It writes in kube-proxy's order and accepts existing
objects; unknown virtual servers are removed last.
"""

from collections.abc import Iterable, Iterator, Sequence

from testbed.cluster import CLUSTER_CIDRS
from testbed.kube_proxy import JUMPS, MARK, Jumps, Offered, common_nat, restore, restore_input
from testbed.netns import NetNS, ip_batch

IPVS_DEVICE = "kube-ipvs0"
_IPVS_JUMPS: Jumps = {
    "filter": (
        ("FORWARD", False, "kubernetes forwarding rules", "KUBE-FORWARD"),
        ("INPUT", False, "kubernetes health check rules", "KUBE-NODE-PORT"),
        ("INPUT", False, "kube-proxy firewall rules", "KUBE-PROXY-FIREWALL"),
        ("FORWARD", False, "kube-proxy firewall rules", "KUBE-PROXY-FIREWALL"),
        ("INPUT", False, "kubernetes ipvs access filter", "KUBE-IPVS-FILTER"),
        ("OUTPUT", False, "kubernetes ipvs access filter", "KUBE-IPVS-OUT-FILTER"),
    ),
    "nat": JUMPS["nat"],
}
_SETS = {
    "LOOP-BACK": "hash:ip,port,ip",
    "CLUSTER-IP": "hash:ip,port",
    "EXTERNAL-IP": "hash:ip,port",
    "EXTERNAL-IP-LOCAL": "hash:ip,port",
    "LOAD-BALANCER": "hash:ip,port",
    "LOAD-BALANCER-FW": "hash:ip,port",
    "LOAD-BALANCER-LOCAL": "hash:ip,port",
    "LOAD-BALANCER-SOURCE-IP": "hash:ip,port,ip",
    "LOAD-BALANCER-SOURCE-CIDR": "hash:ip,port,net",
    "NODE-PORT-TCP": "bitmap:port",
    "NODE-PORT-LOCAL-TCP": "bitmap:port",
    "NODE-PORT-UDP": "bitmap:port",
    "NODE-PORT-LOCAL-UDP": "bitmap:port",
    "NODE-PORT-SCTP-HASH": "hash:ip,port",
    "NODE-PORT-LOCAL-SCTP-HASH": "hash:ip,port",
    "HEALTH-CHECK-NODE-PORT": "bitmap:port",
    "IPVS-IPS": "hash:ip",
}
_SYSCTLS = ("conntrack", "expire_nodest_conn", "expire_quiescent_template")


class KubeProxyIpvs:
    """Installs kube-proxy's IPVS mode in a namespace.

    Args:
        space: the namespace.
        variant: the variant of iptables: ``nft`` or ``legacy``.
        offered: the Services.
        node_addresses: the addresses of both families on which it serves node ports.
    """

    def __init__(
        self,
        space: NetNS,
        variant: str,
        offered: Iterable[Offered],
        node_addresses: Iterable[str],
    ) -> None:
        self._space = space
        self._variant = variant
        self._offered = list(offered)
        self._node_addresses = list(node_addresses)

    def install(self) -> None:
        """Install addresses, virtual servers, ipsets and rules; then remove stale objects."""
        self._space.sysctl({f"ipv4/vs/{name}": "1" for name in _SYSCTLS})
        self._bind()
        wanted = dict(self._servers())
        present = self._present()
        lines = []
        for server, reals in wanted.items():
            lines.append(f"{'-E' if server in present else '-A'} {server} -s rr")
            known = present.get(server, set())
            lines += [f"-{'e' if r in known else 'a'} {server} -r {r} -m -w 1" for r in reals]
        self._ipvsadm(lines)
        self.install_rules()
        self._ipvsadm([f"-D {server}" for server in present.keys() - wanted.keys()])

    def install_rules(self) -> None:
        """Install ipsets and rules only, which also a kernel without IPVS supports."""
        for family in (4, 6):
            mine = [o for o in self._offered if o.family == family]
            self._space.run("ipset", "restore", "-exist", stdin=_sets(mine, family))
            restore(self._space, family, self._variant, _rules(mine, family), _IPVS_JUMPS)

    def _bind(self) -> None:
        ip_batch([f"link add {IPVS_DEVICE} type dummy"], self._space.name, force=True)
        addresses = (f"addr replace {o.vip}/{o.bits} dev {IPVS_DEVICE}" for o in self._offered)
        ip_batch(addresses, self._space.name)

    def _servers(self) -> Iterator[tuple[str, list[str]]]:
        """Yield virtual servers and their real servers in ipvsadm's format."""
        for o in self._offered:
            reals = [_socket(endpoint, o.target) for endpoint in o.endpoints]
            nodes = [a for a in self._node_addresses if (":" in a) is (o.family == 6)]
            yield f"-t {_socket(o.vip, o.port)}", reals
            for address in nodes:
                yield f"-t {_socket(address, o.node_port)}", reals

    def _present(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for line in self._space.run("ipvsadm", "-S", "-n").stdout.splitlines():
            command, kind, server, *more = line.split()
            reals = found.setdefault(f"{kind} {server}", set())
            if command == "-a":
                reals.add(more[1])
        return found

    def _ipvsadm(self, lines: Sequence[str]) -> None:
        if lines:
            self._space.run("ipvsadm", "-R", stdin="".join(f"{line}\n" for line in lines))


def _socket(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _set(name: str, family: int) -> str:
    # kube-proxy truncates names to the maximum length of a set's name.
    return f"KUBE-{'6-' if family == 6 else ''}{name}"[:31]


def _sets(offered: Sequence[Offered], family: int) -> str:
    """Return the input of ipset; existing sets and entries stay."""
    hashed = f"family {'inet6' if family == 6 else 'inet'} hashsize 1024 maxelem 65536"
    entries = [entry for o in offered for entry in _entries(o)]
    return "".join(
        (
            *(
                f"create {_set(name, family)} {kind}"
                f" {'range 0-65535' if kind == 'bitmap:port' else hashed}\n"
                for name, kind in _SETS.items()
            ),
            *(f"add {_set(name, family)} {entry}\n" for name, entry in entries),
        )
    )


def _entries(o: Offered) -> Iterator[tuple[str, str]]:
    yield "CLUSTER-IP", f"{o.vip},tcp:{o.port}"
    yield "IPVS-IPS", o.vip
    yield "NODE-PORT-TCP", str(o.node_port)
    for endpoint in o.endpoints:
        yield "LOOP-BACK", f"{endpoint},tcp:{o.target},{endpoint}"


def _rules(offered: Sequence[Offered], family: int) -> str:
    """Return the restore input; as in kube-proxy, rules for empty sets are omitted."""

    def match(name: str, fields: str = "dst,dst") -> str:
        return f"-m set --match-set {_set(name, family)} {fields}"

    loopback = "::1/128" if family == 6 else "127.0.0.0/8"
    outside = f"! -s {CLUSTER_CIDRS[family == 6]}"
    nat = {
        "KUBE-SERVICES": [f"-s {loopback} -j RETURN"],
        "KUBE-NODE-PORT": [],
        "KUBE-LOAD-BALANCER": ["-j KUBE-MARK-MASQ"],
        **common_nat(),
    }
    if offered:
        nat["KUBE-SERVICES"] += [
            f"{match('CLUSTER-IP')} {outside} -j KUBE-MARK-MASQ",
            "-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT",
            f"{match('CLUSTER-IP')} -j ACCEPT",
        ]
        nat["KUBE-NODE-PORT"] += [f"-p tcp {match('NODE-PORT-TCP', 'dst')} -j KUBE-MARK-MASQ"]
        nat["KUBE-POSTROUTING"].insert(0, f"{match('LOOP-BACK', 'dst,dst,src')} -j MASQUERADE")
    filters = {
        "KUBE-NODE-PORT": [f"{match('HEALTH-CHECK-NODE-PORT', 'dst')} -j ACCEPT"],
        "KUBE-SOURCE-RANGES-FIREWALL": ["-j DROP"],
        "KUBE-PROXY-FIREWALL": [],
        "KUBE-IPVS-FILTER": [
            f"{match('LOAD-BALANCER')} -j RETURN",
            f"{match('CLUSTER-IP')} -j RETURN",
            f"{match('EXTERNAL-IP')} -j RETURN",
            f"{match('EXTERNAL-IP-LOCAL')} -j RETURN",
            f"{match('HEALTH-CHECK-NODE-PORT', 'dst')} -j RETURN",
            f"-m conntrack --ctstate NEW {match('IPVS-IPS', 'dst')} -j REJECT",
        ],
        "KUBE-IPVS-OUT-FILTER": [],
        "KUBE-FORWARD": [
            f"-m mark --mark {MARK}/{MARK} -j ACCEPT",
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ],
    }
    return restore_input("filter", filters) + restore_input("nat", nat)
