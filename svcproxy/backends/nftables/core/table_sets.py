"""The sets and maps of the table, and their names.

Sync cost must not grow with the number of Services, which rules out two simpler designs. In a
verdict map, each new element makes the kernel check the whole table for loops, including all
elements of that map. With one map for all endpoints, each new rule that refers to it makes the
kernel visit all of its elements (``nf_tables_bind_set``). Hence there are no verdict maps, and each
length of endpoint lists has its own map, which is bound to its rule while it is still empty.
"""

import re
from typing import NamedTuple

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.nf_tables.datatypes import (
    ADDRESS,
    PORT,
    PROTOCOL,
    WORD,
    Concatenation,
    numgen_index,
)
from svcproxy.netlink.core.nf_tables.ruleset import SetSpec

LOCAL = "-local"
"""Suffix: for frontends, traffic policy Local; for endpoints, only those on this node."""
CLUSTER_IPS, EXTERNAL_IPS, NODE_PORTS = "cluster-ips", "external-ips", "node-ports"

ADDRESSES = ""
OF_NODE_PORTS = "node-port-"
"""Prefixes of set names, for keys with and without an address."""

AFFINITY = "affinity"
AFFINITY_ENDPOINTS = "affinity-endpoints"

REJECTED, DROPPED = "rejected", "dropped"
CLUSTER_ADDRESSES = "cluster-addresses"
HAIRPINS = "hairpins"
GUARDED = "guarded"
_SOURCES = "sources-"

AFFINITY_LIMIT = 1 << 18
"""The maximum number of clients remembered for all Services together (about 40 MB)."""


class Balance(NamedTuple):
    """A kind of load balancing: by kind of frontend, and by the list of endpoints that counts.

    The text form is the name of its chain: ``all``, ``local``, ``node-port-all`` …

    Attributes:
        prefix: ``ADDRESSES`` or ``OF_NODE_PORTS``.
        local: balances among the endpoints on this node only.
    """

    prefix: str
    local: bool

    def __str__(self) -> str:
        return f"{self.prefix}{'local' if self.local else 'all'}"


BALANCES = tuple(
    Balance(prefix, local) for prefix in (ADDRESSES, OF_NODE_PORTS) for local in (False, True)
)


class Tier(NamedTuple):
    """All frontends of a balance with the same number of endpoints and the same affinity time-out.

    They share a map and a chain. The text form is the name of both: ``all3``, ``local2``,
    ``node-port-all3-10800``.

    Attributes:
        balance: the kind of load balancing.
        length: the number of endpoints of each frontend.
        seconds: the time-out of ClientIP affinity, in seconds; 0 without affinity.
    """

    balance: Balance
    length: int
    seconds: int = 0

    def __str__(self) -> str:
        return f"{self.balance}{self.length}{f'-{self.seconds}' if self.seconds else ''}"


_TIER = re.compile(rf"({OF_NODE_PORTS}|)(all|local)([1-9]\d*)(?:-([1-9]\d*))?")
_SOURCE_SET = re.compile(rf"{_SOURCES}([1-9]\d*)")


def parse_tier(name: str) -> Tier | None:
    """Return the tier that a map or chain belongs to; ``None`` for other names."""
    found = _TIER.fullmatch(name)
    if found is None:
        return None
    return Tier(Balance(found[1], found[2] == "local"), int(found[3]), int(found[4] or 0))


def source_set(bits: int) -> str:
    """Return the name of the set of source ranges with one prefix length."""
    return f"{_SOURCES}{bits}"


def parse_source_set(name: str) -> int:
    """Return the prefix length that a set of source ranges is for; 0 for other sets."""
    found = _SOURCE_SET.fullmatch(name)
    return int(found[1]) if found else 0


def is_on_demand(name: str) -> bool:
    """Whether a set exists only while it has elements: maps of tiers, and source ranges."""
    return bool(parse_tier(name) or parse_source_set(name))


def shared_sets(family: IPFamily) -> dict[str, SetSpec]:
    """Return the sets and maps that every table has."""
    return {spec.name: spec for spec in (*_frontend_sets(family), *_endpoint_sets(family))}


def set_on_demand(family: IPFamily, name: str) -> SetSpec:
    """Return an on-demand set: the map of a tier, or source ranges of one prefix length."""
    address = ADDRESS[family]
    tier = parse_tier(name)
    if tier is None:
        comment = f"sources cut to /{parse_source_set(name)}"
        return SetSpec(name, (*_frontend(family), address), comment=comment)
    frontend: Concatenation = (address, PROTOCOL, PORT)
    if tier.balance.prefix:
        frontend = (PROTOCOL, PORT)
    where = " on this node" if tier.balance.local else ""
    comment = f"frontends with {tier.length} endpoints{where}"
    if not tier.seconds:
        key = (*frontend, numgen_index(tier.length))
        return SetSpec(name, key, (address, PORT), comment=comment)
    # The user data that would make nft print numbers properly would exceed 256 bytes here.
    target = (WORD, address, PORT, address, PORT)
    return SetSpec(name, (*frontend, WORD), target, comment=f"{comment}, kept {tier.seconds} s")


def _frontend(family: IPFamily) -> Concatenation:
    return (ADDRESS[family], PROTOCOL, PORT)


def _frontend_sets(family: IPFamily) -> list[SetSpec]:
    frontend, address = _frontend(family), ADDRESS[family]
    return [
        SetSpec(CLUSTER_IPS, frontend),
        SetSpec(CLUSTER_IPS + LOCAL, frontend, comment="internalTrafficPolicy Local"),
        SetSpec(EXTERNAL_IPS, frontend, comment="external and load balancer IPs"),
        SetSpec(EXTERNAL_IPS + LOCAL, frontend, comment="externalTrafficPolicy Local"),
        SetSpec(NODE_PORTS, (PROTOCOL, PORT)),
        SetSpec(NODE_PORTS + LOCAL, (PROTOCOL, PORT), comment="externalTrafficPolicy Local"),
        SetSpec(REJECTED, frontend, comment="no endpoint anywhere"),
        SetSpec(DROPPED, frontend, comment="policy Local, no endpoint on this node"),
        SetSpec(OF_NODE_PORTS + REJECTED, (PROTOCOL, PORT), comment="no endpoint anywhere"),
        SetSpec(OF_NODE_PORTS + DROPPED, (PROTOCOL, PORT), comment="no endpoint on this node"),
        SetSpec(CLUSTER_ADDRESSES, (address,), comment="whose other ports are rejected"),
        SetSpec(GUARDED, frontend, comment="only for admitted sources"),
    ]


def _endpoint_sets(family: IPFamily) -> list[SetSpec]:
    """Return the sets about endpoints and clients rather than frontends.

    A client must reach the same endpoint through all frontends of a Service port, so clients are
    remembered under one key per Service port (``render.affinity_key``).
    """
    address, service_port = ADDRESS[family], (ADDRESS[family], PORT, PROTOCOL)
    valid = (address, PORT, *service_port)
    clients = SetSpec(
        AFFINITY,
        (*service_port, address),
        (WORD, address, PORT),
        limit=AFFINITY_LIMIT,
        comment="clients to endpoints",
    )
    return [
        SetSpec(HAIRPINS, (address, address), comment="endpoints on this node, to themselves"),
        clients,
        SetSpec(AFFINITY_ENDPOINTS, valid, comment="endpoints that may be remembered"),
        SetSpec(AFFINITY_ENDPOINTS + LOCAL, valid, comment="the same on this node"),
    ]
