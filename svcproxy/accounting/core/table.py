"""The table that counts connections and refusals: its sets, chains and elements.

It only counts and logs; traffic does not depend on it. Chains of type nat see the first packet of
each connection only, so established connections cost nothing. The kernel calls all of them at one
place, in the order of their priorities, together with those of legacy iptables, until one has
translated the packet (``nf_nat_inet_fn``). So one before the proxy's sees every new connection, and
one after it sees those that the proxy did not translate. A packet to a frontend that should be
refused or dropped is counted there. A client of TCP that is dropped repeats its packet; each counts.

Clients outside of a load balancer's source ranges are counted in iptables mode only: nftables mode
drops their packets before these hooks, and IPVS does not translate in them.
"""

from collections.abc import Iterator

import msgspec

from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.backends.nftables.core import packet_fields
from svcproxy.backends.nftables.core.packet_fields import Expressions, PacketFields
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, Protocol
from svcproxy.model.serviceport import Frontend, ServicePort, Verdict
from svcproxy.netlink.core.addresses import text as address_text
from svcproxy.netlink.core.families import PROTOCOL_NUMBERS
from svcproxy.netlink.core.nf_tables import expressions
from svcproxy.netlink.core.nf_tables.datatypes import (
    ADDRESS,
    PORT,
    PROTOCOL,
    address_key,
    decode_comment,
    port_key,
    protocol_key,
)
from svcproxy.netlink.core.nf_tables.ruleset import (
    ACCOUNTING_TABLE,
    ChainSpec,
    ElementsBySet,
    Hook,
    Rule,
    SetSpec,
    element_comment,
)
from svcproxy.netlink.errors import MalformedError

TABLE = ACCOUNTING_TABLE
CONNECTIONS, UNSERVED = "connections", "unserved"
NODE_PORTS = "node-ports"
OF_NODE_PORTS = "node-port-"
"""Prefix of the sets whose keys have no address."""
REFUSED, DROPPED, OUTSIDE = "refused", "dropped", "outside the source ranges"

LOG_PREFIX = "svcproxy: not served"
_LOGGED_PER_SECOND, _LOGGED_AT_ONCE = 10, 20
_PREROUTING, _OUTPUT = 0, 3
_HOOKS = {"prerouting": _PREROUTING, "output": _OUTPUT}
_BEFORE, _AFTER = -101, -99  # around NF_IP_PRI_NAT_DST
_LOOPBACK = {IPFamily.IPV4: "127.0.0.0/8", IPFamily.IPV6: "::1/128"}
_PROTOCOLS = {number: protocol for protocol, number in PROTOCOL_NUMBERS.items()}


class Accounting(msgspec.Struct, frozen=True):
    """What is counted, and how.

    Attributes:
        connections: count the new connections of all frontends, not only attempts that fail.
        outside: whether packets from outside the source ranges are the untranslated ones of a
            load balancer that has endpoints, as in iptables mode.
        log_group: the nflog group that gets packets that are not served; 0 for none.
    """

    connections: bool = False
    outside: bool = False
    log_group: int = 0


def sets(accounting: Accounting, family: IPFamily) -> dict[str, SetSpec]:
    """Return the sets of the table of a family."""
    frontend, node_port = (ADDRESS[family], PROTOCOL, PORT), (PROTOCOL, PORT)
    counted = [UNSERVED, *([CONNECTIONS] if accounting.connections else [])]
    found = [SetSpec(NODE_PORTS, node_port, comment="all node ports")]
    for name in counted:
        found.append(SetSpec(name, frontend, comment=_COMMENTS[name], counter=True))
        found.append(SetSpec(OF_NODE_PORTS + name, node_port, counter=True))
    return {spec.name: spec for spec in found}


_COMMENTS = {CONNECTIONS: "new connections", UNSERVED: "attempts that are not served"}


def chains(accounting: Accounting, settings: Settings) -> dict[str, ChainSpec]:
    """Return the chains of the table of a family."""
    fields = PacketFields(settings.family)
    found = {}
    kinds = [(UNSERVED, _AFTER), *([(CONNECTIONS, _BEFORE)] if accounting.connections else [])]
    for kind, priority in kinds:
        log = _log(accounting) if kind == UNSERVED else ()
        rules = tuple(_rules(kind, fields, settings, log))
        for hook, number in _HOOKS.items():
            name = f"{kind}-{hook}"
            found[name] = ChainSpec(name, rules, Hook("nat", number, priority))
    return found


def _log(accounting: Accounting) -> Expressions:
    if not accounting.log_group:
        return ()
    return (
        expressions.limit(_LOGGED_PER_SECOND, _LOGGED_AT_ONCE),
        expressions.log(accounting.log_group, LOG_PREFIX),
    )


def _rules(kind: str, fields: PacketFields, settings: Settings, log: Expressions) -> Iterator[Rule]:
    """Yield the rules of a chain.

    A look-up in a set with counters counts, so a packet to a node port is looked up in it only when
    its destination is known to be the node.
    """
    yield Rule((*fields.load_frontend(0), expressions.in_set(kind, 0), *log))
    key = fields.load_node_port(0)
    for destination in _node_port_destinations(fields, settings):
        yield Rule(
            (
                *key,
                expressions.in_set(NODE_PORTS, 0),
                *destination,
                *packet_fields.is_local(expressions.DESTINATION),
                expressions.in_set(OF_NODE_PORTS + kind, 0),
                *log,
            )
        )


def _node_port_destinations(fields: PacketFields, settings: Settings) -> Iterator[Expressions]:
    served = settings.family is IPFamily.IPV4 and settings.localhost_node_ports
    if not settings.node_port_ranges:
        yield () if served else fields.destination_in(_LOOPBACK[settings.family], inside=False)
    for cidr in settings.node_port_ranges:
        if served or not cidr.startswith(("127.", "::1/")):
            yield fields.destination_in(cidr)


def port_elements(accounting: Accounting, port: ServicePort) -> ElementsBySet:
    """Return the elements of a Service port."""
    found: ElementsBySet = {}
    for frontend in port.frontends:
        key = protocol_key(port.name.protocol) + port_key(frontend.port)
        prefix = OF_NODE_PORTS
        if frontend.address:
            key, prefix = address_key(frontend.address) + key, ""
        else:
            found.setdefault(NODE_PORTS, {})[key] = element_comment(str(port.name))
        if accounting.connections:
            found.setdefault(prefix + CONNECTIONS, {})[key] = element_comment(str(port.name))
        if why := unserved(accounting, port, frontend):
            # A changed reason makes another element, which counts from 0.
            comment = element_comment(f"{port.name} {why}")
            found.setdefault(prefix + UNSERVED, {})[key] = comment
    return found


def unserved(accounting: Accounting, port: ServicePort, frontend: Frontend) -> str:
    """Return what happens to packets of a frontend that are not translated.

    Returns:
        ``REFUSED``, ``DROPPED`` or ``OUTSIDE``; empty if all packets are served.
    """
    match frontend.verdict:
        case Verdict.REJECT:
            return REFUSED
        case Verdict.DROP:
            return DROPPED
        case _ if accounting.outside and port.source_ranges and frontend.is_load_balancer:
            return OUTSIDE
    return ""


def frontend_of(family: IPFamily, key: bytes) -> FrontendKey | None:
    """Return the frontend that an element of a family is about; ``None`` if it is malformed."""
    length = family.bits // 8
    if len(key) not in {8, 8 + length} or key[-8] not in _PROTOCOLS:
        return None
    address = address_text(key[:-8]) if len(key) > 8 else ""
    port = int.from_bytes(key[-4:-2], "big")
    return FrontendKey(family, address, port, _PROTOCOLS[key[-8]])


def reason_of(user_data: bytes) -> str:
    """Return the reason in the comment of an element of ``UNSERVED``; empty if there is none."""
    try:
        comment = decode_comment(user_data)
    except MalformedError:
        return ""
    return comment.partition(" ")[2]


def element_key(key: FrontendKey) -> tuple[str, bytes]:
    """Return the prefix of the sets and the key of the elements about a frontend."""
    number = protocol_key(Protocol(key.protocol)) + port_key(key.port)
    return ("", address_key(key.address) + number) if key.address else (OF_NODE_PORTS, number)
