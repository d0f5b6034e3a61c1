"""Computes the rules of one finished Service port."""

from ipaddress import ip_address, ip_network

import msgspec

from svcproxy.backends.iptables.core import naming
from svcproxy.backends.iptables.core.balance import Branch, balance
from svcproxy.backends.iptables.core.dispatch import frontend_key
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.xtables.core.hashing import port_hash
from svcproxy.backends.xtables.core.rule_text import (
    Rules,
    comment,
    format_address,
    format_cidr,
    rule,
)
from svcproxy.model.names import IPFamily
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict

_MARK_MASQ = f"-j {naming.MARK_MASQ}"


class PortRules(msgspec.Struct, frozen=True):
    """The rules of one Service port.

    Attributes:
        chains: its own chains in the nat table.
        cluster_ips: its entries in the dispatch tree of cluster IPs, by key.
        external_ips: its entries in the dispatch tree of external and load-balancer addresses.
        node_ports: its entries in the dispatch tree of node ports.
        shared_rules: its rules in the shared chains of the filter table; their order does not matter.
        sets: the ipsets that hold the clients of its endpoints, for session affinity.
    """

    chains: dict[str, Rules]
    cluster_ips: dict[int, str]
    external_ips: dict[int, str]
    node_ports: dict[int, str]
    shared_rules: dict[str, Rules]
    sets: frozenset[str] = frozenset()


def render(port: ServicePort, settings: IptablesSettings) -> PortRules:
    """Compute all rules of one Service port; they depend only on the arguments.

    No input text is copied into a rule unchecked: names are hashed or become comments, addresses
    are parsed, numbers are formatted as numbers.

    Raises:
        ValueError: an address or a number is invalid.
    """
    return _Renderer(port, settings).render()


def endpoint_target(endpoint: Endpoint) -> str:
    """Return ``address:port``, or ``[address]:port`` for IPv6, the format of ``--to-destination``.

    Raises:
        ValueError: the address or the port is invalid.
    """
    address, port = format_address(endpoint.address), endpoint.port
    if type(port) is not int:
        raise ValueError(f"{port!r:.64} is not a port")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class _Renderer:
    """Renders the rules of one Service port."""

    def __init__(self, port: ServicePort, settings: IptablesSettings) -> None:
        self.port = port
        self.settings = settings
        self.text = str(port.name)
        self.keyword = port.name.protocol.keyword
        suffix = port_hash(port.name)
        self.cluster_chain = naming.CLUSTER_PREFIX + suffix
        self.local_chain = naming.LOCAL_PREFIX + suffix
        self.external_chain = naming.EXTERNAL_PREFIX + suffix
        self.firewall_chain = naming.FIREWALL_PREFIX + suffix
        self.forwarded = any(f.verdict is not Verdict.REJECT for f in port.frontends)
        self.chains: dict[str, Rules] = {}
        self.cluster_ips: dict[int, str] = {}
        self.external_ips: dict[int, str] = {}
        self.node_ports: dict[int, str] = {}
        self.shared_rules: dict[str, list[str]] = {}
        self.sets: set[str] = set()

    def render(self) -> PortRules:
        for frontend in self.port.frontends:
            if frontend.kind is FrontendKind.CLUSTER_IP:
                self._cluster_ip(frontend)
            else:
                self._external(frontend)
        if self.port.cluster_endpoints and self.forwarded:
            self._policy_chain(self.cluster_chain, self.port.cluster_endpoints)
        if self.port.local_endpoints and self.forwarded:
            self._policy_chain(self.local_chain, self.port.local_endpoints)
        if self.port.health_check_node_port:
            self._health_check_port()
        shared_rules = {chain: tuple(rules) for chain, rules in self.shared_rules.items()}
        return PortRules(
            self.chains,
            self.cluster_ips,
            self.external_ips,
            self.node_ports,
            shared_rules,
            frozenset(self.sets),
        )

    def _match(self, frontend: Frontend, note: str = "") -> str:
        """Return the match for a frontend, in the order of iptables-save; ``note`` is a comment."""
        return rule(
            self._destination(frontend),
            f"-p {self.keyword}",
            comment(note) if note else "",
            f"-m {self.keyword} --dport {frontend.port:d}",
        )

    def _destination(self, frontend: Frontend) -> str:
        if not frontend.address:
            return ""
        if (":" in frontend.address) != (self.settings.family is IPFamily.IPV6):
            raise ValueError(f"{frontend.address[:64]!r} is not an {self.settings.family} address")
        return f"-d {format_address(frontend.address)}/{self.settings.family.bits}"

    def _key(self, frontend: Frontend) -> int:
        return frontend_key(frontend.address, self.port.name.protocol, frontend.port)

    def _filter(self, chain: str, frontend: Frontend, verdict: Verdict, note: str) -> None:
        """Add a rule that rejects or drops packets that were not forwarded."""
        unreachable = "icmp6" if self.settings.family is IPFamily.IPV6 else "icmp"
        target = "DROP"
        if verdict is Verdict.REJECT:
            target = f"REJECT --reject-with {unreachable}-port-unreachable"
        text = rule(
            self._destination(frontend),
            f"-p {self.keyword}",
            comment(f"{self.text} {note}"),
            "" if frontend.address else "-m addrtype --dst-type LOCAL",
            f"-m {self.keyword} --dport {frontend.port:d} -j {target}",
        )
        self.shared_rules.setdefault(chain, []).append(text)

    def _cluster_ip(self, frontend: Frontend) -> None:
        if frontend.verdict is Verdict.FORWARD:
            chain = self.local_chain if frontend.local else self.cluster_chain
            head = self._match(frontend, f"{self.text} {frontend.kind.value}")
            self.cluster_ips[self._key(frontend)] = f"{head} -j {chain}"
        else:
            self._filter(naming.SERVICES, frontend, frontend.verdict, _reason(frontend.verdict))

    def _external(self, frontend: Frontend) -> None:
        if frontend.verdict is not Verdict.REJECT:
            self._external_chain(frontend)
            chain = self.external_chain
            restricted = frontend.kind is FrontendKind.LOAD_BALANCER and self.port.source_ranges
            if restricted:
                chain = self.firewall_chain
                self._source_ranges(frontend)
            if frontend.kind is FrontendKind.NODE_PORT:
                head = self._match(frontend, self.text)
                self.node_ports[self._key(frontend)] = f"{head} -j {chain}"
            else:
                head = self._match(frontend, f"{self.text} {frontend.kind.value}")
                self.external_ips[self._key(frontend)] = f"{head} -j {chain}"
        if frontend.verdict is not Verdict.FORWARD:
            chain = naming.EXTERNAL_SERVICES
            self._filter(chain, frontend, frontend.verdict, _reason(frontend.verdict))

    def _external_chain(self, frontend: Frontend) -> None:
        """Add KUBE-EXT: masquerading and traffic policy of traffic to external addresses."""
        if self.external_chain in self.chains:
            return
        if not frontend.local:
            # The endpoint may be on another node. Its replies must return through this node, so
            # it must not see the client's address.
            self.chains[self.external_chain] = (_MARK_MASQ, f"-j {self.cluster_chain}")
            return
        rules = []
        local = self.settings.local_traffic
        if local:
            # Neither policy applies to pods on this node: their traffic to an external address
            # is handled as if it went out to a load balancer and back.
            source = f"-s {local.source}" if local.source else f"-i {local.interface}"
            note = comment(f"pod traffic for {self.text} external destinations")
            # iptables-save does not print a match that is always true.
            rules.append(
                rule("" if local.matches_all else source, note, f"-j {self.cluster_chain}")
            )
        from_node = "-m addrtype --src-type LOCAL"
        note = comment(f"masquerade LOCAL traffic for {self.text} external destinations")
        rules.append(f"{note} {from_node} {_MARK_MASQ}")
        note = comment(f"route LOCAL traffic for {self.text} external destinations")
        rules.append(f"{note} {from_node} -j {self.cluster_chain}")
        if frontend.verdict is Verdict.FORWARD:
            rules.append(f"-j {self.local_chain}")
        self.chains[self.external_chain] = tuple(rules)

    def _source_ranges(self, frontend: Frontend) -> None:
        """Add KUBE-FW, which allows the source ranges; KUBE-PROXY-FIREWALL drops the rest."""
        sources = [format_cidr(cidr) for cidr in self.port.source_ranges]
        if self._allows_node():
            # Some load balancers assign the address to the node. The node then connects to the
            # address with that same address as its source.
            bits = self.settings.family.bits
            sources.extend(
                f"{format_address(f.address)}/{bits}"
                for f in self.port.frontends
                if f.kind is FrontendKind.LOAD_BALANCER
            )
        note = comment(f"{self.text} loadbalancer IP")
        rules = [f"-s {s} {note} -j {self.external_chain}" for s in dict.fromkeys(sources)]
        self.chains[self.firewall_chain] = tuple(rules)
        note = f"{self.text} traffic not accepted by {self.firewall_chain}"
        head = self._match(frontend, note)
        self.shared_rules.setdefault(naming.PROXY_FIREWALL, []).append(f"{head} -j DROP")

    def _allows_node(self) -> bool:
        if not self.settings.node_address:
            return False
        node = ip_address(self.settings.node_address)
        return any(node in ip_network(cidr) for cidr in self.port.source_ranges)

    def _policy_chain(self, chain: str, endpoints: tuple[Endpoint, ...]) -> None:
        """Add KUBE-SVC or KUBE-SVL: session affinity first, then the balance tree.

        kube-proxy's chain begins with a rule that masquerades traffic from outside the cluster;
        svcproxy has one such rule for all Services, see ``static.cluster_ip_rules``.
        """
        targets = {endpoint_target(e): e for e in endpoints}
        prefix = chain[: len(naming.CLUSTER_PREFIX)]
        if not self.port.affinity_seconds and self.settings.hairpin_match:
            match = f"-p {self.keyword}"

            def translate(target: str) -> Branch:
                return match, f"-j DNAT --to-destination {target}"

            self.chains.update(balance(chain, prefix, tuple(targets), translate))
            return
        chains = {target: naming.endpoint_chain(self.port.name, target) for target in targets}
        for target, endpoint in targets.items():
            self._endpoint_chain(chains[target], endpoint, target)
        balanced = balance(chain, prefix, tuple(targets), lambda t: ("", f"-j {chains[t]}"))
        if self.port.affinity_seconds:
            known_clients = tuple(self._affinity_rule(c) for c in chains.values())
            balanced[chain] = known_clients + balanced[chain]
        self.chains.update(balanced)

    def _endpoint_chain(self, chain: str, endpoint: Endpoint, target: str) -> None:
        """Add KUBE-SEP, for session affinity or if the kernel lacks the hairpin match."""
        rules = []
        if not self.settings.hairpin_match:
            source = f"-s {format_address(endpoint.address)}/{self.settings.family.bits}"
            rules.append(f"{source} {_MARK_MASQ}")
        remember = ""
        if self.port.affinity_seconds and self.settings.affinity_sets:
            # Each connection restarts the client's timeout, as with xt_recent's --set.
            self.sets.add(chain)
            seconds = self.port.affinity_seconds
            rules.append(f"-j SET --add-set {chain} src --exist --timeout {seconds:d}")
        elif self.port.affinity_seconds:
            remember = f"-m recent --set --name {chain} --mask {self._mask()} --rsource"
        rules.append(rule(f"-p {self.keyword}", remember, f"-j DNAT --to-destination {target}"))
        self.chains[chain] = tuple(rules)

    def _affinity_rule(self, chain: str) -> str:
        if self.settings.affinity_sets:
            return f"-m set --match-set {chain} src -j {chain}"
        seconds = self.port.affinity_seconds
        recent = f"-m recent --rcheck --seconds {seconds:d} --reap --name {chain}"
        return f"{recent} --mask {self._mask()} --rsource -j {chain}"

    def _mask(self) -> str:
        if self.settings.family is IPFamily.IPV6:
            return ":".join(["ffff"] * 8)
        return "255.255.255.255"

    def _health_check_port(self) -> None:
        note = comment(f"{self.text} health check node port")
        text = f"-p tcp {note} -m tcp --dport {self.port.health_check_node_port:d} -j ACCEPT"
        self.shared_rules.setdefault(naming.NODE_PORTS, []).append(text)


def _reason(verdict: Verdict) -> str:
    return "has no endpoints" if verdict is Verdict.REJECT else "has no local endpoints"
