"""Which refusals concern single Service ports, and how they are described."""

import errno

import pytest

from svcproxy.backends.ipvs.core.difference import Plan, SharedObjects
from svcproxy.backends.ipvs.core.port_state import PortState
from svcproxy.backends.ipvs.core.refusals import Refusals, attributed, described
from svcproxy.backends.ipvs.core.settings import IpvsSettings
from svcproxy.model.names import IPFamily, Protocol, ServicePortName
from svcproxy.netlink.core.kernel_objects import (
    RealServerKey,
    SetEntry,
    SetKind,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import (
    AddEntries,
    AddRealServer,
    AddVirtualServer,
    BindAddresses,
    DeleteRealServer,
    DeleteVirtualServer,
    Failure,
    RemoveEntries,
    SetRealServer,
    UnbindAddresses,
)

KEY = VirtualServerKey(Protocol.TCP, "10.96.0.1", 80)
REAL = RealServerKey("239.1.1.1", 8080)
KIND = SetKind("hash:ip,port")
ENTRY = SetEntry("10.96.0.1", Protocol.TCP, 80)
ADD_VIRTUAL = AddVirtualServer(KEY, VirtualServer("rr"))


@pytest.mark.parametrize(
    "failure",
    [
        Failure(AddRealServer(KEY, REAL, 1), errno.EINVAL, ""),
        Failure(ADD_VIRTUAL, errno.EINVAL, ""),
        Failure(AddEntries("S", KIND, (ENTRY,)), 4352, ""),
        Failure(AddEntries("S", KIND, (ENTRY,)), 4353, ""),
        Failure(BindAddresses(("ff05::1",)), errno.EADDRNOTAVAIL, ""),
    ],
)
def test_refusals_of_single_service_ports(failure: Failure) -> None:
    reasons, rest = Refusals().record([failure], {})
    assert len(reasons) == 1
    assert not rest


@pytest.mark.parametrize(
    "failure",
    [
        Failure(
            AddRealServer(KEY, REAL, 1), errno.ESRCH, "another program deleted the virtual server"
        ),
        Failure(AddRealServer(KEY, REAL, 1), errno.ENOMEM, ""),
        Failure(SetRealServer(KEY, REAL, 0), errno.ENOENT, ""),
        Failure(ADD_VIRTUAL, errno.EPERM, ""),
        Failure(AddEntries("S", KIND, (ENTRY,)), errno.ENOENT, "another program deleted the set"),
        Failure(AddEntries("S", KIND, (ENTRY,)), 4106, "it is of the other family"),
        Failure(BindAddresses(("10.0.0.1",)), errno.ENODEV, ""),
        Failure(DeleteVirtualServer(KEY), errno.EINVAL, ""),
        Failure(DeleteRealServer(KEY, REAL), errno.EINVAL, ""),
        Failure(RemoveEntries("S", KIND, (ENTRY,)), errno.EINVAL, ""),
        Failure(UnbindAddresses(("10.0.0.1",)), errno.EINVAL, ""),
    ],
)
def test_other_failures_need_a_resync(failure: Failure) -> None:
    refused = Refusals()
    reasons, rest = refused.record([failure], {})
    assert not reasons
    assert rest == [failure]
    assert not refused


def test_real_servers_of_a_refused_virtual_server_add_no_reason() -> None:
    real = Failure(AddRealServer(KEY, REAL, 1), errno.ESRCH, "there is no such virtual server")
    virtual = Failure(ADD_VIRTUAL, errno.EINVAL, "Invalid argument")
    refused = Refusals()
    reasons, rest = refused.record([real, virtual], {})
    assert reasons == {KEY: ["virtual server 10.96.0.1:80/tcp: Invalid argument"]}
    assert not rest
    assert refused.missing(KEY) == {REAL}


def test_entries_of_a_substitute_are_missing_in_the_replaced_set() -> None:
    refused = Refusals()
    refused.record([Failure(AddEntries("NEW", KIND, (ENTRY,)), 4353, "")], {"NEW": ["A", "B"]})
    assert refused.entries == {("A", ENTRY), ("B", ENTRY)}


def test_reasons_are_sorted_and_limited() -> None:
    failures = [
        Failure(AddRealServer(KEY, RealServerKey(f"239.0.0.{n}", 80), 1), errno.EINVAL, "Invalid")
        for n in range(9, 0, -1)
    ]
    reasons, _ = Refusals().record(failures, {})
    name = ServicePortName("ns", "s", "", Protocol.TCP)
    state = PortState(
        {KEY: (VirtualServer("rr"), frozenset())}, frozenset(), frozenset(), {}, frozenset()
    )
    found, left = attributed(reasons, [(name, state)])
    assert not left
    assert found[name].endswith("; and 6 more")
    assert found[name].startswith(
        "real server 239.0.0.1:80 of virtual server 10.96.0.1:80/tcp: Invalid; real server 239.0.0.2"
    )


def test_every_operation_can_be_described() -> None:
    for operation in (
        AddEntries("S", KIND, (ENTRY,)),
        BindAddresses(("fd00::1",)),
        DeleteVirtualServer(KEY),
        UnbindAddresses(("10.0.0.1",)),
    ):
        assert described(Failure(operation, 1, "why")).endswith(": why")
    v6 = VirtualServerKey(Protocol.UDP, "fd00::1", 53)
    text = described(Failure(AddVirtualServer(v6, VirtualServer("rr")), 1, "why"))
    assert text == "virtual server [fd00::1]:53/udp: why"


def test_removing_a_drained_server_retries_nothing() -> None:
    """Another Service port may still need an object that was refused."""
    address = "10.96.0.1"
    needed = PortState({}, frozenset((address,)), frozenset(), {}, frozenset())
    settings, shared, refusals = IpvsSettings(IPFamily.IPV4), SharedObjects(), Refusals()
    plan = Plan()
    assert shared.change(plan, [], [needed, needed], refusals, settings)
    assert plan.bind == [address]
    refusals.record([Failure(BindAddresses((address,)), errno.EINVAL, "")], {})
    removal = Plan()
    shared.change(removal, [needed], [], refusals, settings)
    assert not removal
    assert refusals.addresses == {address}
    shared.change(removal, [needed], [], refusals, settings)
    assert not removal
    assert not refusals
    assert shared.counts(refusals)["addresses"] == 0
