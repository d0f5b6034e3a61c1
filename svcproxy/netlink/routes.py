"""Reads the node's routes, interfaces and addresses; changes nothing."""

from functools import cached_property
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from svcproxy.model.names import IPFamily
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core import rtnetlink as messages
from svcproxy.netlink.core.messages import NetlinkRequest
from svcproxy.netlink.core.routes import Route, decode_route, route_request
from svcproxy.netlink.errors import RequestRefusedError, doing
from svcproxy.netlink.socket import ROUTE


class RouteReader:
    """Reads the routes of one family in the network namespace of the calling thread.

    Only the thread that creates it may use it.

    Args:
        family: the IP family.

    Raises:
        NetlinkError: the kernel has no route netlink.
    """

    def __init__(self, family: IPFamily) -> None:
        self.family = family
        with doing("open a route netlink socket"):
            self._client = NetlinkClient(ROUTE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def route(self, address: str) -> Route | None:
        """Return the route to an address; ``None`` if there is none.

        Raises:
            NetlinkError: the kernel did not answer, or its answer is malformed.
        """
        request = route_request(self.family, ip_address(address).packed)
        with doing(f"look up the route to {address}"):
            try:
                return decode_route(self._client.get(request))
            except RequestRefusedError:
                return None  # ENETUNREACH, EHOSTUNREACH, EACCES or EINVAL, as the route says

    def interface(self, index: int) -> str:
        """Return the name of an interface; empty if there is none with this index."""
        return self._links.get(index, "")

    def addresses(self, without: str = "") -> frozenset[str]:
        """Return the addresses of all interfaces but ``without``.

        Raises:
            NetlinkError: the kernel did not answer.
        """
        found = messages.decode_addresses(
            self._dump("list addresses", messages.addresses_request(self.family)), self.family
        )
        left_out = {index for index, name in self._links.items() if name == without}
        return frozenset(each.address for each in found if each.link not in left_out)

    @cached_property
    def _links(self) -> dict[int, str]:
        links = messages.decode_links(self._dump("list links", messages.links_request()))
        return {link.ifindex: link.name for link in links}

    def _dump(self, action: str, request: NetlinkRequest) -> list[bytes]:
        with doing(action):
            return self._client.dump(request)
