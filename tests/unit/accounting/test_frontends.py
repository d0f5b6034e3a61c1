"""Which frontend a connection belongs to."""

from ipaddress import ip_address

import pytest

from svcproxy.accounting.core.frontends import FrontendIndex, FrontendKey
from svcproxy.backends.settings import Settings
from svcproxy.model.names import IPFamily, Protocol

V4, V6 = IPFamily.IPV4, IPFamily.IPV6
TCP, UDP = Protocol.TCP, Protocol.UDP
WEB = FrontendKey(V4, "10.96.0.10", 80, TCP)
NODE_PORT = FrontendKey(V4, "", 30080, TCP)
NODE = {"192.168.50.1", "127.0.0.1", "10.96.0.10", "::1", "fd00::1"}


def index(*keys: FrontendKey, **settings: object) -> FrontendIndex:
    family = keys[0].family
    known = Settings(family, **settings)  # type: ignore[arg-type]
    return FrontendIndex(keys, known, lambda address: str(ip_address(address)) in NODE)


def find(where: FrontendIndex, address: str, port: int, number: int = 6) -> FrontendKey | None:
    return where.find(number, ip_address(address).packed, port)


def test_an_address_is_found_by_protocol_address_and_port() -> None:
    where = index(WEB, NODE_PORT)
    assert find(where, "10.96.0.10", 80) == WEB
    assert find(where, "10.96.0.10", 80, 17) is None
    assert find(where, "10.96.0.10", 81) is None
    assert find(where, "10.96.0.11", 80) is None


def test_a_node_port_is_found_at_addresses_of_the_node() -> None:
    where = index(WEB, NODE_PORT)
    assert find(where, "192.168.50.1", 30080) == NODE_PORT
    assert find(where, "192.168.50.2", 30080) is None
    assert find(where, "192.168.50.1", 30081) is None


@pytest.mark.parametrize("served", [True, False])
def test_a_node_port_on_localhost_follows_the_flag(*, served: bool) -> None:
    where = index(NODE_PORT, localhost_node_ports=served)
    assert find(where, "127.0.0.1", 30080) == (NODE_PORT if served else None)


def test_ipv6_serves_no_node_ports_on_localhost() -> None:
    key = FrontendKey(V6, "", 30080, TCP)
    where = index(key)
    assert find(where, "::1", 30080) is None
    assert find(where, "fd00::1", 30080) == key


def test_node_ports_are_served_in_ranges_only() -> None:
    where = index(NODE_PORT, node_port_ranges=("192.168.0.0/16",))
    assert find(where, "192.168.50.1", 30080) == NODE_PORT
    assert find(where, "127.0.0.1", 30080) is None


def test_the_node_is_asked_once_for_each_address() -> None:
    asked: list[bytes] = []

    def is_local(address: bytes) -> bool:
        asked.append(address)
        return True

    where = FrontendIndex([NODE_PORT], Settings(V4), is_local)
    for _ in range(3):
        assert find(where, "192.168.50.1", 30080) == NODE_PORT
    assert len(asked) == 1
    for number in range(10_000):
        find(where, f"10.1.{number // 256}.{number % 256}", 30080)
    assert len(where._served) <= 4096
