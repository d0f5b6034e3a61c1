"""The kernel's own trace of a packet: the rules that start it, and the events that it sends.

A table with an owner (``NFT_TABLE_F_OWNER``, Linux 5.12) has two chains, before all others at the
hooks where packets enter the node and where it sends them. They set ``meta nftrace`` for the probe's
addresses and ports only. The kernel then sends an event (``NFNLGRP_NFTRACE``) for each rule that
ends with a verdict, in all tables, also in those of ``iptables-nft``. It deletes the table when the
socket is closed that made it.
"""

import contextlib
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import NamedTuple

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.attributes import collect, string, text, u32
from svcproxy.netlink.core.families import PROTOCOL_NUMBERS
from svcproxy.netlink.core.messages import FLAG_CREATE, FLAG_EXCLUSIVE, messages
from svcproxy.netlink.core.nf_tables import expressions
from svcproxy.netlink.core.nf_tables.dump import OWNED
from svcproxy.netlink.core.nf_tables.expressions import Expression, Header, Meta
from svcproxy.netlink.core.nf_tables.protocol import (
    FAMILY_HEADER,
    FLAG_APPEND,
    NEW_CHAIN,
    NEW_RULE,
    NEW_TABLE,
    TABLE_OF,
    message_type,
)
from svcproxy.netlink.core.nf_tables.ruleset import ChainSpec, Hook, Rule
from svcproxy.netlink.core.nf_tables.transaction import Message
from svcproxy.netlink.errors import MalformedError
from svcproxy.probe.core.entry import Tuple

EVENT_GROUP = 9
"""NFNLGRP_NFTRACE."""
_TRACE = message_type(17)
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _POLICY = 1, 2, 3, 4, 5, 6, 16
_POLICY_EVENT, _RETURN_EVENT, _RULE_EVENT = 1, 2, 3
_PREROUTING, _OUTPUT = 0, 3
_PRIORITY = -350
"""Before connection tracking (-200) and iptables' raw table (-300), after defragmentation (-400)."""
_ADDRESSES = {IPFamily.IPV4: (12, 16), IPFamily.IPV6: (8, 24)}
_PORTS = Struct("!HH")
_CHAIN_OF = 2
_CODES = {
    0: "drop",
    1: "accept",
    2: "stolen",
    3: "queue",
    4: "repeat",
    -1: "continue",
    -2: "continue",
    -3: "jump",
    -4: "goto",
    -5: "return",
}
_NOTHING = _CODES[-1]
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}


class TraceEvent(NamedTuple):
    """One event.

    Attributes:
        packet: the number by which the kernel marks all events of one packet.
        family: the family of the table, as in nft.
        table: the table.
        chain: the chain.
        handle: the handle of the rule; 0 for the end or the policy of a chain.
        verdict: what followed.
    """

    packet: int
    family: str
    table: str
    chain: str
    handle: int
    verdict: str


def table_messages(name: str, sent: Tuple) -> list[Message]:
    """Return the transaction that makes the table."""
    table = text(TABLE_OF, name)
    flags = FLAG_CREATE | FLAG_EXCLUSIVE
    made = [Message(NEW_TABLE, flags, table + u32(2, OWNED), f"table {name}")]
    rule = Rule(_expressions(sent))
    for chain, hook in (("prerouting", _PREROUTING), ("output", _OUTPUT)):
        spec = ChainSpec(chain, (rule,), Hook("filter", hook, _PRIORITY))
        made.append(Message(NEW_CHAIN, flags, table + spec.attributes(), f"chain {chain}"))
        body = table + text(_CHAIN_OF, chain) + rule.attributes()
        made.append(Message(NEW_RULE, FLAG_CREATE | FLAG_APPEND, body, f"rule of {chain}"))
    return made


def _expressions(sent: Tuple) -> tuple[Expression, ...]:
    source, destination = sent.ends
    fields = zip(_ADDRESSES[sent.family], (source.address, destination.address), strict=True)
    found: list[Expression] = []
    for offset, address in fields:
        found.append(expressions.payload(Header.NETWORK, offset, len(address), 0))
        found.append(expressions.compare(0, address))
    ports = _PORTS.pack(sent.source_port, sent.port)
    return (
        *found,
        expressions.meta(Meta.L4PROTO, 0),
        expressions.compare(0, bytes([PROTOCOL_NUMBERS[sent.protocol]])),
        expressions.payload(Header.TRANSPORT, 0, len(ports), 0),
        expressions.compare(0, ports),
        *expressions.start_trace(0),
    )


def decode_events(data: bytes) -> list[TraceEvent]:
    """Decode the trace events of a datagram; malformed ones are skipped."""
    found: list[TraceEvent] = []
    with contextlib.suppress(MalformedError):
        found.extend(
            _decoded(message.body)
            for message in messages(data)
            if message.kind == _TRACE and len(message.body) > FAMILY_HEADER.size
        )
    # At the end of a chain the kernel sends an event without a rule and without a consequence.
    return [event for event in found if event.handle or event.verdict != _NOTHING]


def _decoded(body: bytes) -> TraceEvent:
    parts = collect(body, FAMILY_HEADER.size)
    kind = _number(parts.get(_TYPE, b""))
    if kind == _POLICY_EVENT:
        verdict = f"policy {_CODES.get(_signed(parts.get(_POLICY, b'')), 'unknown')}"
    else:
        inner = collect(parts.get(_VERDICT, b""))
        code, chain = _signed(inner.get(1, b"")), string(inner.get(2, b""))
        name = _CODES.get(code & 0xFF if code > 0 else code, f"verdict {code}")
        verdict = f"{name} {chain}" if chain else name
        if kind == _RETURN_EVENT and name == "continue":
            verdict = "return"
    return TraceEvent(
        _number(parts.get(_ID, b"")),
        _FAMILIES.get(body[0], str(body[0])),
        string(parts.get(_TABLE, b"")),
        string(parts.get(_CHAIN, b"")),
        _number(parts.get(_HANDLE, b"")) if kind == _RULE_EVENT else 0,
        verdict,
    )


def first_packet(events: Sequence[TraceEvent], table: str) -> list[TraceEvent]:
    """Return the events of the probe's first packet, without those in its own table.

    Other programs may trace packets at the same time. Those of the probe begin in its own table.
    The kernel derives the number of a packet from its address in memory, so a later packet may have
    the same one: it begins where the rule of a chain in the probe's table appears again.
    """
    packet = next((event.packet for event in events if event.table == table), None)
    seen: set[str] = set()
    found = []
    for event in events:
        if event.packet != packet:
            continue
        if event.table != table:
            found.append(event)
        elif event.handle:
            if event.chain in seen:
                break
            seen.add(event.chain)
    return found


def handles(bodies: Iterable[bytes]) -> dict[int, tuple[int, bytes]]:
    """Return position and attributes of each rule in a dump of one chain, by handle."""
    found = {}
    for position, body in enumerate(bodies):
        found[_number(collect(body).get(3, b""))] = (position, body)
    return found


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _signed(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)
