"""Finds the objects of an nftables table that carry a Service port. Pure."""

from collections.abc import Iterator, Mapping

from svcproxy.backends.nftables.core import table_sets
from svcproxy.backends.nftables.core.render import hairpin_key, render
from svcproxy.backends.nftables.core.table_sets import Tier
from svcproxy.backends.settings import Settings
from svcproxy.explain.core.nft_print import element_text, rule_text
from svcproxy.explain.core.nft_table import NftTable, describe_set
from svcproxy.model.serviceport import ServicePort
from svcproxy.netlink.core.nf_tables.datatypes import (
    address_key,
    index_key,
    port_key,
    protocol_key,
)

_OTHER_KEYS = frozenset(
    (
        table_sets.AFFINITY,
        table_sets.AFFINITY_ENDPOINTS,
        table_sets.AFFINITY_ENDPOINTS + table_sets.LOCAL,
        table_sets.HAIRPINS,
        table_sets.CLUSTER_ADDRESSES,
    )
)
"""The sets whose keys are not frontends."""
_NODE_PORT_KEY = 8
"""The length of the key of a node port: protocol and port."""


def object_lines(table: NftTable, port: ServicePort, settings: Settings) -> list[str]:
    """Return the elements that carry a Service port, and the rules that balance it.

    Args:
        table: the table, desired or as the kernel holds it.
        port: the Service port.
        settings: what rules depend on besides Service ports.

    Returns:
        Commands that ``nft`` accepts: first the frontends, then endpoints, then rules.
    """
    lines: list[str] = []
    rules: list[str] = []
    for name, key in _keys(table, port, settings):
        tail = table.elements.get(name, {}).get(key)
        if tail is None:
            continue
        text = element_text(describe_set(table.sets[name]), key, tail)
        lines.append(f"add element {table.family} {table.name} {name} {{ {text} }}")
        if table_sets.parse_tier(name) and name not in rules:
            rules.append(name)
    for chain in rules:
        lines += (
            f"add rule {table.family} {table.name} {chain} {rule_text(table, body)}"
            for body in table.rules.get(chain, ())
        )
    return lines


def _keys(table: NftTable, port: ServicePort, settings: Settings) -> Iterator[tuple[str, bytes]]:
    """Yield the sets and keys at which elements of a Service port may be."""
    rendered = render(port, settings)
    frontends = _frontend_keys(port)
    tiers = {name: tier for name in table.sets if (tier := table_sets.parse_tier(name))}
    plain = [name for name in table.sets if name not in tiers and name not in _OTHER_KEYS]
    yield from ((name, key) for key in frontends for name in plain)
    addresses = dict.fromkeys(rendered.cluster_addresses)
    yield from ((table_sets.CLUSTER_ADDRESSES, address) for address in addresses)
    for name, elements in rendered.elements.items():
        if name in _OTHER_KEYS or table_sets.parse_source_set(name):
            yield from ((name, key) for key in elements)
    for key in frontends:
        yield from _endpoint_keys(key, tiers)
    for endpoint in sorted(rendered.hairpins):
        yield table_sets.HAIRPINS, hairpin_key(endpoint)


def _endpoint_keys(frontend: bytes, tiers: Mapping[str, Tier]) -> Iterator[tuple[str, bytes]]:
    is_node_port = len(frontend) == _NODE_PORT_KEY
    for name, tier in sorted(tiers.items(), key=lambda item: item[1]):
        if bool(tier.balance.prefix) == is_node_port:
            yield from ((name, frontend + index_key(number)) for number in range(tier.length))


def _frontend_keys(port: ServicePort) -> list[bytes]:
    protocol = protocol_key(port.name.protocol)
    return [
        (address_key(f.address) if f.address else b"") + protocol + port_key(f.port)
        for f in port.frontends
    ]
