"""Encoding and decoding messages of IPVS."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.model.names import IPFamily, Protocol
from svcproxy.netlink.core import ipvs as messages
from svcproxy.netlink.core.ipvs import Info, Timeouts
from svcproxy.netlink.core.kernel_objects import (
    Connections,
    RealServerKey,
    ServerFlag,
    VirtualServer,
    VirtualServerKey,
)
from svcproxy.netlink.core.operations import (
    AddRealServer,
    AddVirtualServer,
    DeleteRealServer,
    DeleteVirtualServer,
    SetRealServer,
    SetVirtualServer,
)
from tests.unit.netlink import kernel_dumps as dumps
from tests.unit.netlink.addresses import addresses, ports

KIND = 30
KEY = VirtualServerKey(Protocol.TCP, "10.96.0.1", 443)
REAL = RealServerKey("172.16.0.9", 6443)
SERVER = VirtualServer("wlc", ServerFlag.PERSISTENT, 60)


def test_virtual_servers_are_decoded_by_family() -> None:
    bodies = [dumps.VIRTUAL_IPV4, dumps.VIRTUAL_IPV6, dumps.VIRTUAL_MARK]
    ipv4, ipv6 = (dict(messages.decode_virtual_servers(bodies, f)) for f in IPFamily)
    assert ipv4 == {KEY: VirtualServer("rr", ServerFlag.PERSISTENT, 10800)}
    sctp = VirtualServerKey(Protocol.SCTP, "fd00:10::1", 53)
    assert ipv6 == {sctp: VirtualServer("mh", ServerFlag.SCHEDULER_2, 0)}


def test_other_answers_are_decoded() -> None:
    real = dict(messages.decode_real_servers([dumps.REAL_IPV4], IPFamily.IPV4))
    assert real == {REAL: (3, Connections(0, 0, 0))}
    assert messages.decode_timeouts(dumps.TIMEOUTS) == Timeouts(900, 120, 300)
    assert messages.decode_info(dumps.INFO) == Info("1.2.1", 4096)


@given(
    st.sampled_from(IPFamily),
    st.sampled_from(Protocol),
    ports,
    st.data(),
    st.integers(0, 1 << 20),
)
def test_requests_decode_to_their_operations(
    family: IPFamily, protocol: Protocol, port: int, data: st.DataObject, timeout: int
) -> None:
    key = VirtualServerKey(protocol, data.draw(addresses(family)), port)
    flags = data.draw(st.sampled_from([1, 1 | 8, 1 | 16, 1 | 8 | 16]))
    server = VirtualServer(data.draw(st.sampled_from(["rr", "lblcr"])), flags, timeout)
    for operation in (AddVirtualServer(key, server), SetVirtualServer(key, server)):
        body = messages.operation_request(KIND, operation).body
        assert dict(messages.decode_virtual_servers([body], family)) == {key: server}
        assert len(body) % 4 == 0


def test_each_operation_has_its_own_command() -> None:
    operations = (
        AddVirtualServer(KEY, SERVER),
        SetVirtualServer(KEY, SERVER),
        DeleteVirtualServer(KEY),
        AddRealServer(KEY, REAL, 1),
        SetRealServer(KEY, REAL, 1),
        DeleteRealServer(KEY, REAL),
    )
    bodies = [messages.operation_request(KIND, operation).body for operation in operations]
    assert len({body[0] for body in bodies}) == len(operations)
    assert (
        len({body[4:] for body in bodies}) == 4
    )  # an addition and a change have the same attributes


@pytest.mark.parametrize(
    ("operation", "number", "corrected"),
    [
        (AddVirtualServer(KEY, SERVER), errno.EEXIST, SetVirtualServer(KEY, SERVER)),
        (AddRealServer(KEY, REAL, 2), errno.EEXIST, SetRealServer(KEY, REAL, 2)),
        (AddRealServer(KEY, REAL, 2), errno.ESRCH, None),
        (SetVirtualServer(KEY, SERVER), errno.EEXIST, None),
    ],
)
def test_only_additions_are_corrected(
    operation: AddVirtualServer | AddRealServer | SetVirtualServer,
    number: int,
    corrected: object,
) -> None:
    assert messages.correction(operation, number) == corrected
