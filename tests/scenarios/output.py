"""The output sections of a scenario: Service ports, rules and traces as text."""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address

from msgspec import structs

from svcproxy.explain.core.iptables_rules import IptablesRuleset, Tables
from svcproxy.explain.core.ipvs_print import address_lines, server_lines, set_lines
from svcproxy.explain.core.nft_print import chain_lines, element_commands, print_table, rule_text
from svcproxy.explain.core.nft_rules import NftRuleset
from svcproxy.explain.core.nft_table import NftTable
from svcproxy.explain.core.packet import Host
from svcproxy.explain.core.trace import Ruleset, trace
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import Endpoint, Frontend, ServicePort
from tests.scenarios.modes import UNORDERED, Made, balances
from tests.scenarios.scenario import NODE_ADDRESSES, Sent

_HOST = Host.of(*NODE_ADDRESSES)


def port_lines(ports: Mapping[ServicePortName, ServicePort]) -> Iterator[str]:
    """The finished Service ports of a family."""
    for name in sorted(ports):
        port = ports[name]
        yield f"{name} {name.protocol}"
        yield from (f"  {_frontend(frontend)}" for frontend in port.frontends)
        if port.cluster_endpoints:
            yield f"  endpoints {_endpoints(port.cluster_endpoints)}"
        if port.local_endpoints:
            yield f"  local endpoints {_endpoints(port.local_endpoints)}"
        if port.affinity_seconds:
            yield f"  session affinity {port.affinity_seconds} s"
        if port.source_ranges:
            yield f"  source ranges {' '.join(port.source_ranges)}"
        if port.health_check_node_port:
            ready = len(port.local_ready)
            yield f"  health check node port {port.health_check_node_port}, {ready} ready here"


def _frontend(frontend: Frontend) -> str:
    address = frontend.address
    address = f"[{address}]" if ":" in address else address
    policy = " Local" if frontend.local else ""
    also = ", also loadbalancer IP" if frontend.also_load_balancer else ""
    kind = frontend.kind.value
    return f"{kind} {address}:{frontend.port}{policy} {frontend.verdict.value}{also}"


def _endpoints(endpoints: tuple[Endpoint, ...]) -> str:
    return ", ".join(map(_endpoint, endpoints))


def _endpoint(endpoint: Endpoint) -> str:
    address = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    where = " here" if endpoint.is_local else " anywhere" if endpoint.node_unknown else ""
    return f"{address}:{endpoint.port}{where}"


def rule_lines(made: Made, base: Made, shown: set[str]) -> list[str]:
    """The rules of one mode and family that a cluster without Services does not have."""
    if made.iptables is not None:
        assert base.iptables is not None
        lines = _iptables(made.iptables, base.iptables, shown)
        lines += [f"create {name} hash:ip" for name in sorted(made.iptables.sets)]
        return lines
    if made.nftables is not None:
        assert base.nftables is not None
        return _nftables(made.nftables, base.nftables, shown)
    assert made.ipvs is not None
    assert base.ipvs is not None
    return [
        *server_lines(made.ipvs),
        *address_lines(made.ipvs),
        *set_lines(made.ipvs.rules.sets),
        *_iptables(made.ipvs.rules, base.ipvs.rules, shown),
    ]


def _iptables(made: IptablesRuleset, base: IptablesRuleset, shown: set[str]) -> list[str]:
    without: Tables = {} if "shared" in shown else base.tables
    lines: list[str] = []
    for table in ("filter", "nat"):
        found = made.tables.get(table, {})
        changed = list(_changed_chains(found, without.get(table, {})))
        if changed:
            lines += [f"*{table}", *changed]
    return lines


def _changed_chains(
    found: Mapping[str, Sequence[str]], without: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    for chain in sorted(found):
        rules, former = list(found[chain]), list(without.get(chain, ()))
        if chain in UNORDERED:
            rules.sort()
        yield from (f"-A {chain} {rule}" for rule in rules if rule not in former)
        yield from (f"# not: -A {chain} {rule}" for rule in former if rule not in rules)


def _nftables(made: NftTable, base: NftTable, shown: set[str]) -> list[str]:
    if "shared" in shown:
        return print_table(made).replace("\t", "  ").splitlines()
    lines: list[str] = list(element_commands(made))
    for name in sorted(made.chains):
        if balances(name):
            if "tiers" in shown:
                lines += [line.replace("\t", "  ") for line in chain_lines(made, name)]
            continue
        start = f"add rule {made.family} {made.name} {name}"
        rules, former = _rule_texts(made, name), _rule_texts(base, name)
        lines += [f"{start} {rule}" for rule in rules if rule not in former]
        lines += [f"# not: {start} {rule}" for rule in former if rule not in rules]
    return lines


def _rule_texts(table: NftTable, chain: str) -> list[str]:
    return [rule_text(table, body) for body in table.rules.get(chain, ())]


def ruleset_of(made: Made) -> Ruleset:
    """The rules as input of the tracer."""
    if made.iptables is not None:
        return made.iptables
    if made.nftables is not None:
        return NftRuleset(made.nftables)
    assert made.ipvs is not None
    return made.ipvs


def trace_lines(packets: list[Sent], made: Mapping[tuple[str, bool], Made]) -> Iterator[str]:
    """The verdicts for each packet; modes with equal verdicts share a line.

    Args:
        packets: the packets.
        made: the rules by mode and by whether they are those of IPv6.
    """
    for sent in packets:
        yield sent.text
        found: dict[str, list[str]] = {}
        for (mode, six), rules in made.items():
            if six is (":" in sent.packet.destination):
                found.setdefault(_traced(sent, ruleset_of(rules)), []).append(mode)
        for text, modes in found.items():
            yield f"  {'all' if len(found) == 1 else ' '.join(modes)}: {text}"


def _traced(sent: Sent, ruleset: Ruleset) -> str:
    packet = sent.packet
    destination = ip_address(packet.destination)
    own = ruleset.is_local(Host(), destination.packed) and not destination.is_loopback
    if sent.sender == "node" and own:
        # The kernel uses a local destination as the source; addresses on kube-ipvs0 are local.
        packet = structs.replace(packet, source=packet.destination)
    if sent.again:
        (first, *_) = trace(packet, ruleset, _HOST, choose=0.0).verdicts
        ruleset = ruleset.after(first.updates)
    return str(trace(packet, ruleset, _HOST))
