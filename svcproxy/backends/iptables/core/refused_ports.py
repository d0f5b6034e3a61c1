"""Which Service ports a refused restore input concerns."""

from collections.abc import Iterable, Iterator, Mapping

from svcproxy.backends.iptables.core.plan import Observed
from svcproxy.backends.iptables.core.render import PortRules, render
from svcproxy.backends.iptables.core.settings import IptablesSettings
from svcproxy.backends.xtables.core.rule_text import NAT
from svcproxy.model.names import ServicePortName
from svcproxy.model.serviceport import ServicePort

PortChanges = Mapping[ServicePortName, ServicePort | None]
"""Changed Service ports; ``None`` for a deleted one."""


def ports_in_lines(
    lines: Iterable[str], ports: PortChanges, settings: IptablesSettings
) -> set[ServicePortName]:
    """Return the Service ports whose chains, ipsets or rules occur in lines of a restore input."""
    wanted = {part for line in lines for part in _chain_and_rule(line) if part}
    if not wanted:
        return set()
    return {
        name
        for name, port in ports.items()
        if port is not None and not wanted.isdisjoint(_chains_and_rules(port, settings))
    }


def halves(ports: PortChanges) -> list[PortChanges]:
    """Split into two groups; ports that need the same kernel features are next to each other."""
    names = sorted(ports, key=lambda name: (_required_features(ports[name]), name))
    middle = len(names) // 2
    return [{n: ports[n] for n in names[:middle]}, {n: ports[n] for n in names[middle:]}]


def ports_not_programmed(
    ports: Mapping[ServicePortName, ServicePort], settings: IptablesSettings, observed: Observed
) -> Iterator[ServicePortName]:
    """Yield the Service ports of which the kernel lacks a chain, a rule or an ipset."""
    nat = observed.tables.get(NAT, {})
    present = {
        text for table in observed.tables.values() for rules in table.values() for text in rules
    }
    for name, port in ports.items():
        try:
            rules = render(port, settings)
        except ValueError:
            continue
        same = rules.sets <= observed.sets
        same = same and all(nat.get(chain) == texts for chain, texts in rules.chains.items())
        if not (same and present.issuperset(_rules_in_shared_chains(rules))):
            yield name


def _required_features(port: ServicePort | None) -> tuple[str, bool, bool]:
    """Return the features that a port needs and a kernel may lack, as a sort key."""
    if port is None:
        return "", False, False
    return port.name.protocol.value, bool(port.affinity_seconds), bool(port.source_ranges)


def _chain_and_rule(line: str) -> tuple[str, str]:
    """Return the chain that a line of a restore input names, and the rule; either may be empty."""
    command, _, rest = line.partition(" ")
    if command.startswith(":"):
        return command[1:], ""
    chain, _, text = rest.partition(" ")
    return chain, text


def _chains_and_rules(port: ServicePort, settings: IptablesSettings) -> Iterator[str]:
    """Yield a port's own chains and ipsets, and its rules in chains that it shares with others."""
    try:
        rules = render(port, settings)
    except ValueError:
        return
    yield from rules.chains
    yield from rules.sets
    yield from _rules_in_shared_chains(rules)


def _rules_in_shared_chains(rules: PortRules) -> Iterator[str]:
    for entries in (rules.cluster_ips, rules.external_ips, rules.node_ports):
        yield from entries.values()
    for texts in rules.shared_rules.values():
        yield from texts
