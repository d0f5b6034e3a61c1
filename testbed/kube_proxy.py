"""Installs the rules of kube-proxy 1.36 for a few Services, for tests of a takeover.

Written by hand after ``pkg/proxy/{iptables,nftables}``: the structure, the names and the comments
by which kube-proxy recognises its rules, as far as tests need them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from svcproxy.backends.iptables.core import naming
from svcproxy.backends.xtables.core.hashing import port_hash
from svcproxy.backends.xtables.core.savefile import parse
from svcproxy.model.names import Protocol, ServicePortName
from testbed.cluster import CLUSTER_CIDRS
from testbed.netns import NetNS

IPTABLES_NFT, IPTABLES_LEGACY, NFTABLES = "nft", "legacy", "nftables"
TABLE = "kube-proxy"
MARK = "0x4000"
JUMPS = {
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
Jumps = Mapping[str, Sequence[tuple[str, bool, str, str]]]
"""The jumps by table: source chain, whether only for new connections, comment, target."""


@dataclass(frozen=True)
class Offered:
    """A TCP Service of one family, as kube-proxy serves it.

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
        """The length of an address in bits."""
        return 128 if self.family == 6 else 32

    @property
    def port_name(self) -> ServicePortName:
        """The Service port whose hash is in kube-proxy's chain names."""
        return ServicePortName("default", self.name, "http", Protocol.TCP)

    def reached(self, endpoint: str) -> str:
        """Return an endpoint in the format of ``--to-destination``."""
        return f"[{endpoint}]:{self.target}" if self.family == 6 else f"{endpoint}:{self.target}"


class KubeProxyRules:
    """Installs kube-proxy's rules in a namespace; ``how`` is one of the three constants."""

    def __init__(self, space: NetNS, how: str, offered: Iterable[Offered]) -> None:
        self._space = space
        self._how = how
        self._offered = list(offered)

    def install(self) -> None:
        """Install the rules as kube-proxy does at startup, also over existing ones."""
        for family in (4, 6):
            mine = [o for o in self._offered if o.family == family]
            if self._how == NFTABLES:
                self._space.run("nft", "-f", "-", stdin=_nft_table(mine, family))
            else:
                text = _iptables(mine, self._saved(family))
                restore(self._space, family, self._how, text, JUMPS)

    def _saved(self, family: int) -> str:
        return self._space.run(f"{_program(family)}-{self._how}-save", "-t", "nat").stdout


def restore(space: NetNS, family: int, variant: str, text: str, jumps: Jumps) -> None:
    """Run iptables-restore as kube-proxy does, and install missing jumps.

    Args:
        space: the namespace.
        family: 4 or 6.
        variant: ``nft`` or ``legacy``.
        text: the input, see ``restore_input``.
        jumps: each is inserted before all other rules of its chain.
    """
    program = f"{_program(family)}-{variant}"
    space.run(f"{program}-restore", "--noflush", stdin=text)
    # kube-proxy starts a program for each chain and jump, which is too slow in User Mode Linux.
    present = parse(space.run(f"{program}-save").stdout)
    lines = []
    for table in ("mangle", "nat", "filter"):
        lines += [f"*{table}", f":{naming.CANARY} - [0:0]"]
        for source, new, note, target in jumps.get(table, ()):
            state = "-m conntrack --ctstate NEW " if new else ""
            rule = f'{state}-m comment --comment "{note}" -j {target}'
            if rule not in present.get(table, {}).get(source, ()):
                lines.append(f"-I {source} {rule}")
        lines.append("COMMIT")
    space.run(f"{program}-restore", "--noflush", stdin="\n".join((*lines, "")))


def _program(family: int) -> str:
    return "ip6tables" if family == 6 else "iptables"


def _iptables(offered: Sequence[Offered], saved: str) -> str:
    """Return the restore input of iptables mode; it deletes chains of unknown Services."""
    nat = {
        "KUBE-SERVICES": [*_services(offered), _node_ports_last()],
        "KUBE-NODEPORTS": [
            f"-p tcp -m comment --comment {o.port_name} -m tcp --dport {o.node_port}"
            f" -j {_external(o)}"
            for o in offered
        ],
        **common_nat(),
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
    return restore_input("filter", filters) + restore_input("nat", nat, stale)


def restore_input(table: str, chains: dict[str, list[str]], delete: Sequence[str] = ()) -> str:
    """Return the restore input that rewrites these chains of a table and deletes others."""
    lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in (*chains, *delete))]
    lines += (f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules)
    lines += (f"-X {chain}" for chain in delete)
    return "\n".join((*lines, "COMMIT", ""))


def common_nat() -> dict[str, list[str]]:
    """Return the chains for masquerading."""
    note = '-m comment --comment "kubernetes service traffic requiring SNAT"'
    return {
        "KUBE-MARK-MASQ": [f"-j MARK --or-mark {MARK}"],
        "KUBE-POSTROUTING": [
            f"-m mark ! --mark {MARK}/{MARK} -j RETURN",
            f"-j MARK --xor-mark {MARK}",
            f"{note} -j MASQUERADE --random-fully",
        ],
    }


def _forward() -> dict[str, list[str]]:
    note = '-m comment --comment "kubernetes forwarding rules"'
    return {
        "KUBE-FORWARD": [
            "-m conntrack --ctstate INVALID -j DROP",
            f"{note} -m mark --mark {MARK}/{MARK} -j ACCEPT",
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
    """Return the input of nft that replaces the whole table of one family in one transaction."""
    kind, address = ("ip6", "ipv6_addr") if family == 6 else ("ip", "ipv4_addr")
    head = f"table {kind} {TABLE}"
    services = ", ".join(f"{o.vip} . tcp . {o.port} : goto {_nft(o, 'service')}" for o in offered)
    nodes = ", ".join(f"tcp . {o.node_port} : goto {_nft(o, 'external')}" for o in offered)
    chains = "\n".join(chain for o in offered for chain in _nft_chains(o, kind))
    return f"""
{head}
delete {head}
{head} {{
  chain mark-for-masquerade {{ meta mark set meta mark or {MARK}; }}
  chain masquerading {{
    meta mark and {MARK} == 0 return
    meta mark set meta mark xor {MARK}
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
