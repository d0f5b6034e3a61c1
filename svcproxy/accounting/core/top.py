"""The document of ``svcproxy top``: Services by connections, refusals and drops."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum

import msgspec

from svcproxy.accounting.core.activity import Activity
from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.accounting.core.readings import Rates
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Frontend, FrontendKind, ServicePort, Verdict
from svcproxy.netlink.core.addresses import text

_CLIENTS = 3
"""How many clients and endpoints of a frontend are shown."""


class Order(StrEnum):
    """What the frontends are sorted by."""

    NEW = "new"
    OPEN = "open"
    REFUSED = "refused"
    DROPPED = "dropped"


class Client(msgspec.Struct, frozen=True, rename="camel"):
    """A client of a frontend.

    Attributes:
        address: its address.
        connections: the new connections from it during the sample, at most.
        error: by how much that may be too high; 0 if it is exact.
    """

    address: str
    connections: int
    error: int = 0


class Endpoint(msgspec.Struct, frozen=True, rename="camel"):
    """An endpoint that new connections of a frontend went to.

    Attributes:
        address: its address.
        port: its port.
        connections: the new connections to it during the sample, at most.
        error: by how much that may be too high; 0 if it is exact.
    """

    address: str
    port: int
    connections: int
    error: int = 0


class TopFrontend(msgspec.Struct, frozen=True, rename="camel"):
    """A frontend with its connections.

    Attributes:
        service: ``namespace/name`` of the Service.
        port_name: the name of the Service port; may be empty.
        protocol: the protocol.
        family: the IP family.
        type: what kind of frontend it is.
        address: its address; empty for node ports.
        port: its port.
        new_per_second: new connections per second.
        open: open connections.
        refused_per_second: refused attempts per second; ``None`` if they are not counted.
        dropped_per_second: dropped attempts per second; ``None`` if they are not counted.
        clients: the clients with the most new connections.
        endpoints: the endpoints with the most new connections.
        reason: why attempts are refused or dropped, or would be; empty if all are served.
    """

    service: str
    port_name: str
    protocol: Protocol
    family: IPFamily
    type: FrontendKind
    address: str
    port: int
    new_per_second: float
    open: int
    refused_per_second: float | None = None
    dropped_per_second: float | None = None
    clients: tuple[Client, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    reason: str = ""

    @property
    def destination(self) -> str:
        """The frontend as text: ``10.96.0.10:80/tcp`` or ``node port 30080/tcp``."""
        if not self.address:
            return f"node port {self.port}/{self.protocol.keyword}"
        shown = f"[{self.address}]" if ":" in self.address else self.address
        return f"{shown}:{self.port}/{self.protocol.keyword}"


class Top(msgspec.Struct, frozen=True, rename="camel", tag_field="kind", tag="Top"):
    """What happened during a sample.

    Attributes:
        api_version: the version of the document.
        node: the node.
        mode: the proxy mode.
        time: when the sample ended, in seconds since 1970.
        seconds: how long it took.
        counted_refusals: whether refused and dropped attempts are counted.
        events_lost: how many new connections are missing in the clients and endpoints (and in
            ``newPerSecond`` unless refusals are counted), because they came too fast.
        frontends: those with connections or attempts.
        left_out: how many more such frontends there are than ``frontends`` has.
    """

    api_version: str = "svcproxy.io/v1"
    node: str = ""
    mode: str = ""
    time: float = 0.0
    seconds: float = 0.0
    counted_refusals: bool = False
    events_lost: int = 0
    frontends: tuple[TopFrontend, ...] = ()
    left_out: int = 0


def top_frontends(
    ports: Iterable[tuple[IPFamily, Mapping[ServicePortName, ServicePort]]],
    seconds: float,
    opened: Mapping[FrontendKey, int],
    activity: Callable[[FrontendKey], Activity],
    counted: Mapping[FrontendKey, Rates] | None,
) -> Iterator[TopFrontend]:
    """Yield the frontends that have connections, or attempts that were not served.

    Args:
        ports: the Service ports of each family.
        seconds: how long the sample took.
        opened: the open connections.
        activity: returns the new connections of a frontend that events reported.
        counted: the rates of the kernel's counters; ``None`` if there are no counters.
    """
    for family, of_family in ports:
        for name, port in of_family.items():
            for frontend in port.frontends:
                key = FrontendKey(family, frontend.address, frontend.port, name.protocol)
                rates = None if counted is None else counted.get(key, Rates())
                seen, now_open = activity(key), opened.get(key, 0)
                if seen.count or now_open or (rates is not None and any(rates)):
                    yield _row(key, (name, port, frontend), seconds, now_open, seen, rates)


def _row(  # noqa: PLR0917 - private, each is a column
    key: FrontendKey,
    of: tuple[ServicePortName, ServicePort, Frontend],
    seconds: float,
    now_open: int,
    seen: Activity,
    rates: Rates | None,
) -> TopFrontend:
    name, port, frontend = of
    new = rates.new if rates is not None and rates.new is not None else seen.count / seconds
    return TopFrontend(
        service=str(name.service),
        port_name=name.port,
        protocol=name.protocol,
        family=key.family,
        type=frontend.kind,
        address=frontend.address,
        port=frontend.port,
        new_per_second=round(new, 2),
        open=now_open,
        refused_per_second=None if rates is None else round(rates.refused, 2),
        dropped_per_second=None if rates is None else round(rates.dropped, 2),
        clients=tuple(Client(text(c.item), c.times, c.error) for c in seen.clients.most(_CLIENTS)),
        endpoints=tuple(
            Endpoint(text(e.item[0]), e.item[1], e.times, e.error)
            for e in seen.endpoints.most(_CLIENTS)
        ),
        reason=reason(port, frontend),
    )


def reason(port: ServicePort, frontend: Frontend) -> str:
    """Say why a frontend refuses or drops connections; empty if it serves everybody."""
    if frontend.verdict is Verdict.REJECT:
        return "refused: no endpoint is ready"
    if frontend.verdict is Verdict.DROP:
        return "dropped: policy Local, and no endpoint on this node is ready"
    if port.source_ranges and frontend.is_load_balancer:
        return "dropped outside of " + ", ".join(port.source_ranges)
    return ""


def ordered(frontends: Iterable[TopFrontend], order: Order) -> list[TopFrontend]:
    """Sort frontends, those with most first; equal ones by new connections and by name."""

    def key(row: TopFrontend) -> tuple[float, float, str, str]:
        by = {
            Order.NEW: row.new_per_second,
            Order.OPEN: float(row.open),
            Order.REFUSED: row.refused_per_second or 0.0,
            Order.DROPPED: row.dropped_per_second or 0.0,
        }[order]
        return -by, -row.new_per_second, row.service, row.destination

    return sorted(frontends, key=key)
