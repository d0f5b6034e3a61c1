"""rtnetlink: address requests, classifying addresses, and filtering events."""

from struct import pack

from hypothesis import given
from hypothesis import strategies as st

from svcproxy.model.names import IPFamily
from svcproxy.netlink.core import rtnetlink as messages
from svcproxy.netlink.core.attributes import attribute
from svcproxy.netlink.core.kernel_objects import Addresses
from svcproxy.netlink.core.messages import NetlinkMessage
from svcproxy.netlink.core.rtnetlink import AddressEventFilter, InterfaceAddress, Link
from tests.unit.netlink.addresses import addresses

DUMMY = "kube-ipvs0"


@given(st.sampled_from(IPFamily), st.data())
def test_address_requests_decode_to_a_host_address(family: IPFamily, data: st.DataObject) -> None:
    address = data.draw(addresses(family))
    for request in (
        messages.add_address_request(7, address),
        messages.delete_address_request(7, address),
    ):
        (found,) = messages.decode_addresses([request.body], family)
        assert found == InterfaceAddress(7, address, f"{address}/{family.bits}", link_local=False)


def test_addresses_are_classified_by_interface() -> None:
    links = [Link(1, "lo"), Link(2, "eth0"), Link(3, DUMMY)]
    bound = [
        InterfaceAddress(1, "127.0.0.1", "127.0.0.1/8", link_local=False),
        InterfaceAddress(1, "10.0.0.9", "10.0.0.9/32", link_local=False),
        InterfaceAddress(2, "10.0.0.10", "10.0.0.10/24", link_local=False),
        InterfaceAddress(2, "10.0.0.2", "10.0.0.2/24", link_local=False),
        InterfaceAddress(3, "10.96.0.1", "10.96.0.1/32", link_local=False),
        InterfaceAddress(3, "10.0.0.2", "10.0.0.2/32", link_local=False),
        InterfaceAddress(2, "fe80::1", "fe80::1/64", link_local=True),
        InterfaceAddress(1, "::1", "::1/128", link_local=False),
    ]
    for given_order in (bound, bound[::-1]):
        assert messages.classify_addresses(links, given_order, DUMMY) == Addresses(
            frozenset({"10.96.0.1", "10.0.0.2"}),
            ("10.0.0.2", "10.0.0.9", "10.0.0.10"),
            ("10.0.0.0/24", "10.0.0.9/32"),
        )


def link_event(kind: int, number: int, name: str) -> NetlinkMessage:
    body = pack("=BxHiII", 0, 0, number, 0, 0) + attribute(3, name.encode() + b"\0")
    return NetlinkMessage(kind, 0, 0, body)


def address_event(kind: int, number: int, family: int = 2, scope: int = 0) -> NetlinkMessage:
    return NetlinkMessage(kind, 0, 0, pack("=BBBBI", family, 32, 0, scope, number))


NEW_LINK, DELETE_LINK, NEW, DELETE = 16, 17, 20, 21


def test_events_of_the_dummy_interface_are_ignored() -> None:
    events = AddressEventFilter(DUMMY)
    events.set_interfaces([Link(1, "lo"), Link(3, DUMMY)])
    assert not events.is_relevant([address_event(NEW, 3), address_event(DELETE, 3)])
    assert events.is_relevant([address_event(NEW, 3), address_event(DELETE, 2)])
    assert events.is_relevant([address_event(NEW, 1)])
    assert not events.is_relevant([link_event(NEW_LINK, 2, "eth0")])


def test_the_dummy_interface_may_be_recreated() -> None:
    events = AddressEventFilter(DUMMY)
    events.set_interfaces([Link(3, DUMMY)])
    gone = [link_event(DELETE_LINK, 3, DUMMY), address_event(DELETE, 3)]
    assert not events.is_relevant(gone)
    assert not events.is_relevant([link_event(NEW_LINK, 9, DUMMY), address_event(NEW, 9)])
    assert events.is_relevant([link_event(NEW_LINK, 3, "eth1"), address_event(NEW, 3)])


def test_link_local_ipv6_addresses_are_ignored() -> None:
    """Every pod's interface has such an address."""
    events = AddressEventFilter(DUMMY)
    assert not events.is_relevant([address_event(NEW, 2, family=10, scope=253)])
    assert events.is_relevant([address_event(NEW, 2, family=10)])
    assert events.is_relevant([address_event(NEW, 2, family=2, scope=253)])
