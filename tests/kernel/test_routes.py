"""Reading routes and addresses of a namespace."""

import pytest

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core.routes import Route
from svcproxy.netlink.routes import RouteReader
from testbed import netns
from testbed.netns import NetNS

pytestmark = pytest.mark.kernel


def test_routes_interfaces_and_addresses(space: NetNS) -> None:
    netns.ip_batch(
        [
            "link add d0 type veth peer name d1",
            "link set d1 up",
            "link set d0 up",
            "addr add 192.0.2.1/24 dev d0",
            "route add 198.51.100.0/24 via 192.0.2.9 dev d0",
            "route add blackhole 203.0.113.0/25",
        ],
        space.name,
    )

    def read() -> tuple[list[Route | None], str, frozenset[str], frozenset[str]]:
        with RouteReader(IPFamily.IPV4) as reader:
            addresses = ("192.0.2.1", "192.0.2.7", "198.51.100.7", "203.0.113.7", "203.0.113.200")
            routes = [reader.route(address) for address in addresses]
            link = routes[1].link if routes[1] else 0
            return routes, reader.interface(link), reader.addresses(), reader.addresses("d0")

    routes, interface, addresses, without = space.call(read)
    own, direct, via, blackhole, none = routes
    assert own is not None
    assert own.local
    assert direct is not None
    assert (direct.gateway, direct.source, interface) == ("", "192.0.2.1", "d0")
    assert via is not None
    assert (via.gateway, via.usable) == ("192.0.2.9", True)
    assert blackhole is None
    assert none is None
    assert "192.0.2.1" in addresses
    assert "192.0.2.1" not in without
