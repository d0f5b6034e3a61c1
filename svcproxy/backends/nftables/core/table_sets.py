"""The sets and maps of a table.

No map holds verdicts: a new element with a verdict makes the kernel check the whole table for
loops, that map's every element included. And the endpoints do not all stand in one map: a new
rule that refers to a map makes the kernel look at the map's every element
(``nf_tables_bind_set``). Either would take longer the more Services there are. Sets without
verdicts, and a map for each length of endpoint lists, made before it has elements, do not.
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
"""With frontends: their policy is Local. With endpoints: those on this node."""
CLUSTER_IPS, EXTERNAL_IPS, NODE_PORTS = "cluster-ips", "external-ips", "node-ports"

ADDRESSES = ""
OF_NODE_PORTS = "node-port-"
"""What the names of sets begin with whose keys have an address, or none."""

AFFINITY = "affinity"
AFFINITY_ENDPOINTS = "affinity-endpoints"

REJECTED, DROPPED = "rejected", "dropped"
CLUSTER_ADDRESSES = "cluster-addresses"
HAIRPINS = "hairpins"
GUARDED = "guarded"
_SOURCES = "sources-"

AFFINITY_LIMIT = 1 << 18
"""How many clients are remembered at a time, all Services together (some 40 MB at most)."""


class Balance(NamedTuple):
    """Whose frontends a chain balances, and to which of their lists.

    Attributes:
        prefix: ``ADDRESSES`` or ``OF_NODE_PORTS``.
        local: to the endpoints on this node.
    """

    prefix: str
    local: bool

    def __str__(self) -> str:
        return f"{self.prefix}{'local' if self.local else 'all'}"


BALANCES = tuple(
    Balance(prefix, local) for prefix in (ADDRESSES, OF_NODE_PORTS) for local in (False, True)
)


class Tier(NamedTuple):
    """All frontends whose endpoint lists have one length; they share a map and a chain.

    The text form is the name of both: ``all3``, ``local2``, ``node-port-all3-10800``.

    Attributes:
        balance: the chain that leads here.
        length: how many endpoints the lists have.
        seconds: how long clients are remembered, 0 if they are not.
    """

    balance: Balance
    length: int
    seconds: int = 0

    def __str__(self) -> str:
        return f"{self.balance}{self.length}{f'-{self.seconds}' if self.seconds else ''}"


_TIER = re.compile(rf"({OF_NODE_PORTS}|)(all|local)([1-9]\d*)(?:-([1-9]\d*))?")
_SOURCE_SET = re.compile(rf"{_SOURCES}([1-9]\d*)")


def parse_tier(name: str) -> Tier | None:
    """The tier that a map's or chain's name stands for, if it is one."""
    found = _TIER.fullmatch(name)
    if found is None:
        return None
    return Tier(Balance(found[1], found[2] == "local"), int(found[3]), int(found[4] or 0))


def source_set(bits: int) -> str:
    """The set of the load balancers' source ranges of one prefix length."""
    return f"{_SOURCES}{bits}"


def parse_source_set(name: str) -> int:
    """The prefix length that a set of source ranges is for, 0 if it is not one."""
    found = _SOURCE_SET.fullmatch(name)
    return int(found[1]) if found else 0


def is_on_demand(name: str) -> bool:
    """Whether a set exists only while it has elements."""
    return bool(parse_tier(name) or parse_source_set(name))


def shared_sets(family: IPFamily) -> dict[str, SetSpec]:
    """The sets and maps that every table has."""
    return {spec.name: spec for spec in (*_frontend_sets(family), *_endpoint_sets(family))}


def set_on_demand(family: IPFamily, name: str) -> SetSpec:
    """A set that exists only while it has elements: the map of a tier, or source ranges."""
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
    # The note that would make nft print numbers properly is too long for these (256 bytes).
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
    """What concerns endpoints and clients rather than frontends.

    A Service port's clients are to find the same endpoint through all of its frontends, so they
    are remembered under the one that owns the endpoints.
    """
    address, owner = ADDRESS[family], (ADDRESS[family], PORT, PROTOCOL)
    valid = (address, PORT, *owner)
    clients = SetSpec(
        AFFINITY,
        (*owner, address),
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
