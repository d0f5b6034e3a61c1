"""``kubectl svcproxy top``: the connections of Services on all nodes together."""

from collections.abc import Mapping, Sequence

import msgspec

from svcproxy.explain.core.documents import Document, Part


class ClientSeen(msgspec.Struct, rename="camel"):
    """The part of a client that is shown."""

    address: str = ""
    connections: int = 0


class RowSeen(msgspec.Struct, rename="camel"):
    """The part of ``TopFrontend`` that is added up."""

    service: str = ""
    port_name: str = ""
    protocol: str = ""
    family: str = ""
    address: str = ""
    port: int = 0
    new_per_second: float = 0.0
    open: int = 0
    refused_per_second: float | None = None
    dropped_per_second: float | None = None
    reason: str = ""


class TopSeen(msgspec.Struct, rename="camel"):
    """The part of ``Top`` that is added up."""

    frontends: list[RowSeen] = []


class ClusterRow(Part, frozen=True):
    """A frontend on all nodes.

    Attributes:
        service: ``namespace/name`` of the Service.
        frontend: the address and port.
        new_per_second: new connections per second.
        open: open connections.
        refused_per_second: refused attempts per second; absent if no node counts them.
        dropped_per_second: dropped attempts per second; absent if no node counts them.
        reasons: why attempts are refused or dropped, with the nodes.
        nodes: the new connections per second of each node.
    """

    service: str
    frontend: str
    new_per_second: float
    open: int
    refused_per_second: float | None = None
    dropped_per_second: float | None = None
    reasons: Mapping[str, tuple[str, ...]] = {}
    nodes: Mapping[str, float] = {}


class ClusterTop(Document, frozen=True, kw_only=True):
    """The answer of ``kubectl svcproxy top``.

    Attributes:
        nodes: the nodes that answered.
        frontends: those with connections or attempts, the busiest first.
        missing: the nodes that did not answer, with the reasons.
    """

    nodes: tuple[str, ...]
    frontends: tuple[ClusterRow, ...]
    missing: Mapping[str, str]


_Key = tuple[str, str, str, str, int]


def rows_of(tops: Mapping[str, TopSeen]) -> list[ClusterRow]:
    """Add up the rows of all nodes; the busiest frontends come first.

    Args:
        tops: the answer of each node.
    """
    found: dict[_Key, dict[str, RowSeen]] = {}
    for node, top in tops.items():
        for row in top.frontends:
            key = (row.service, row.family, row.protocol, row.address, row.port)
            found.setdefault(key, {})[node] = row
    rows = [_row(key, by_node) for key, by_node in found.items()]
    return sorted(rows, key=lambda row: (-_attempts(row), -row.open, row.service, row.frontend))


def _attempts(row: ClusterRow) -> float:
    return row.new_per_second + (row.refused_per_second or 0) + (row.dropped_per_second or 0)


def _row(key: _Key, by_node: Mapping[str, RowSeen]) -> ClusterRow:
    service, family, protocol, address, port = key
    shown = f"[{address}]" if ":" in address else address
    frontend = f"{shown}:{port}/{protocol.lower()}"
    reasons: dict[str, list[str]] = {}
    for node, row in sorted(by_node.items()):
        if row.reason:
            reasons.setdefault(row.reason, []).append(node)
    return ClusterRow(
        service,
        frontend if address else f"node port {port}/{protocol.lower()} ({family})",
        round(sum(row.new_per_second for row in by_node.values()), 2),
        sum(row.open for row in by_node.values()),
        _sum([row.refused_per_second for row in by_node.values()]),
        _sum([row.dropped_per_second for row in by_node.values()]),
        {reason: tuple(nodes) for reason, nodes in reasons.items()},
        {node: row.new_per_second for node, row in by_node.items()},
    )


def _sum(numbers: Sequence[float | None]) -> float | None:
    counted = [number for number in numbers if number is not None]
    return round(sum(counted), 2) if counted else None
