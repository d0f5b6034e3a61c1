"""The chains that all Services share.

A packet's way: ``services`` looks up its destination in one set for each kind of frontend and
policy. That decides whether it is masqueraded and which list of endpoints counts; the chain
``all`` (or ``local``, or their like for node ports) then finds the list's length and an endpoint
(``tiers``). What is not translated there is looked up among the refused in the filter chains.
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
    """The chains that depend on settings alone."""
    made = _Chains(settings)
    firewall, services = (_rule(_NEW, _jump(_FIREWALL)),), (_rule((), _jump(_SERVICES)),)
    refuse, check = _rule(_NEW, _jump(_REFUSE)), _rule(_NEW, _jump(_CHECK))
    chains = [
        ChainSpec("filter-prerouting", firewall, Hook("filter", _PREROUTING, _BEFORE_NAT)),
        ChainSpec("filter-output-early", firewall, Hook("filter", _OUTPUT, _BEFORE_NAT)),
        ChainSpec("nat-prerouting", services, Hook("nat", _PREROUTING, _DESTINATION_NAT)),
        ChainSpec("nat-output", services, Hook("nat", _OUTPUT, _DESTINATION_NAT)),
        ChainSpec("nat-postrouting", made.postrouting(), Hook("nat", _POSTROUTING, _SOURCE_NAT)),
        ChainSpec("filter-input", tuple(made.input()), Hook("filter", _INPUT, _FILTER)),
        ChainSpec(
            "filter-forward", (*made.invalid(), refuse, check), Hook("filter", _FORWARD, _FILTER)
        ),
        ChainSpec("filter-output", (refuse, check), Hook("filter", _OUTPUT, _FILTER)),
        ChainSpec(_SERVICES, tuple(made.services())),
        ChainSpec(_NODE_PORTS, made.external(table_sets.OF_NODE_PORTS)),
        ChainSpec(
            _FIREWALL,
            (_rule(made.load_frontend, expressions.in_set(table_sets.GUARDED, 0), _go(SOURCES)),),
        ),
        ChainSpec(_CHECK, tuple(made.check_cluster_ips())),
    ]
    chains += map(balance_chain, table_sets.BALANCES)
    for prefix in (table_sets.ADDRESSES, table_sets.OF_NODE_PORTS):
        chains += (
            ChainSpec(prefix + _EXTERNAL_LOCAL, tuple(made.external_local(prefix))),
            ChainSpec(prefix + _REFUSE, made.refuse(prefix)),
        )
    return {chain.name: chain for chain in chains}


def source_chain(family: IPFamily, lengths: Iterable[int]) -> ChainSpec:
    """What admits packets to load balancers with source ranges, and drops the rest.

    One rule for each prefix length in use: the source is cut to the length and looked up. An
    interval set would do it in one rule, but the kernel copies such a set at every change.
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


def _go(chain: str) -> expressions.Expression:
    return expressions.verdict(Code.GOTO, chain)


_NEW = packet_fields.in_state(expressions.STATE_NEW)


class _Chains:
    """Holds what the shared chains of one table have in common."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fields = PacketFields(settings.family)
        self.load_frontend = self.fields.load_frontend(0)
        self.mark = packet_fields.set_mark_bit(settings.masquerade_bit, to=True)
        self.reject = expressions.reject(_PORT_UNREACHABLE[settings.family])

    def services(self) -> Iterator[Rule]:
        """Cluster IPs first, then external addresses, then the node's own."""
        for policy in ("", table_sets.LOCAL):
            name, lists = (
                table_sets.CLUSTER_IPS + policy,
                Balance(table_sets.ADDRESSES, bool(policy)),
            )
            outside = self._outside()
            if outside is not None:
                yield _rule(outside, *self.load_frontend, expressions.in_set(name, 0), *self.mark)
            yield _rule(self.load_frontend, expressions.in_set(name, 0), _go(str(lists)))
        yield from self.external(table_sets.ADDRESSES)
        for place in self._node_port_places():
            yield _rule(
                (*place, *packet_fields.is_local(expressions.DESTINATION)), _go(_NODE_PORTS)
            )

    def _outside(self) -> Expressions | None:
        """What tells whose packets to cluster IPs are masqueraded; ``None`` for nobody's."""
        if self.settings.masquerade_all:
            return ()
        if self.settings.local_traffic and not self.settings.local_traffic.everybody:
            return self.fields.from_pods(self.settings.local_traffic, inside=False)
        return None

    def external(self, prefix: str) -> tuple[Rule, ...]:
        """External frontends.

        With policy Cluster the endpoint may be on another node and must answer through us, so it
        may not see the client.
        """
        key = _key(self.fields, prefix)
        name = table_sets.NODE_PORTS if prefix else table_sets.EXTERNAL_IPS
        return (
            _rule(
                key, expressions.in_set(name, 0), *self.mark, _go(str(Balance(prefix, local=False)))
            ),
            _rule(
                key, expressions.in_set(name + table_sets.LOCAL, 0), _go(prefix + _EXTERNAL_LOCAL)
            ),
        )

    def external_local(self, prefix: str) -> Iterator[Rule]:
        """External frontends with policy Local.

        Pods reach external addresses as if they went out to a load balancer and back, which
        neither policy concerns. The node's own packets to such an address may have that very
        address as their source, so they are masqueraded.
        """
        everywhere, here = (
            _go(str(Balance(prefix, local=False))),
            _go(str(Balance(prefix, local=True))),
        )
        if self.settings.local_traffic:
            yield _rule(self.fields.from_pods(self.settings.local_traffic), everywhere)
        yield _rule(packet_fields.is_local(expressions.SOURCE), *self.mark, everywhere)
        yield _rule((), here)

    def _node_port_places(self) -> Iterator[Expressions]:
        """The destinations that serve node ports, apart from being the node's own.

        With ranges, the kernel is asked for "a local address within the range" instead of being
        given the node's addresses, so addresses may come and go without a sync. ``::1`` never
        serves: the kernel does not route packets from there to other machines, and has no
        ``route_localnet`` for IPv6.
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
        """Masquerade what was marked, and endpoints that were sent to themselves.

        The mark is cleared, or a packet that passes the stack again, encapsulated, would be
        masqueraded again.
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
        """Refusals for what the node itself is the destination of."""
        settings, fields = self.settings, self.fields
        if settings.family is IPFamily.IPV4 and settings.localhost_node_ports:
            # Without it, route_localnet would let neighbours reach what listens on 127.0.0.1
            # (CVE-2020-8558).
            strange = (
                *packet_fields.not_from_loopback(),
                *fields.destination_in("127.0.0.0/8"),
                *packet_fields.is_dnat(yes=False),
                *packet_fields.in_state(
                    expressions.STATE_ESTABLISHED | expressions.STATE_RELATED, any_of=False
                ),
            )
            yield _rule(strange, expressions.verdict(Code.DROP), comment="neighbours at localhost")
        yield _rule(_NEW, _jump(_REFUSE))
        for place in self._node_port_places():
            local = (*_NEW, *place, *packet_fields.is_local(expressions.DESTINATION))
            yield _rule(local, _jump(table_sets.OF_NODE_PORTS + _REFUSE))

    def invalid(self) -> Iterator[Rule]:
        """Drop packets of no connection: they would leave untranslated (kubernetes#74839)."""
        if isinstance(self.settings, NftablesSettings) and self.settings.drop_invalid:
            yield _rule(
                packet_fields.in_state(expressions.STATE_INVALID), expressions.verdict(Code.DROP)
            )

    def refuse(self, prefix: str) -> tuple[Rule, ...]:
        """Answer or ignore what has no endpoint."""
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
        """Refuse ports that a cluster IP does not have, and cluster IPs that nobody has."""
        load = self.fields.load_destination(0)
        yield _rule(load, expressions.in_set(table_sets.CLUSTER_ADDRESSES, 0), self.reject)
        if isinstance(self.settings, NftablesSettings):
            for cidr in self.settings.service_cidrs:
                yield _rule(self.fields.destination_in(cidr), expressions.verdict(Code.DROP))
