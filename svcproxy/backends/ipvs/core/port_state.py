"""The kernel objects that one Service port needs.

A traffic policy may give different clients different endpoints at one address, but a virtual server
has a single list. Packets to external frontends with the Local policy therefore pass rules in the
nat table. These send packets of pods and of the node itself to a virtual server with the endpoints
of the whole cluster: the one at the cluster IP, or, if that has the local endpoints, one at a hidden
port of the cluster IP. Addresses that must not become local to the node are translated in the same
way. None of these rules depends on the endpoints.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import ip_address, ip_network

import msgspec

from svcproxy.backends.ipvs.core import chains_and_sets as names
from svcproxy.backends.ipvs.core.chains_and_sets import SETS
from svcproxy.backends.ipvs.core.settings import (
    SCHEDULERS,
    IpvsSettings,
    scheduler_choice,
    scheduling,
)
from svcproxy.backends.xtables.core.rule_text import (
    FILTER,
    NAT,
    Rules,
    comment,
    format_address,
    format_cidr,
    rule,
)
from svcproxy.model.names import Protocol
from svcproxy.model.serviceport import Endpoint, Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.netlink.core.families import PROTOCOL_NUMBERS
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    ServerFlag,
    SetEntry,
    VirtualServer,
    VirtualServerKey,
)

_LAST_PORT = 65535
_HALF = 32768

Entry = tuple[str, SetEntry]
"""The name of a set, and an entry."""
ListRule = tuple[str, str, str]
"""Table, chain and text of a rule in one of ``chains_and_sets.LISTS``."""
ServerTarget = tuple[VirtualServer, AbstractSet[RealServerKey]]
"""A virtual server and its real servers, all with weight 1."""


class PortState(msgspec.Struct, frozen=True):
    """The kernel objects that one Service port needs.

    Attributes:
        servers: the virtual servers with their real servers.
        addresses: addresses on ``kube-ipvs0``; several ports may need the same one.
        entries: (set, entry) pairs; several ports may need the same one.
        chains: the port's own chains in the nat table.
        rules: the port's rules in shared chains.
    """

    servers: Mapping[VirtualServerKey, ServerTarget]
    addresses: AbstractSet[str]
    entries: AbstractSet[Entry]
    chains: Mapping[str, Rules]
    rules: AbstractSet[ListRule]


EMPTY = PortState({}, frozenset(), frozenset(), {}, frozenset())


def hidden_port(port: int, taken: AbstractSet[int]) -> int:
    """Return the hidden port of the cluster IP that serves the other endpoint list of a port.

    Different ports have different hidden ports.

    Args:
        port: the port.
        taken: the ports of the Service. The hidden port is neither one of them nor the default
            hidden port of one of them.
    """
    hidden = _shifted(port)
    while hidden in taken or (_shifted_back(hidden) in taken and _shifted_back(hidden) != port):
        hidden = _shifted(hidden)
    return hidden


def _shifted(port: int) -> int:
    return (port - 1 + _HALF) % _LAST_PORT + 1


def _shifted_back(port: int) -> int:
    return (port - 1 - _HALF) % _LAST_PORT + 1


def port_state(
    port: ServicePort, settings: IpvsSettings, taken: AbstractSet[int] = frozenset()
) -> PortState:
    """Compute the kernel objects that one Service port needs.

    Args:
        port: the Service port.
        settings: the settings.
        taken: the ports of its Service with the same protocol.
    """
    return _Builder(port, settings, taken).build()


def cluster_ip(port: ServicePort) -> Frontend | None:
    """Return the frontend at the cluster IP; ``None`` if another Service holds the address."""
    return next((f for f in port.frontends if f.kind is FrontendKind.CLUSTER_IP), None)


class _Builder:
    """Builds the state of one Service port, frontend by frontend."""

    def __init__(self, port: ServicePort, settings: IpvsSettings, taken: AbstractSet[int]) -> None:
        self.port = port
        self.settings = settings
        self.protocol = port.name.protocol
        self.sets = SETS[settings.family]
        self.server = _server(port, settings)
        self.anchor = cluster_ip(port)
        self.taken = taken
        self.rejected = any(f.verdict is Verdict.REJECT for f in port.frontends)
        self.servers: dict[VirtualServerKey, ServerTarget] = {}
        self.addresses: set[str] = set()
        self.entries: set[Entry] = set()
        self.chains: dict[str, Rules] = {}
        self.rules: set[ListRule] = set()

    def build(self) -> PortState:
        for frontend in self.port.frontends:
            match frontend.kind:
                case FrontendKind.CLUSTER_IP:
                    self._serve(frontend.address, frontend.port, local=frontend.local)
                    self._bind(frontend.address)
                    self._add_entry(self.sets.cluster_ip, frontend)
                    if frontend.also_load_balancer:
                        self._guard_bound(frontend)
                case FrontendKind.EXTERNAL_IP:
                    if frontend.also_load_balancer:
                        self._guard(frontend)
                    self._redirect(frontend)
                case FrontendKind.LOAD_BALANCER:
                    self._load_balancer(frontend)
                case FrontendKind.NODE_PORT:
                    self._node_port(frontend)
        self._hairpin(self.port.cluster_endpoints)
        self._hairpin(self.port.local_endpoints)
        if self.port.health_check_node_port:
            entry = SetEntry(port=self.port.health_check_node_port)
            self.entries.add((self.sets.health_check, entry))
        return PortState(self.servers, self.addresses, self.entries, self.chains, self.rules)

    def _serve(self, address: str, number: int, *, local: bool) -> VirtualServerKey:
        """Add a virtual server with the endpoints of a policy; reject or drop if it has none."""
        key = VirtualServerKey(self.protocol, address, number)
        endpoints = self.port.local_endpoints if local else self.port.cluster_endpoints
        if endpoints:
            real = frozenset(RealServerKey(e.address, e.port) for e in endpoints)
            self.servers[key] = self.server, real
        else:
            name = self.sets.reject if self.rejected else self.sets.drop
            self.entries.add((name, SetEntry(address, self.protocol, number)))
        return key

    def _bind(self, address: str) -> None:
        if address not in self.settings.facts.addresses:
            self.addresses.add(address)
            self.entries.add((self.sets.bound, SetEntry(address)))

    def _add_entry(self, name: str, frontend: Frontend, other: str = "") -> None:
        entry = SetEntry(frontend.address, self.protocol, frontend.port, other)
        self.entries.add((name, entry))

    def _load_balancer(self, frontend: Frontend) -> None:
        if self.settings.is_on_link(frontend.address):
            self._guard(frontend)
            self._redirect(frontend)
            return
        self._guard_bound(frontend)
        if frontend.local:
            self._dispatch(names.EXTERNAL, frontend, self._short_circuit())
        if frontend.verdict is Verdict.REJECT:
            # The address is not bound: the node sends its own packets out, as in iptables mode.
            self._add_entry(self.sets.reject, frontend)
            return
        self._serve(frontend.address, frontend.port, local=frontend.local)
        self._bind(frontend.address)
        self._add_entry(self.sets.load_balancer, frontend)
        if frontend.local:
            self._add_entry(self.sets.load_balancer_local, frontend)

    def _guard_bound(self, frontend: Frontend) -> None:
        """Restrict an address on ``kube-ipvs0``, also for the node's own packets.

        The node's packets to such an address have it as their source.
        """
        self._guard(frontend)
        if self.port.source_ranges and not self._admits_node():
            self.rules.add((FILTER, names.NODE_SOURCES, self._drop_from_node(frontend)))

    def _guard(self, frontend: Frontend) -> None:
        """Restrict an address to the source ranges; without endpoints all clients are rejected."""
        if not self.port.source_ranges or frontend.verdict is Verdict.REJECT:
            return
        self._add_entry(self.sets.firewall, frontend)
        for cidr in self.port.source_ranges:
            self._add_entry(self.sets.source_cidr, frontend, cidr)
        if self._admits_node():
            # The node's packets to the address have it as their source.
            self._add_entry(self.sets.source_ip, frontend, frontend.address)

    def _admits_node(self) -> bool:
        if not self.settings.node_address:
            return False
        node = ip_address(self.settings.node_address)
        return any(node in ip_network(cidr) for cidr in self.port.source_ranges)

    def _drop_from_node(self, frontend: Frontend) -> str:
        """Return the rule that drops the node's own packets to a load balancer.

        IPVS takes the node's packets before the filter table, which sees them after translation:
        from the load balancer's address to an endpoint (kubernetes#119656).
        """
        bits = self.settings.family.bits
        number = PROTOCOL_NUMBERS[self.protocol]
        address = format_address(frontend.address)
        match = f"-m ipvs --vproto {number} --vaddr {address} --vport {frontend.port}"
        return f"-s {address}/{bits} {match} -j DROP"

    def _redirect(self, frontend: Frontend) -> None:
        """Translate packets to a virtual server at the cluster IP; do not bind the address."""
        name = self.sets.external_ip_local if frontend.local else self.sets.external_ip
        if frontend.verdict is Verdict.REJECT:
            name = self.sets.reject  # and in no set whose packets are translated
        self._add_entry(name, frontend)
        chain = self._redirect_local() if frontend.local else self._redirect_all()
        self._dispatch(names.EXTERNAL, frontend, chain)

    def _node_port(self, frontend: Frontend) -> None:
        sets = [self.sets.node_port(self.protocol, local=False)]
        if frontend.local:
            sets.append(self.sets.node_port(self.protocol, local=True))
            self._dispatch(names.NODE_PORTS, frontend, self._short_circuit())
        if self.protocol is not Protocol.SCTP:
            self.entries.update((name, SetEntry(port=frontend.port)) for name in sets)
        for address in self.settings.node_port_addresses():
            self._serve(address, frontend.port, local=frontend.local)
            if self.protocol is Protocol.SCTP:
                entry = SetEntry(address, self.protocol, frontend.port)
                self.entries.update((name, entry) for name in sets)

    def _dispatch(self, chain: str, frontend: Frontend, target: str | None) -> None:
        if target is None:
            return
        keyword = self.protocol.keyword
        text = rule(
            f"-d {format_address(frontend.address)}/{self.settings.family.bits}"
            if frontend.address
            else "",
            f"-p {keyword}",
            comment(f"{self.port.name} {frontend.kind.value}"),
            f"-m {keyword} --dport {frontend.port} -j {target}",
        )
        self.rules.add((NAT, chain, text))

    def _served_at(self, *, local: bool) -> str | None:
        """Return the DNAT destination of a policy's virtual server at the cluster IP."""
        if self.anchor is None:
            return None
        number = self.anchor.port
        if self.anchor.local is not local:
            number = hidden_port(number, self.taken)
            self._serve(self.anchor.address, number, local=local)
        address = format_address(self.anchor.address)
        return f"[{address}]:{number}" if ":" in address else f"{address}:{number}"

    def _redirect_all(self) -> str | None:
        """Add the chain of a redirected frontend with the Cluster policy; return its name.

        Replies of endpoints on other nodes must return through this node, so it masquerades.
        """
        target = self._served_at(local=False)
        if target is None:
            return None
        chain = names.external_chain(self.port.name)
        self.chains[chain] = (f"-j {names.MARK_MASQ}", self._translate("", target))
        return chain

    def _redirect_local(self) -> str | None:
        """Add the chain of a redirected frontend with the Local policy; return its name."""
        inner, target = self._short_circuit(), self._served_at(local=True)
        if inner is None or target is None:
            return None
        chain = names.redirect_chain(self.port.name)
        self.chains[chain] = (f"-j {inner}", self._translate("", target))
        return chain

    def _short_circuit(self) -> str | None:
        """Add the chain for clients that are exempt from the Local policy; return its name.

        Pods and the node itself reach external addresses as if through the load balancer, so they
        get the endpoints of the whole cluster (kube-proxy's "short circuit"). Packets of pods keep
        their source address.
        """
        target = self._served_at(local=False)
        if target is None:
            return None
        rules = []
        local = self.settings.local_traffic
        if local:
            source = f"-s {format_cidr(local.source)}" if local.source else f"-i {local.interface}"
            # iptables-save omits a match of all addresses.
            rules.append(self._translate("" if local.matches_all else source, target))
        from_node = "-m addrtype --src-type LOCAL"
        rules.append(f"{from_node} -j {names.MARK_MASQ}")
        rules.append(self._translate("", target, from_node))
        chain = names.external_chain(self.port.name)
        self.chains[chain] = tuple(rules)
        return chain

    def _translate(self, source: str, target: str, match: str = "") -> str:
        keyword = f"-p {self.protocol.keyword}"
        return rule(source, keyword, match, f"-j DNAT --to-destination {target}")

    def _hairpin(self, endpoints: tuple[Endpoint, ...]) -> None:
        # Hairpin connections of endpoints on other nodes do not traverse this node.
        for e in endpoints:
            if e.is_local or e.node_unknown:
                entry = SetEntry(e.address, self.protocol, e.port, e.address)
                self.entries.add((self.sets.loop_back, entry))


def _server(port: ServicePort, settings: IpvsSettings) -> VirtualServer:
    chosen = settings.scheduling
    choice = scheduler_choice(port.annotations)
    if choice.scheduler in settings.facts.missing_schedulers:
        pass  # the default scheduler replaces it, with its own flags
    elif choice.scheduler in SCHEDULERS:
        chosen = scheduling(choice.scheduler, choice.flags)
    elif choice.flags is not None:
        chosen = scheduling(chosen.name, choice.flags)
    flags = chosen.flags
    if port.affinity_seconds:
        flags |= ServerFlag.PERSISTENT
    return VirtualServer(chosen.name, flags, port.affinity_seconds)


def ports_taken(ports: Iterator[ServicePort]) -> dict[Protocol, set[int]]:
    """Return the ports of a Service's cluster IP, by protocol."""
    taken: dict[Protocol, set[int]] = {protocol: set() for protocol in Protocol}
    for port in ports:
        anchor = cluster_ip(port)
        if anchor is not None:
            taken[port.name.protocol].add(anchor.port)
    return taken
