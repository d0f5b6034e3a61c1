"""Finds the objects of IPVS mode that carry a Service port. Pure."""

from collections.abc import Iterator
from ipaddress import ip_address

from svcproxy.backends.ipvs.core.port_state import PortState, port_state
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.backends.xtables.core.rule_text import NAT
from svcproxy.explain.core.ipvs_print import address_command, server_block
from svcproxy.explain.core.ipvs_rules import IpvsRuleset
from svcproxy.explain.core.rendered_ipvs import entry_text, server_target
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.kernel_objects import without_zero_prefix


def object_lines(ruleset: IpvsRuleset, port: ServicePort, settings: IpvsSettings) -> list[str]:
    """Return the virtual servers, addresses, entries and rules that carry a Service port.

    The hidden port of a policy Local is that of a Service whose other ports do not take it.

    Args:
        ruleset: the rules, desired or as the kernel holds them.
        port: the Service port.
        settings: the settings.

    Returns:
        Lines as ``ipvsadm -L -n``, ``ipset save`` and ``iptables-save`` print them, and commands of
        ``ip``.
    """
    state = port_state(port, settings)
    return [
        *_servers(ruleset, state),
        *_addresses(ruleset, state),
        *_entries(ruleset, state),
        *_rules(ruleset, state),
    ]


def _servers(ruleset: IpvsRuleset, state: PortState) -> Iterator[str]:
    for key in sorted(state.servers):
        where = key.protocol.keyword, server_target(key.address, key.port)
        if where in ruleset.servers:
            yield from server_block(*where, ruleset.servers[where])


def _addresses(ruleset: IpvsRuleset, state: PortState) -> Iterator[str]:
    for address in sorted(state.addresses):
        if ip_address(address).packed in ruleset.bound:
            yield address_command(address)


def _entries(ruleset: IpvsRuleset, state: PortState) -> Iterator[str]:
    for name, entry in sorted(state.entries):
        present = ruleset.rules.sets.get(name, frozenset())
        for part in without_zero_prefix(entry):
            if entry_text(part) in present:
                yield f"add {name} {entry_text(part)}"


def _rules(ruleset: IpvsRuleset, state: PortState) -> Iterator[str]:
    tables = ruleset.rules.tables
    for table, chain, text in sorted(state.rules):
        if text in tables.get(table, {}).get(chain, ()):
            yield f"-A {chain} {text}"
    for chain in state.chains:
        yield from (f"-A {chain} {text}" for text in tables.get(NAT, {}).get(chain, ()))
