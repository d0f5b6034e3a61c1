"""What the node's kernel knows besides rules: addresses, routes, and connections of a client."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Protocol as Interface

import msgspec

from svcproxy import limits
from svcproxy.conntrack.table import ConntrackError, Table
from svcproxy.explain.core.packet import Host, target_text
from svcproxy.explain.core.story_types import Question
from svcproxy.explain.core.trace_answer import OpenFlow
from svcproxy.explain.core.trace_document import UNREACHABLE
from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.conntrack import Destination, Flow, original_source
from svcproxy.netlink.core.families import PROTOCOL_NUMBERS
from svcproxy.netlink.core.routes import Route
from svcproxy.netlink.errors import MalformedError, NetlinkError
from svcproxy.netlink.routes import RouteReader

_DUMMY = "kube-ipvs0"


class Surroundings(Interface):
    """Where a packet is traced."""

    def host(self) -> Host:
        """Return the node's own addresses."""

    def interface_to(self, address: str) -> str:
        """Return the interface on which packets of an address arrive; empty if it is unknown."""

    def source_to(self, address: str) -> str:
        """Return the source address of the node's own packets to an address; empty if unknown."""

    def routes(self, addresses: Iterable[str]) -> dict[str, str]:
        """Return how packets get to each address, in words."""

    def flows(self, question: Question) -> tuple[OpenFlow, ...]:
        """Return the client's connections to the packet's destination."""


class UnknownSurroundings(msgspec.Struct, frozen=True):
    """A node whose kernel cannot be read: objects and flags are all that is known.

    Attributes:
        addresses: the addresses of the node, as far as they are known.
        node_address: the address from which the node sends; empty if unknown.
    """

    addresses: tuple[str, ...] = ()
    node_address: str = ""

    def host(self) -> Host:
        """See ``Surroundings``."""
        return Host.of(*self.addresses)

    def interface_to(self, address: str) -> str:  # noqa: ARG002
        """See ``Surroundings``."""
        return ""

    def source_to(self, address: str) -> str:
        """See ``Surroundings``."""
        if ip_address(address).is_loopback or address in self.addresses:
            return address
        return self.node_address

    def routes(self, addresses: Iterable[str]) -> dict[str, str]:  # noqa: ARG002
        """See ``Surroundings``."""
        return {}

    def flows(self, question: Question) -> tuple[OpenFlow, ...]:  # noqa: ARG002
        """See ``Surroundings``."""
        return ()


class KernelSurroundings:
    """The node on which this process runs.

    Args:
        family: the IP family.
        reader: reads its routes.
    """

    def __init__(self, family: IPFamily, reader: RouteReader) -> None:
        self._family = family
        self._reader = reader

    def host(self) -> Host:
        """See ``Surroundings``; addresses that IPVS mode assigns do not count."""
        return Host.of(*self._reader.addresses(without=_DUMMY))

    def interface_to(self, address: str) -> str:
        """See ``Surroundings``: the interface to which the node would send replies."""
        route = self._reader.route(address)
        return self._reader.interface(route.link) if route and not route.local else ""

    def source_to(self, address: str) -> str:
        """See ``Surroundings``."""
        route = self._reader.route(address)
        return route.source if route else ""

    def routes(self, addresses: Iterable[str]) -> dict[str, str]:
        """See ``Surroundings``."""
        found = {}
        for address in dict.fromkeys(addresses):
            try:
                found[address] = self._text(self._reader.route(address))
            except NetlinkError as error:
                found[address] = f"unknown: {error}"
        return found

    def _text(self, route: Route | None) -> str:
        if route is None or not route.usable:
            return UNREACHABLE
        if route.local:
            return "this node itself"
        device = f"dev {self._reader.interface(route.link) or route.link}"
        return f"via {route.gateway} {device}" if route.gateway else device

    def flows(self, question: Question) -> tuple[OpenFlow, ...]:
        """See ``Surroundings``; the first 1,000, and none if they cannot be read."""
        source = ip_address(question.source).packed
        number = PROTOCOL_NUMBERS[question.protocol]
        query = Destination(number, ip_address(question.destination).packed, question.port)
        found: list[OpenFlow] = []

        def take(flow: Flow) -> bool:
            if (flow.protocol, flow.address, flow.port) == tuple(query):
                client = original_source(flow)
                if client.address == source and len(found) < limits.TRACE_CONNECTIONS:
                    found.append(OpenFlow(client.port, _endpoint(flow)))
            return False

        try:
            Table(self._family).find(query, take)
        except (ConntrackError, MalformedError):
            return ()
        return tuple(sorted(set(found), key=lambda flow: flow.source_port))


def _endpoint(flow: Flow) -> str:
    if (flow.source.address, flow.source.port) == (flow.address, flow.port):
        return ""
    return target_text(flow.source.address, flow.source.port)
