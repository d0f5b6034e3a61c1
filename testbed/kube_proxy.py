"""Rules as kube-proxy 1.36 lays them, for a few Services: what a takeover finds on a node.

Made by hand after ``pkg/proxy/{iptables,nftables,ipvs}``: the shape, the names and the texts by
which kube-proxy recognises its own, without what no test needs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from svcproxy.backends.iptables import naming
from svcproxy.backends.xtables.hashing import port_hash
from svcproxy.model.names import Protocol, ServicePortName
from testbed.cluster import CLUSTER_CIDRS
from testbed.netns import NetNS

IPTABLES_NFT, IPTABLES_LEGACY, NFTABLES = "nft", "legacy", "nftables"
TABLE = "kube-proxy"
IPVS_DEVICE = "kube-ipvs0"
_MARK = "0x4000"
_JUMPS = {
    "filter": (
        ("INPUT", True, "kubernetes externally-visible service portals", "KUBE-EXTERNAL-SERVICES"),
        ("FORWARD", True, "kubernetes service portals", "KUBE-SERVICES"),
        ("OUTPUT", True, "kubernetes service portals", "KUBE-SERVICES"),
        ("INPUT", False, "kubernetes health check service ports", "KUBE-NODEPORTS"),
        ("FORWARD", False, "kubernetes forwarding rules", "KUBE-FORWARD"),
        ("INPUT", True, "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
        ("OUTPUT", True, "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
        ("FORWARD", True, "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
    ),
    "nat": (
        ("OUTPUT", False, "kubernetes service portals", "KUBE-SERVICES"),
        ("PREROUTING", False, "kubernetes service portals", "KUBE-SERVICES"),
        ("POSTROUTING", False, "kubernetes postrouting rules", "KUBE-POSTROUTING"),
    ),
}
_IPVS_JUMPS = {
    "filter": (
        ("FORWARD", False, "kubernetes forwarding rules", "KUBE-FORWARD"),
        ("INPUT", False, "kubernetes health check rules", "KUBE-NODE-PORT"),
        ("INPUT", False, "kube-proxy firewall rules", "KUBE-PROXY-FIREWALL"),
        ("FORWARD", False, "kube-proxy firewall rules", "KUBE-PROXY-FIREWALL"),
        ("INPUT", False, "kubernetes ipvs access filter", "KUBE-IPVS-FILTER"),
        ("OUTPUT", False, "kubernetes ipvs access filter", "KUBE-IPVS-OUT-FILTER"),
    ),
    "nat": _JUMPS["nat"],
}
_IPVS_SETS = (("KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP"), ("KUBE-LOOP-BACK", "KUBE-6-LOOP-BACK"))


@dataclass(frozen=True)
class Offered:
    """A TCP Service as kube-proxy would serve it, one family of it.

    Attributes:
        name: its name in the namespace ``default``.
        vip: its cluster IP.
        port: its port, named ``http``.
        node_port: its node port.
        endpoints: addresses of endpoints.
        target: their port.
    """

    name: str
    vip: str
    port: int
    node_port: int
    endpoints: Sequence[str]
    target: int

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.vip else 4

    @property
    def bits(self) -> int:
        """The length of an address."""
        return 128 if self.family == 6 else 32

    @property
    def port_name(self) -> ServicePortName:
        """What kube-proxy's chain names are hashes of."""
        return ServicePortName("default", self.name, "http", Protocol.TCP)

    def reached(self, endpoint: str) -> str:
        """An endpoint as DNAT spells it."""
        return f"[{endpoint}]:{self.target}" if self.family == 6 else f"{endpoint}:{self.target}"


class KubeProxyRules:
    """Lays kube-proxy's rules in a namespace; ``how`` is one of the three constants."""

    def __init__(self, space: NetNS, how: str, offered: Iterable[Offered]) -> None:
        self._space = space
        self._how = how
        self._offered = list(offered)

    def lay(self) -> None:
        """Lay them, as kube-proxy does at its start, also over its own or ours."""
        for family in (4, 6):
            mine = [o for o in self._offered if o.family == family]
            if self._how == NFTABLES:
                self._space.run("nft", "-f", "-", stdin=_nft_table(mine, family))
            else:
                self._restore(family, self._how, _iptables(mine, self._saved(family)))

    def lay_ipvs(self, variant: str) -> None:
        """Lay the chains and ipsets of IPVS mode (no virtual servers)."""
        for place, family in enumerate((4, 6)):
            for names in _IPVS_SETS:
                options = ["family", "inet6" if family == 6 else "inet", "-exist"]
                kind = "hash:ip,port,ip" if "LOOP" in names[0] else "hash:ip,port"
                self._space.run("ipset", "create", names[place], kind, *options)
            self._restore(family, variant, _ipvs([names[place] for names in _IPVS_SETS]))

    def _saved(self, family: int) -> str:
        return self._space.run(f"{_program(family)}-{self._how}-save", "-t", "nat").stdout

    def _restore(self, family: int, variant: str, text: str) -> None:
        self._space.run(f"{_program(family)}-{variant}-restore", "--noflush", stdin=text)
        program = f"{_program(family)}-{variant}"
        for table in ("mangle", "nat", "filter"):
            self._space.run(program, "-t", table, "-N", naming.CANARY, check=False)
        for table, jumps in (_IPVS_JUMPS if "KUBE-IPVS-FILTER" in text else _JUMPS).items():
            for source, new, note, target in jumps:
                state = ["-m", "conntrack", "--ctstate", "NEW"] if new else []
                rule = [source, *state, "-m", "comment", "--comment", note, "-j", target]
                if self._space.run(program, "-t", table, "-C", *rule, check=False).returncode:
                    self._space.run(program, "-t", table, "-I", *rule)


def _program(family: int) -> str:
    return "ip6tables" if family == 6 else "iptables"


def _iptables(offered: Sequence[Offered], saved: str) -> str:
    """The restore input of iptables mode; Services' chains that it does not know are deleted."""
    nat = {
        "KUBE-SERVICES": [*_services(offered), _node_ports_last()],
        "KUBE-NODEPORTS": [
            f"-p tcp -m comment --comment {o.port_name} -m tcp --dport {o.node_port}"
            f" -j {_external(o)}"
            for o in offered
        ],
        **_common_nat(),
    }
    for o in offered:
        nat.update(_service_chains(o))
    filters = {
        "KUBE-SERVICES": [],
        "KUBE-EXTERNAL-SERVICES": [],
        "KUBE-NODEPORTS": [],
        "KUBE-PROXY-FIREWALL": [],
        **_forward(),
    }
    found = [line[1:].split()[0] for line in saved.splitlines() if line.startswith(":")]
    stale = [c for c in found if naming.is_service_chain(c) and c not in nat]
    return _text("filter", filters) + _text("nat", nat, stale)


def _ipvs(sets: Sequence[str]) -> str:
    cluster, hairpin = sets
    match = f"-m set --match-set {cluster}"
    nat = {
        "KUBE-SERVICES": [f"{match} dst,dst -j KUBE-MARK-MASQ", "-j KUBE-NODE-PORT"],
        "KUBE-NODE-PORT": [],
        "KUBE-LOAD-BALANCER": ["-j KUBE-MARK-MASQ"],
        **_common_nat(),
    }
    nat["KUBE-POSTROUTING"].insert(0, f"-m set --match-set {hairpin} dst,dst,src -j MASQUERADE")
    filters = {
        "KUBE-NODE-PORT": [],
        "KUBE-SOURCE-RANGES-FIREWALL": ["-j DROP"],
        "KUBE-PROXY-FIREWALL": [],
        "KUBE-IPVS-FILTER": [f"{match} dst,dst -j RETURN"],
        "KUBE-IPVS-OUT-FILTER": [],
        **_forward(),
    }
    return _text("filter", filters) + _text("nat", nat)


def _text(table: str, chains: dict[str, list[str]], delete: Sequence[str] = ()) -> str:
    lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in (*chains, *delete))]
    lines += (f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules)
    lines += (f"-X {chain}" for chain in delete)
    return "\n".join((*lines, "COMMIT", ""))


def _common_nat() -> dict[str, list[str]]:
    note = '-m comment --comment "kubernetes service traffic requiring SNAT"'
    return {
        "KUBE-MARK-MASQ": [f"-j MARK --or-mark {_MARK}"],
        "KUBE-POSTROUTING": [
            f"-m mark ! --mark {_MARK}/{_MARK} -j RETURN",
            f"-j MARK --xor-mark {_MARK}",
            f"{note} -j MASQUERADE --random-fully",
        ],
    }


def _forward() -> dict[str, list[str]]:
    note = '-m comment --comment "kubernetes forwarding rules"'
    return {
        "KUBE-FORWARD": [
            "-m conntrack --ctstate INVALID -j DROP",
            f"{note} -m mark --mark {_MARK}/{_MARK} -j ACCEPT",
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ]
    }


def _node_ports_last() -> str:
    note = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"
    return f'-m comment --comment "{note}" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS'


def _service(o: Offered) -> str:
    return naming.CLUSTER_PREFIX + port_hash(o.port_name)


def _external(o: Offered) -> str:
    return naming.EXTERNAL_PREFIX + port_hash(o.port_name)


def _services(offered: Iterable[Offered]) -> Iterator[str]:
    for o in offered:
        note = f'-m comment --comment "{o.port_name} cluster IP"'
        yield f"{note} -m tcp -p tcp -d {o.vip}/{o.bits} --dport {o.port} -j {_service(o)}"


def _service_chains(o: Offered) -> Iterator[tuple[str, list[str]]]:
    inside = CLUSTER_CIDRS[o.family == 6]
    rules = [f"-m tcp -p tcp -d {o.vip}/{o.bits} --dport {o.port} ! -s {inside} -j KUBE-MARK-MASQ"]
    for number, endpoint in enumerate(o.endpoints):
        chain = naming.endpoint_chain(o.port_name, o.reached(endpoint))
        left = len(o.endpoints) - number
        share = f"-m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
        rules.append(f"{share} -j {chain}".strip())
        yield (
            chain,
            [
                f"-s {endpoint}/{o.bits} -j KUBE-MARK-MASQ",
                f"-m tcp -p tcp -j DNAT --to-destination {o.reached(endpoint)}",
            ],
        )
    yield _service(o), rules
    yield _external(o), ["-j KUBE-MARK-MASQ", f"-j {_service(o)}"]


def _nft_table(offered: Sequence[Offered], family: int) -> str:
    """The input of nft for the whole table of one family, made anew in one transaction."""
    kind, address = ("ip6", "ipv6_addr") if family == 6 else ("ip", "ipv4_addr")
    head = f"table {kind} {TABLE}"
    services = ", ".join(f"{o.vip} . tcp . {o.port} : goto {_nft(o, 'service')}" for o in offered)
    nodes = ", ".join(f"tcp . {o.node_port} : goto {_nft(o, 'external')}" for o in offered)
    chains = "\n".join(chain for o in offered for chain in _nft_chains(o, kind))
    return f"""
{head}
delete {head}
{head} {{
  chain mark-for-masquerade {{ meta mark set meta mark or {_MARK}; }}
  chain masquerading {{
    meta mark and {_MARK} == 0 return
    meta mark set meta mark xor {_MARK}
    masquerade fully-random
  }}
{chains}
  map service-ips {{
    type {address} . inet_proto . inet_service : verdict; elements = {{ {services} }};
  }}
  map service-nodeports {{
    type inet_proto . inet_service : verdict; elements = {{ {nodes} }};
  }}
  chain services {{
    {kind} daddr . meta l4proto . th dport vmap @service-ips
    fib daddr type local meta l4proto . th dport vmap @service-nodeports
  }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}
"""


def _nft(o: Offered, role: str, endpoint: str = "") -> str:
    ending = f"__{endpoint.replace(':', '.')}/{o.target}" if endpoint else ""
    name = f"{role}-{port_hash(o.port_name)[:8]}-default/{o.name}/tcp/http"
    return name + ending


def _nft_chains(o: Offered, kind: str) -> Iterator[str]:
    ends = []
    for endpoint in o.endpoints:
        ends.append(_nft(o, "endpoint", endpoint))
        yield (
            f"  chain {ends[-1]} {{ {kind} saddr {endpoint} jump mark-for-masquerade;"
            f" meta l4proto tcp dnat to {o.reached(endpoint)}; }}"
        )
    choice = ", ".join(f"{number} : goto {end}" for number, end in enumerate(ends))
    inside = CLUSTER_CIDRS[o.family == 6]
    yield (
        f"  chain {_nft(o, 'service')} {{ {kind} daddr {o.vip} tcp dport {o.port}"
        f" {kind} saddr != {inside} jump mark-for-masquerade;"
        f" numgen random mod {len(ends)} vmap {{ {choice} }}; }}"
    )
    yield (
        f"  chain {_nft(o, 'external')} {{ jump mark-for-masquerade; goto {_nft(o, 'service')}; }}"
    )
