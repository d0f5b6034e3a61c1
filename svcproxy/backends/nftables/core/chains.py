"""The chains that all Services share.

The chain ``services`` looks up a packet's destination in one set for each kind of frontend and
traffic policy. This decides whether the packet is masqueraded and which list of endpoints counts.
The chain ``all`` (or ``local``, ``node-port-all``, ``node-port-local``) then finds the tier and an
endpoint (``tier_chains``). Packets that are not translated are checked in the filter chains, which
reject or drop those to frontends without endpoints.
"""

from collections.abc import Iterable, Iterator

from svcproxy.backends.nftables.core import packet_fields, table_sets
from svcproxy.backends.nftables.core.packet_fields import Expressions, PacketFields
from svcproxy.backends.nftables.core.settings import NftablesSettings
from svcproxy.backends.nftables.core.table_sets import Balance
from svcproxy.backends.nftables.core.tier_chains import balance_chain
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables import expressions
from svcproxy.netlink.core.nf_tables.expressions import Code
from svcproxy.netlink.core.nf_tables.ruleset import ChainSpec, Hook, Rule

SOURCES = "admitted-sources"
_SERVICES, _NODE_PORTS, _FIREWALL = "services", "node-ports", "firewall"
_EXTERNAL_LOCAL = "external-local"
_REFUSE, _CHECK = "refuse", "check-cluster-ips"

_PREROUTING, _INPUT, _FORWARD, _OUTPUT, _POSTROUTING = range(5)
_BEFORE_NAT, _DESTINATION_NAT, _FILTER, _SOURCE_NAT = -110, -100, 0, 100
_PORT_UNREACHABLE = {IPFamily.IPV4: 3, IPFamily.IPV6: 4}


def shared_chains(settings: Settings) -> dict[str, ChainSpec]:
    """Return the chains that depend on the settings alone, by name."""
    rules = _Chains(settings)
    firewall, services = (_rule(_NEW, _jump(_FIREWALL)),), (_rule((), _jump(_SERVICES)),)
    refuse, check = _rule(_NEW, _jump(_REFUSE)), _rule(_NEW, _jump(_CHECK))
    chains = [
        ChainSpec("filter-prerouting", firewall, Hook("filter", _PREROUTING, _BEFORE_NAT)),
        ChainSpec("filter-output-early", firewall, Hook("filter", _OUTPUT, _BEFORE_NAT)),
        ChainSpec("nat-prerouting", services, Hook("nat", _PREROUTING, _DESTINATION_NAT)),
        ChainSpec("nat-output", services, Hook("nat", _OUTPUT, _DESTINATION_NAT)),
        ChainSpec("nat-postrouting", rules.postrouting(), Hook("nat", _POSTROUTING, _SOURCE_NAT)),
        ChainSpec("filter-input", tuple(rules.input()), Hook("filter", _INPUT, _FILTER)),
        ChainSpec(
            "filter-forward", (*rules.invalid(), refuse, check), Hook("filter", _FORWARD, _FILTER)
        ),
        ChainSpec("filter-output", (refuse, check), Hook("filter", _OUTPUT, _FILTER)),
        ChainSpec(_SERVICES, tuple(rules.services())),
        ChainSpec(_NODE_PORTS, rules.external(table_sets.OF_NODE_PORTS)),
        ChainSpec(
            _FIREWALL,
            (
                _rule(
                    rules.load_frontend, expressions.in_set(table_sets.GUARDED, 0), _goto(SOURCES)
                ),
            ),
        ),
        ChainSpec(_CHECK, tuple(rules.check_cluster_ips())),
    ]
    chains += map(balance_chain, table_sets.BALANCES)
    for prefix in (table_sets.ADDRESSES, table_sets.OF_NODE_PORTS):
        chains += (
            ChainSpec(prefix + _EXTERNAL_LOCAL, tuple(rules.external_local(prefix))),
            ChainSpec(prefix + _REFUSE, rules.refuse(prefix)),
        )
    return {chain.name: chain for chain in chains}


def source_chain(family: IPFamily, lengths: Iterable[int]) -> ChainSpec:
    """Return the chain that accepts packets from a load balancer's source ranges and drops others.

    It has one rule for each prefix length in use, which masks the source and looks it up. An
    interval set would need one rule only, but the kernel copies an interval set at every change.
    """
    fields = PacketFields(family)
    rules = [
        Rule(
            (
                *fields.load_frontend(0),
                *fields.load_source(fields.frontend_words),
                *fields.mask(bits, fields.frontend_words),
                expressions.in_set(table_sets.source_set(bits), 0),
                expressions.verdict(Code.ACCEPT),
            )
        )
        for bits in sorted(lengths, reverse=True)
    ]
    return ChainSpec(SOURCES, (*rules, _rule((), expressions.verdict(Code.DROP))))


def _key(fields: PacketFields, prefix: str) -> Expressions:
    return fields.load_node_port(0) if prefix else fields.load_frontend(0)


def _rule(first: Expressions, *rest: expressions.Expression, comment: str = "") -> Rule:
    return Rule((*first, *rest), comment)


def _jump(chain: str) -> expressions.Expression:
    return expressions.verdict(Code.JUMP, chain)


def _goto(chain: str) -> expressions.Expression:
    return expressions.verdict(Code.GOTO, chain)


_NEW = packet_fields.in_state(expressions.STATE_NEW)


class _Chains:
    """Builds the rules of the shared chains of one table."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fields = PacketFields(settings.family)
        self.load_frontend = self.fields.load_frontend(0)
        self.mark = packet_fields.set_mark_bit(settings.masquerade_bit, to=True)
        self.reject = expressions.reject(_PORT_UNREACHABLE[settings.family])

    def services(self) -> Iterator[Rule]:
        """Look up cluster IPs first, then external addresses, then node ports."""
        for policy in ("", table_sets.LOCAL):
            name = table_sets.CLUSTER_IPS + policy
            balance = Balance(table_sets.ADDRESSES, bool(policy))
            masqueraded = self._masqueraded()
            if masqueraded is not None:
                yield _rule(
                    masqueraded, *self.load_frontend, expressions.in_set(name, 0), *self.mark
                )
            yield _rule(self.load_frontend, expressions.in_set(name, 0), _goto(str(balance)))
        yield from self.external(table_sets.ADDRESSES)
        for destination in self._node_port_destinations():
            yield _rule(
                (*destination, *packet_fields.is_local(expressions.DESTINATION)), _goto(_NODE_PORTS)
            )

    def _masqueraded(self) -> Expressions | None:
        """Match the packets to cluster IPs that are masqueraded; ``None`` if none are."""
        if self.settings.masquerade_all:
            return ()
        if self.settings.local_traffic and not self.settings.local_traffic.matches_all:
            return self.fields.from_pods(self.settings.local_traffic, inside=False)
        return None

    def external(self, prefix: str) -> tuple[Rule, ...]:
        """Dispatch external frontends of one kind.

        With policy Cluster, packets are masqueraded: the endpoint may be on another node, and its
        replies must return through this node.
        """
        key = _key(self.fields, prefix)
        name = table_sets.NODE_PORTS if prefix else table_sets.EXTERNAL_IPS
        return (
            _rule(
                key,
                expressions.in_set(name, 0),
                *self.mark,
                _goto(str(Balance(prefix, local=False))),
            ),
            _rule(
                key, expressions.in_set(name + table_sets.LOCAL, 0), _goto(prefix + _EXTERNAL_LOCAL)
            ),
        )

    def external_local(self, prefix: str) -> Iterator[Rule]:
        """Dispatch external frontends with policy Local.

        Local pods reach all endpoints, as if their packets went through the load balancer. So does
        the node itself; its packets are masqueraded, because their source may be the external
        address.
        """
        to_all, to_local = (
            _goto(str(Balance(prefix, local=False))),
            _goto(str(Balance(prefix, local=True))),
        )
        if self.settings.local_traffic:
            yield _rule(self.fields.from_pods(self.settings.local_traffic), to_all)
        yield _rule(packet_fields.is_local(expressions.SOURCE), *self.mark, to_all)
        yield _rule((), to_local)

    def _node_port_destinations(self) -> Iterator[Expressions]:
        """Match the destinations that serve node ports, if they are addresses of the node.

        ``nodePortAddresses`` are matched as ranges, not as the node's current addresses, so address
        changes need no sync. ``::1`` never serves node ports: the kernel does not route packets
        from it to other hosts, and IPv6 has no ``route_localnet``.
        """
        settings = self.settings
        loopback = "127.0.0.0/8" if settings.family is IPFamily.IPV4 else "::1/128"
        served = settings.family is IPFamily.IPV4 and settings.localhost_node_ports
        if not settings.node_port_ranges:
            yield () if served else self.fields.destination_in(loopback, inside=False)
            return
        for cidr in settings.node_port_ranges:
            if served or not cidr.startswith(("127.", "::1/")):
                yield self.fields.destination_in(cidr)

    def postrouting(self) -> tuple[Rule, ...]:
        """Masquerade marked packets and hairpins.

        The mark is cleared: otherwise a packet that is encapsulated would be masqueraded again when
        it traverses the stack a second time.
        """
        bit = self.settings.masquerade_bit
        clear = packet_fields.set_mark_bit(bit, to=False)
        ends = self.fields.load_source(0) + self.fields.load_destination(self.fields.address_words)
        hairpin = expressions.in_set(table_sets.HAIRPINS, 0)
        return (
            _rule(packet_fields.has_mark(bit), *clear, expressions.masquerade()),
            _rule(packet_fields.is_dnat(), *ends, hairpin, expressions.masquerade()),
        )

    def input(self) -> Iterator[Rule]:
        """Protect 127.0.0.0/8, and reject or drop packets to frontends without endpoints."""
        settings, fields = self.settings, self.fields
        if settings.family is IPFamily.IPV4 and settings.localhost_node_ports:
            # Without this rule, route_localnet would expose services on 127.0.0.1 to neighbouring
            # hosts (CVE-2020-8558).
            martian = (
                *packet_fields.not_from_loopback(),
                *fields.destination_in("127.0.0.0/8"),
                *packet_fields.is_dnat(yes=False),
                *packet_fields.in_state(
                    expressions.STATE_ESTABLISHED | expressions.STATE_RELATED, any_of=False
                ),
            )
            yield _rule(martian, expressions.verdict(Code.DROP), comment="neighbours at localhost")
        yield _rule(_NEW, _jump(_REFUSE))
        for destination in self._node_port_destinations():
            local = (*_NEW, *destination, *packet_fields.is_local(expressions.DESTINATION))
            yield _rule(local, _jump(table_sets.OF_NODE_PORTS + _REFUSE))

    def invalid(self) -> Iterator[Rule]:
        """Drop packets in state INVALID: they would leave untranslated (kubernetes#74839)."""
        if isinstance(self.settings, NftablesSettings) and self.settings.drop_invalid:
            yield _rule(
                packet_fields.in_state(expressions.STATE_INVALID), expressions.verdict(Code.DROP)
            )

    def refuse(self, prefix: str) -> tuple[Rule, ...]:
        """Reject or drop packets to frontends without endpoints."""
        key = _key(self.fields, prefix)
        return (
            _rule(key, expressions.in_set(prefix + table_sets.REJECTED, 0), self.reject),
            _rule(
                key,
                expressions.in_set(prefix + table_sets.DROPPED, 0),
                expressions.verdict(Code.DROP),
            ),
        )

    def check_cluster_ips(self) -> Iterator[Rule]:
        """Reject unknown ports of cluster IPs; drop packets to unassigned cluster IPs."""
        load = self.fields.load_destination(0)
        yield _rule(load, expressions.in_set(table_sets.CLUSTER_ADDRESSES, 0), self.reject)
        if isinstance(self.settings, NftablesSettings):
            for cidr in self.settings.service_cidrs:
                yield _rule(self.fields.destination_in(cidr), expressions.verdict(Code.DROP))
