"""From one finished Service port to everything that IPVS mode programs for it.

Two lists of endpoints may be needed at one address, for the traffic policies tell clients apart,
and a virtual server has one list only. So packets for external frontends with the Local policy
pass rules in the nat table that send those of pods and of the node itself to the virtual server
with the other list: at the cluster IP if the policy there makes it that one, else at a hidden
port of the cluster IP. An address that must not be the node's own is translated in the same way.
None of these rules depends on the endpoints.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import ip_address, ip_network

import msgspec

from svcproxy.backends.ipvs import naming
from svcproxy.backends.ipvs.naming import SETS
from svcproxy.backends.ipvs.scheduling import scheduler_choice
from svcproxy.backends.ipvs.settings import SCHEDULERS, IpvsSettings, scheduling
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
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    ServerFlag,
    SetEntry,
    VirtualServer,
    VirtualServerKey,
)

_LAST_PORT = 65535
_HALF = 32768

ListRule = tuple[str, str, str]
"""Table, chain and text of a rule in a chain in which order does not matter."""
ServerTarget = tuple[VirtualServer, AbstractSet[RealServerKey]]
"""A virtual server and its real servers, which all have weight 1."""


class PortState(msgspec.Struct, frozen=True):
    """What one Service port needs in the kernel.

    ``addresses`` are to be bound to ``kube-ipvs0``, ``entries`` are (set, entry) pairs; both may
    be needed by several ports. ``chains`` are the port's own chains of the nat table, ``rules``
    its rules in shared chains.
    """

    servers: Mapping[VirtualServerKey, ServerTarget]
    addresses: AbstractSet[str]
    entries: AbstractSet[tuple[str, SetEntry]]
    chains: Mapping[str, Rules]
    rules: AbstractSet[ListRule]


NOTHING = PortState({}, frozenset(), frozenset(), {}, frozenset())


def hidden_port(port: int, taken: AbstractSet[int]) -> int:
    """The port that stands for ``port`` at the same cluster IP, where no client looks for it.

    Different ports have different hidden ones. ``taken`` are the ports that the Service itself
    has; a hidden port keeps clear of them and of what they would hide at.
    """
    hidden = _shifted(port)
    while hidden in taken or (_shifted_back(hidden) in taken and _shifted_back(hidden) != port):
        hidden = _shifted(hidden)
    return hidden


def _shifted(port: int) -> int:
    return (port - 1 + _HALF) % _LAST_PORT + 1


def _shifted_back(port: int) -> int:
    return (port - 1 - _HALF) % _LAST_PORT + 1


def layout(
    port: ServicePort, settings: IpvsSettings, taken: AbstractSet[int] = frozenset()
) -> PortState:
    """Compute all that one Service port needs; it depends on nothing else.

    ``taken`` are the ports of the same protocol that its Service has.
    """
    return _Layout(port, settings, taken).make()


def cluster_ip(port: ServicePort) -> Frontend | None:
    """The frontend at the cluster IP; a Service that another one was given it has none."""
    return next((f for f in port.frontends if f.kind is FrontendKind.CLUSTER_IP), None)


class _Layout:
    """Holds what the parts of one Service port share."""

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
        self.entries: set[tuple[str, SetEntry]] = set()
        self.chains: dict[str, Rules] = {}
        self.rules: set[ListRule] = set()

    def make(self) -> PortState:
        for frontend in self.port.frontends:
            match frontend.kind:
                case FrontendKind.CLUSTER_IP:
                    self._serve(frontend.address, frontend.port, local=frontend.local)
                    self._bind(frontend.address)
                    self._enter(self.sets.cluster_ip, frontend)
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
        """A virtual server with the list of one policy, or a refusal if the list is empty."""
        key = VirtualServerKey(self.protocol, address, number)
        endpoints = self.port.local_endpoints if local else self.port.cluster_endpoints
        if endpoints:
            real = frozenset(RealServerKey(e.address, e.port) for e in endpoints)
            self.servers[key] = self.server, real
        else:
            refusal = self.sets.reject if self.rejected else self.sets.drop
            self.entries.add((refusal, SetEntry(address, self.protocol, number)))
        return key

    def _bind(self, address: str) -> None:
        if address not in self.settings.addresses:
            self.addresses.add(address)
            self.entries.add((self.sets.bound, SetEntry(address)))

    def _enter(self, name: str, frontend: Frontend, other: str = "") -> None:
        entry = SetEntry(frontend.address, self.protocol, frontend.port, other)
        self.entries.add((name, entry))

    def _load_balancer(self, frontend: Frontend) -> None:
        refused = frontend.verdict is Verdict.REJECT
        if self.settings.is_near(frontend.address):
            self._guard(frontend)
            self._redirect(frontend)
            return
        self._guard_bound(frontend)
        if frontend.local:
            self._dispatch(naming.EXTERNAL, frontend, self._short_circuit())
        if refused:
            # Not bound either: the node's own packets leave it, as in iptables mode.
            self._enter(self.sets.reject, frontend)
            return
        self._serve(frontend.address, frontend.port, local=frontend.local)
        self._bind(frontend.address)
        self._enter(self.sets.load_balancer, frontend)
        if frontend.local:
            self._enter(self.sets.load_balancer_local, frontend)

    def _guard_bound(self, frontend: Frontend) -> None:
        """Guard an address that the node has: its own packets come from that very address."""
        self._guard(frontend)
        if self.port.source_ranges and not self._admits_node():
            self.rules.add((FILTER, naming.NODE_SOURCES, self._node_refusal(frontend)))

    def _guard(self, frontend: Frontend) -> None:
        """Restrict an address to the source ranges; without endpoints everybody is rejected."""
        if not self.port.source_ranges or frontend.verdict is Verdict.REJECT:
            return
        self._enter(self.sets.firewall, frontend)
        for cidr in self.port.source_ranges:
            self._enter(self.sets.source_cidr, frontend, cidr)
        if self._admits_node():
            # What the node sends there comes from that very address.
            self._enter(self.sets.source_ip, frontend, frontend.address)

    def _admits_node(self) -> bool:
        if not self.settings.node_address:
            return False
        node = ip_address(self.settings.node_address)
        return any(node in ip_network(cidr) for cidr in self.port.source_ranges)

    def _node_refusal(self, frontend: Frontend) -> str:
        """IPVS takes the node's packets before any filter; this one sees them behind it.

        There they come from the load balancer's address and go to an endpoint
        (kubernetes#119656).
        """
        bits = self.settings.family.bits
        number = _NUMBERS[self.protocol]
        address = format_address(frontend.address)
        match = f"-m ipvs --vproto {number} --vaddr {address} --vport {frontend.port}"
        return f"-s {address}/{bits} {match} -j DROP"

    def _redirect(self, frontend: Frontend) -> None:
        """Translate to a virtual server at the cluster IP; the address stays whose it is."""
        name = self.sets.external_ip_local if frontend.local else self.sets.external_ip
        if frontend.verdict is Verdict.REJECT:
            name = self.sets.reject  # and no other: only what is in the others is translated
        self._enter(name, frontend)
        chain = self._redirect_local() if frontend.local else self._redirect_all()
        self._dispatch(naming.EXTERNAL, frontend, chain)

    def _node_port(self, frontend: Frontend) -> None:
        names = [self.sets.node_port(self.protocol, local=False)]
        if frontend.local:
            names.append(self.sets.node_port(self.protocol, local=True))
            self._dispatch(naming.NODE_PORTS, frontend, self._short_circuit())
        if self.protocol is not Protocol.SCTP:
            self.entries.update((name, SetEntry(port=frontend.port)) for name in names)
        for address in self.settings.node_port_addresses():
            self._serve(address, frontend.port, local=frontend.local)
            if self.protocol is Protocol.SCTP:
                entry = SetEntry(address, self.protocol, frontend.port)
                self.entries.update((name, entry) for name in names)

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

    def _list(self, *, local: bool) -> str | None:
        """Where the list of a policy is served, as DNAT wants it: the cluster IP, or hidden."""
        if self.anchor is None:
            return None
        number = self.anchor.port
        if self.anchor.local is not local:
            number = hidden_port(number, self.taken)
            self._serve(self.anchor.address, number, local=local)
        address = format_address(self.anchor.address)
        return f"[{address}]:{number}" if ":" in address else f"{address}:{number}"

    def _redirect_all(self) -> str | None:
        """The chain of a redirected frontend with the Cluster policy.

        Another node's endpoint must answer through us, so it may not see the client.
        """
        target = self._list(local=False)
        if target is None:
            return None
        chain = naming.external_chain(self.port.name)
        self.chains[chain] = (f"-j {naming.MARK_MASQ}", self._translate("", target))
        return chain

    def _redirect_local(self) -> str | None:
        """The chain of a redirected frontend with the Local policy."""
        inner, target = self._short_circuit(), self._list(local=True)
        if inner is None or target is None:
            return None
        chain = naming.redirect_chain(self.port.name)
        self.chains[chain] = (f"-j {inner}", self._translate("", target))
        return chain

    def _short_circuit(self) -> str | None:
        """The chain of external frontends with the Local policy, for those it does not bind.

        Pods reach external addresses as if they went out to a load balancer and back, and so
        does the node; the first keep their address (kube-proxy's "short circuit").
        """
        target = self._list(local=False)
        if target is None:
            return None
        rules = []
        local = self.settings.local_traffic
        if local:
            source = f"-s {format_cidr(local.source)}" if local.source else f"-i {local.interface}"
            # iptables-save leaves out what matches everything.
            rules.append(self._translate("" if local.matches_all else source, target))
        from_node = "-m addrtype --src-type LOCAL"
        rules.append(f"{from_node} -j {naming.MARK_MASQ}")
        rules.append(self._translate("", target, from_node))
        chain = naming.external_chain(self.port.name)
        self.chains[chain] = tuple(rules)
        return chain

    def _translate(self, source: str, target: str, match: str = "") -> str:
        keyword = f"-p {self.protocol.keyword}"
        return rule(source, keyword, match, f"-j DNAT --to-destination {target}")

    def _hairpin(self, endpoints: tuple[Endpoint, ...]) -> None:
        # Only an endpoint on this node can be sent to itself by this node.
        for e in endpoints:
            if e.is_local or e.node_unknown:
                entry = SetEntry(e.address, self.protocol, e.port, e.address)
                self.entries.add((self.sets.loop_back, entry))


_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}


def _server(port: ServicePort, settings: IpvsSettings) -> VirtualServer:
    chosen = settings.scheduling
    choice = scheduler_choice(port.annotations)
    if choice.scheduler in settings.unavailable:
        pass  # its flags mean nothing to another scheduler
    elif choice.scheduler in SCHEDULERS:
        chosen = scheduling(choice.scheduler, choice.flags)
    elif choice.flags is not None:
        chosen = scheduling(chosen.name, choice.flags)
    flags = chosen.flags
    if port.affinity_seconds:
        flags |= ServerFlag.PERSISTENT
    return VirtualServer(chosen.name, flags, port.affinity_seconds)


def ports_taken(ports: Iterator[ServicePort]) -> dict[Protocol, set[int]]:
    """The ports of a Service's cluster IP by protocol, from its Service ports."""
    taken: dict[Protocol, set[int]] = {protocol: set() for protocol in Protocol}
    for port in ports:
        anchor = cluster_ip(port)
        if anchor is not None:
            taken[port.name.protocol].add(anchor.port)
    return taken
