"""The netlink socket, over rtnetlink, which needs no privileges."""

import errno
import os
import socket
from pathlib import Path

import pytest

import svcproxy
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core.messages import FLAG_DUMP, NetlinkRequest, encode
from svcproxy.netlink.errors import MalformedError, NetlinkError, TimedOutError
from svcproxy.netlink.socket import ROUTE, NetlinkSocket
from svcproxy.refusals import REFUSALS

LINKS = NetlinkRequest(18, 0, bytes(16))
"""RTM_GETLINK."""


def test_one_module_opens_netlink_sockets() -> None:
    modules = Path(svcproxy.__file__).parent.rglob("*.py")
    owners = [m.name for m in modules if "AF_NETLINK" in m.read_text()]
    assert owners == ["socket.py"]


def test_waiting_for_an_answer_times_out() -> None:
    with NetlinkSocket(ROUTE, timeout_seconds=0.01) as made:
        with pytest.raises(TimedOutError) as error:
            made.receive()
        assert error.value.errno == errno.ETIMEDOUT
        assert str(error.value) == os.strerror(errno.ETIMEDOUT)
        assert made.receive_queued() is None


def test_a_datagram_longer_than_the_buffer_is_malformed() -> None:
    for receive in (NetlinkSocket.receive, NetlinkSocket.receive_queued):
        with NetlinkSocket(ROUTE, datagram_bytes=16) as made:
            made.send(encode(LINKS, 1, FLAG_DUMP))
            with pytest.raises(MalformedError, match="datagram of"):
                receive(made)


def test_a_replaced_socket_keeps_its_port_id() -> None:
    with NetlinkSocket(ROUTE) as made:
        port_id = made.port_id
        before = REFUSALS.totals()["netlink", "malformed"]
        for error in (TimedOutError(), MalformedError("half a message")):
            made.send(encode(LINKS, 1, FLAG_DUMP))
            made.replace_after(error)
            assert made.port_id == port_id
            assert made.receive_queued() is None, "the answer to the old socket"
        assert REFUSALS.totals()["netlink", "malformed"] == before + 1


def test_a_socket_whose_port_id_is_taken_gets_another_one() -> None:
    with NetlinkSocket(ROUTE) as made:
        port_id = made.port_id
        made.replace_after(TimedOutError())
        made.close()
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, ROUTE) as other:
            other.bind((port_id, 0))
            made.replace_after(TimedOutError())
            assert made.port_id not in {0, port_id}


def test_a_socket_that_cannot_be_replaced_is_replaced_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def starved(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with NetlinkClient(ROUTE) as client:
        error = TimedOutError()
        with monkeypatch.context() as patched:
            patched.setattr("socket.socket", starved)
            client.socket.replace_after(error)
        assert str(error).endswith("cannot open another netlink socket: Too many open files")
        with pytest.raises(NetlinkError, match="Bad file descriptor"):
            client.dump(LINKS)
        assert client.dump(LINKS)


def test_an_unknown_protocol_is_an_error() -> None:
    with pytest.raises(NetlinkError) as error:
        NetlinkSocket(31)
    assert error.value.errno == errno.EPROTONOSUPPORT
