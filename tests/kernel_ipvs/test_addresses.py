"""Addresses of virtual servers and of the node in the kernel."""

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from svcproxy.backends.ipvs.core.chains_and_sets import DUMMY_INTERFACE
from svcproxy.model.names import IPFamily
from svcproxy.netlink.address_watcher import AddressWatcher
from svcproxy.netlink.core.kernel_objects import Addresses
from svcproxy.netlink.core.operations import BindAddresses, UnbindAddresses
from svcproxy.netlink.rtnetlink import RouteSocket
from testbed import netns
from testbed.netns import NetNS

Address = Callable[[int], str]
OTHER = "eth0"


@pytest.fixture
def links(namespace: NetNS, family: IPFamily) -> Iterator[RouteSocket]:
    opened = namespace.call(lambda: RouteSocket(family, DUMMY_INTERFACE))
    yield opened
    opened.close()


@pytest.fixture
def host(namespace: NetNS) -> Iterator[NetNS]:
    """The namespace with a second interface that is up."""
    netns.ip_batch([f"link add {OTHER} type dummy", f"link set {OTHER} up"], namespace.name)
    yield namespace
    netns.ip_batch([f"link del {OTHER}"], namespace.name)


def test_the_interface_is_created_once_and_stays_down(namespace: NetNS, links: RouteSocket) -> None:
    assert links.read() == Addresses(frozenset(), (), ())
    shown = namespace.run("ip", "-d", "-o", "link", "show", DUMMY_INTERFACE).stdout
    assert " dummy " in shown
    assert "state DOWN" in shown
    links.read()
    assert namespace.run("ip", "-d", "-o", "link", "show", DUMMY_INTERFACE).stdout == shown
    assert links.remove()
    assert not links.remove()
    assert DUMMY_INTERFACE not in namespace.run("ip", "link").stdout
    links.read()
    assert DUMMY_INTERFACE in namespace.run("ip", "link").stdout


def test_addresses_are_bound_and_unbound(
    namespace: NetNS, links: RouteSocket, address: Address, family: IPFamily
) -> None:
    links.read()
    wanted = tuple(address(n) for n in range(1, 6))
    for _ in range(2):
        assert links.execute([BindAddresses(wanted)]) == []
        assert links.read().bound == set(wanted)
    option = "-6" if family is IPFamily.IPV6 else "-4"
    table = namespace.run("ip", option, "route", "show", "table", "local").stdout
    assert all(f"local {one} dev {DUMMY_INTERFACE}" in table for one in wanted)
    assert "tentative" not in namespace.run("ip", "addr").stdout
    for _ in range(2):
        assert links.execute([UnbindAddresses(wanted[1:])]) == []
        assert links.read() == Addresses(frozenset(wanted[:1]), (), ())


def test_addresses_are_counted(host: NetNS, links: RouteSocket, address: Address) -> None:
    """All interfaces count; IPv4 addresses are not listed for it."""
    links.read()
    before = host.call(links.count)
    assert before == host.run("ip", "-o", "addr").stdout.count(f"{_word(links.family)} ")
    links.execute([BindAddresses(tuple(address(n) for n in range(1, 301)))])
    assert host.call(links.count) == before + 300
    netns.ip_batch([f"addr add {address(999)} dev {OTHER}"], host.name)
    assert host.call(links.count) == before + 301
    links.execute([UnbindAddresses((address(1),))])
    assert host.call(links.count) == before + 300


def _word(family: IPFamily) -> str:
    return "inet" if family is IPFamily.IPV4 else "inet6"


def test_an_address_is_local_while_the_interface_is_down(
    namespace: NetNS, links: RouteSocket, address: Address
) -> None:
    """Packets to the address are delivered to the node itself."""
    links.read()
    links.execute([BindAddresses((address(9),))])

    def refused() -> int:
        kind = socket.AF_INET6 if ":" in address(9) else socket.AF_INET
        with socket.socket(kind) as made:
            made.settimeout(5)
            return made.connect_ex((address(9), 80))

    assert namespace.call(refused) == errno.ECONNREFUSED


def test_failures_name_their_addresses(
    namespace: NetNS, links: RouteSocket, address: Address
) -> None:
    links.read()
    namespace.run("ip", "link", "del", DUMMY_INTERFACE)
    wanted = (address(1), address(2))
    failures = links.execute([BindAddresses(wanted)])
    assert [f.operation for f in failures] == [BindAddresses((one,)) for one in wanted]
    assert {f.number for f in failures} == {errno.ENODEV}
    links.read()
    assert links.execute([BindAddresses(wanted)]) == []


def test_the_nodes_own_addresses(alone: NetNS, family: IPFamily) -> None:
    netns.ip_batch(
        [
            f"link add {OTHER} type dummy",
            f"link set {OTHER} up",
            f"addr add 192.0.2.5/24 dev {OTHER}",
            f"addr add 192.0.2.1/24 dev {OTHER}",
            f"addr add 169.254.9.9/16 dev {OTHER} scope link",
            f"addr add 198.51.100.1 peer 203.0.113.0/24 dev {OTHER}",
            "addr add 192.0.2.77/32 dev lo",
            f"addr add 2001:db8::5/64 dev {OTHER} nodad",
            f"addr add 2001:db8::1/64 dev {OTHER} nodad",
            f"addr add fe80::9/64 dev {OTHER} nodad",
            f"link add {DUMMY_INTERFACE} type dummy",
            f"addr add 192.0.2.1/32 dev {DUMMY_INTERFACE}",
            f"addr add 192.0.2.200/32 dev {DUMMY_INTERFACE}",
            f"addr add 2001:db8::200/128 dev {DUMMY_INTERFACE}",
        ],
        alone.name,
    )
    links = alone.call(lambda: RouteSocket(family, DUMMY_INTERFACE))
    seen = links.read()
    links.close()
    if family is IPFamily.IPV6:
        assert seen == Addresses(
            frozenset({"2001:db8::200"}), ("2001:db8::1", "2001:db8::5"), ("2001:db8::/64",)
        )
        return
    own = ("169.254.9.9", "192.0.2.1", "192.0.2.5", "192.0.2.77", "198.51.100.1")
    networks = ("169.254.0.0/16", "192.0.2.0/24", "192.0.2.77/32", "203.0.113.0/24")
    assert seen == Addresses(frozenset({"192.0.2.1", "192.0.2.200"}), own, networks)


@pytest.fixture
def reported(host: NetNS) -> Iterator[threading.Event]:
    """Set when the watcher has reported a change."""
    event = threading.Event()
    watcher = host.call(lambda: AddressWatcher(DUMMY_INTERFACE, event.set))
    watcher.start()
    yield event
    watcher.stop()


def test_changes_of_the_nodes_addresses_are_reported(
    host: NetNS, reported: threading.Event, address: Address, family: IPFamily
) -> None:
    for verb in ("add", "del"):
        netns.ip_batch([f"addr {verb} {address(1)}/24 dev {OTHER}"], host.name)
        assert reported.wait(10)
        reported.clear()


def test_changes_of_virtual_servers_addresses_are_not_reported(
    host: NetNS, reported: threading.Event, links: RouteSocket, address: Address
) -> None:
    many = tuple(address(n) for n in range(1, 1001))
    for _ in range(2):
        links.read()
        assert links.execute([BindAddresses(many)]) == []
        assert links.execute([UnbindAddresses(many[10:])]) == []
        assert links.remove()
    time.sleep(0.2)  # the watcher must stay silent for this time
    assert not reported.is_set()
    # Events arrive in order, so an earlier one would have been reported by now.
    netns.ip_batch([f"addr add {address(5000)}/24 dev {OTHER}"], host.name)
    assert reported.wait(10)


def test_thousands_of_addresses(links: RouteSocket, address: Address) -> None:
    links.read()
    many = tuple(address(n) for n in range(1, 3001))
    sent = links.sent
    assert links.execute([BindAddresses(many)]) == []
    assert links.sent - sent == len(many)
    sent = links.sent
    assert links.read().bound == set(many)
    assert links.sent - sent == 2, "one list of links, one of addresses"
