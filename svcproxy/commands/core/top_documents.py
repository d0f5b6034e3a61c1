"""The document of ``svcproxy top``: Services by connections, refusals and drops."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from svcproxy.accounting.core.activity import Activity, Frequent
from svcproxy.accounting.core.frontends import FrontendKey
from svcproxy.accounting.core.readings import Rates
from svcproxy.explain.core.documents import Document, Part
from svcproxy.explain.core.service_list import FRONTEND_TYPES
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.model.serviceport import Frontend, ServicePort, Verdict
from svcproxy.netlink.core.addresses import text
from svcproxy.state.desired import DesiredState
from svcproxy.state.verdicts import (
    KnownEndpoints,
    frontend_text,
    known_endpoints,
    refusal,
)

_CLIENTS = 3
"""How many clients and endpoints of a frontend are shown."""


class Order(StrEnum):
    """What the frontends are sorted by."""

    NEW = "new"
    OPEN = "open"
    REFUSED = "refused"
    DROPPED = "dropped"


class TopClient(Part, frozen=True, kw_only=True):
    """A client of a frontend.

    Attributes:
        address: its address.
        connections: the new connections from it during the sample, at most.
        error: by how much that may be too high; 0 if it is exact.
    """

    address: str
    connections: int
    error: int = 0


class TopEndpoint(Part, frozen=True, kw_only=True):
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


class TopFrontend(Part, frozen=True, kw_only=True):
    """A frontend with its connections.

    Attributes:
        service: ``namespace/name`` of the Service.
        port_name: the name of the Service port; may be empty.
        protocol: the protocol.
        family: the IP family.
        type: ``clusterIP``, ``externalIP``, ``loadBalancerIP`` or ``nodePort``.
        address: its address; empty for node ports.
        port: its port.
        new_per_second: new connections per second.
        open: open connections.
        refused_per_second: refused attempts per second; ``None`` if they are not counted.
        dropped_per_second: dropped attempts per second; ``None`` if they are not counted.
        clients: the clients with the most new connections.
        endpoints: the endpoints with the most new connections.
        refused_clients: the clients with the most refused or dropped packets among those that the
            kernel logged, which are at most some 10 per second of all frontends.
        reason: why attempts are refused or dropped, or would be; empty if all are served.
    """

    service: str
    port_name: str
    protocol: Protocol
    family: IPFamily
    type: str
    address: str
    port: int
    new_per_second: float
    open: int
    refused_per_second: float | None = None
    dropped_per_second: float | None = None
    clients: tuple[TopClient, ...] = ()
    endpoints: tuple[TopEndpoint, ...] = ()
    refused_clients: tuple[TopClient, ...] = ()
    reason: str = ""

    @property
    def destination(self) -> str:
        """The frontend as text: ``10.96.0.10:80/tcp`` or ``node port 30080/tcp``."""
        return frontend_text(self.address, self.port, self.protocol)


class Top(Document, frozen=True, kw_only=True):
    """What happened during a sample.

    Attributes:
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

    node: str
    mode: str
    time: float
    seconds: float
    counted_refusals: bool
    events_lost: int = 0
    frontends: tuple[TopFrontend, ...] = ()
    left_out: int = 0


def top_frontends(  # noqa: PLR0917 - the parts of a sample
    states: Mapping[IPFamily, DesiredState],
    seconds: float,
    opened: Mapping[FrontendKey, int],
    activity: Callable[[FrontendKey], Activity],
    counted: Mapping[FrontendKey, Rates] | None,
    refused: Mapping[FrontendKey, Frequent[bytes]],
) -> Iterator[TopFrontend]:
    """Yield the frontends that have connections, or attempts that were not served.

    Args:
        states: the desired state of each family.
        seconds: how long the sample took.
        opened: the open connections.
        activity: returns the new connections of a frontend that events reported.
        counted: the rates of the kernel's counters; ``None`` if there are no counters.
        refused: the packed addresses of clients in logged packets.
    """
    for family, state in states.items():
        for port in state.ports.values():
            for frontend in port.frontends:
                key = FrontendKey(family, frontend.address, frontend.port, port.name.protocol)
                rates = None if counted is None else counted.get(key, Rates())
                seen, now_open = activity(key), opened.get(key, 0)
                if seen.count or now_open or (rates is not None and any(rates)):
                    turned_away = refused.get(key) or Frequent()
                    why = reason(state, port, frontend)
                    about = _Seen(key, seconds, now_open, seen, rates, turned_away, why)
                    yield _row(port.name, frontend, about)


class _Seen(NamedTuple):
    """What was seen of a frontend; ``why`` is the reason of refusals."""

    key: FrontendKey
    seconds: float
    open: int
    activity: Activity
    rates: Rates | None
    refused: Frequent[bytes]
    why: str


def _row(name: ServicePortName, frontend: Frontend, seen: _Seen) -> TopFrontend:
    rates, activity = seen.rates, seen.activity
    new = activity.count / seen.seconds
    if rates is not None and rates.new is not None:
        new = rates.new
    return TopFrontend(
        service=str(name.service),
        port_name=name.port,
        protocol=name.protocol,
        family=seen.key.family,
        type=FRONTEND_TYPES[frontend.kind],
        address=frontend.address,
        port=frontend.port,
        new_per_second=round(new, 2),
        open=seen.open,
        refused_per_second=None if rates is None else round(rates.refused, 2),
        dropped_per_second=None if rates is None else round(rates.dropped, 2),
        clients=_clients(activity.clients),
        endpoints=tuple(
            TopEndpoint(address=text(e.item[0]), port=e.item[1], connections=e.times, error=e.error)
            for e in activity.endpoints.most(_CLIENTS)
        ),
        refused_clients=_clients(seen.refused),
        reason=seen.why,
    )


def _clients(counted: Frequent[bytes]) -> tuple[TopClient, ...]:
    return tuple(
        TopClient(address=text(client.item), connections=client.times, error=client.error)
        for client in counted.most(_CLIENTS)
    )


def reason(state: DesiredState, port: ServicePort, frontend: Frontend) -> str:
    """Say why a frontend refuses or drops connections; empty if it serves all clients.

    Args:
        state: the desired state that has the Service port.
        port: the Service port.
        frontend: the frontend.
    """
    if frontend.verdict is not Verdict.FORWARD:
        known = known_endpoints(state, state.services[port.name.service])
        found = known.get((port.name.port, port.name.protocol), KnownEndpoints())
        return refusal(frontend, found)
    if port.source_ranges and frontend.is_load_balancer:
        return "DROP: clients outside of " + ", ".join(port.source_ranges)
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
