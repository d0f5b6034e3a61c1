"""Netlink when the kernel does not answer, drops answers, or sends malformed ones.

The kernel does none of this on demand, so the sockets under test are connected to another socket
of this process, which simulates the kernel.
"""

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from svcproxy.backends.base import BackendError, ExternalChange
from svcproxy.backends.nf_tables_watcher import LOST, NftablesWatcher
from svcproxy.backends.nftables.client import NftablesClient, RefusedError
from svcproxy.conntrack import table as conntrack_table
from svcproxy.conntrack.table import ConntrackError, Table
from svcproxy.model.names import IPFamily
from svcproxy.netlink.address_watcher import AddressWatcher
from svcproxy.netlink.client import NetlinkClient
from svcproxy.netlink.core.attributes import text
from svcproxy.netlink.core.conntrack import Destination
from svcproxy.netlink.core.messages import NetlinkRequest
from svcproxy.netlink.core.nf_tables.protocol import DELETE_SET, TABLE_OF
from svcproxy.netlink.core.nf_tables.transaction import Message
from svcproxy.netlink.errors import TimedOutError
from svcproxy.netlink.socket import NETFILTER, ROUTE, NetlinkSocket
from svcproxy.refusals import REFUSALS
from testbed import netns
from testbed.netns import NetNS
from testbed.waiting import eventually

pytestmark = pytest.mark.kernel

V4 = IPFamily.IPV4
LINKS = NetlinkRequest(18, 0, bytes(16))
"""RTM_GETLINK."""
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33

MALFORMED = {
    "a length beyond the end": struct.pack("=IHHII", 999, 16, 0, 1, 0) + bytes(8),
    "no length": bytes(20),
    "half a header": b"\x14\0\0",
    "longer than the buffer": bytes(300 << 10),
}


@pytest.fixture
def space() -> Iterator[NetNS]:
    made = NetNS(f"svp-faults-{id(object())}")
    netns.ip_batch([f"netns add {made.name}"])
    made.run("ip", "link", "set", "lo", "up")
    yield made
    netns.remove([made.name])


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svcproxy.netlink.socket.NETLINK_TIMEOUT_SECONDS", 0.05)


class Peer:
    """A socket that simulates the kernel; it sends the given answer, or none."""

    def __init__(self, protocol: int, answer: bytes | None = None) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self.socket.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, 4 << 20)
        self.socket.bind((0, 0))
        self.answer = answer
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def port(self) -> int:
        port: int = self.socket.getsockname()[0]
        return port

    def plays(self, made: NetlinkSocket) -> None:
        made._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 4 << 20)
        made._socket.connect((self.port, 0))
        if self.answer is not None:
            self._thread.start()

    def _run(self) -> None:
        _, sender = self.socket.recvfrom(1 << 20)
        assert self.answer is not None
        self.socket.sendto(self.answer, sender)


MakePeer = Callable[..., Peer]


@pytest.fixture
def peer() -> Iterator[MakePeer]:
    """Creates peers in the calling thread's network namespace; they are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(protocol: int, answer: bytes | None = None) -> Peer:
            made = Peer(protocol, answer)
            stack.enter_context(made.socket)
            return made

        yield make


def _refused(what: str) -> int:
    return REFUSALS.totals()["netlink", what]


# --- No answer -----------------------------------------------------------------------------------


@pytest.mark.behaviour("The kernel: A kernel that does not answer")
def test_nftables_requests_time_out(space: NetNS, peer: MakePeer) -> None:
    def work() -> None:
        client = NftablesClient(V4)
        port = client.port_id
        peer(NETFILTER).plays(client._nf_tables._socket)
        with pytest.raises(BackendError, match="timed out"):
            client.generation()
        assert client.generation() >= 0, "a fresh socket"
        assert client._nf_tables._socket.port_id == port, "the watcher ignores events by it"
        client.close()

    space.call(work)


@pytest.mark.behaviour("The kernel: A kernel that does not answer")
def test_requests_time_out(space: NetNS, peer: MakePeer) -> None:
    requests: list[Callable[[NetlinkClient], object]] = [
        lambda c: c.get(LINKS),
        lambda c: c.dump(LINKS),
        lambda c: c.execute([LINKS]),
    ]

    def work() -> None:
        for request in requests:
            client = NetlinkClient(ROUTE)
            peer(ROUTE).plays(client.socket)
            with pytest.raises(OSError, match="timed out") as error:
                request(client)
            assert error.value.errno == errno.ETIMEDOUT
            assert client.dump(LINKS), "a fresh socket"
            client.close()

    space.call(work)


@pytest.mark.behaviour("The kernel: A kernel that does not answer")
def test_conntrack_requests_time_out(
    space: NetNS, peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_client = conntrack_table._client

    def mute(protocol: int) -> NetlinkClient:
        made = open_client(protocol)
        peer(protocol).plays(made.socket)
        return made

    def work() -> None:
        monkeypatch.setattr(conntrack_table, "_client", mute)
        table = Table(V4)
        with pytest.raises(ConntrackError, match="no answer within"):
            table.find(Destination(17, b"\1\2\3\4", 53), lambda _: True)
        with pytest.raises(ConntrackError, match="no answer within"):
            table.is_local(b"\1\2\3\4")
        monkeypatch.setattr(conntrack_table, "_client", open_client)
        assert table.is_local(b"\x7f\0\0\1")

    space.call(work)


def test_an_abandoned_dump_does_not_disturb_the_next(
    space: NetNS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel starts no second dump on a socket (EBUSY), and old answers could arrive late."""

    def late(_: NetlinkSocket) -> bytes:
        raise TimedOutError

    def work() -> None:
        client = NftablesClient(V4)
        with monkeypatch.context() as patched:
            patched.setattr(NetlinkSocket, "receive", late)
            with pytest.raises(BackendError, match="timed out"):
                client.dump(1)
        assert client.dump(1) == [], "no tables here"
        client.close()

    space.call(work)


@pytest.mark.parametrize("operation", ["ask", "transact"])
def test_nftables_recovers_when_descriptors_run_out(
    space: NetNS, peer: MakePeer, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """A failure replaces the socket. If that fails too, the next request tries again."""

    def starved(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def work() -> None:
        client = NftablesClient(V4)
        port = client.port_id
        peer(NETFILTER).plays(client._nf_tables._socket)
        todo = [Message(DELETE_SET, 0, text(TABLE_OF, "none") + text(2, "s"), "set s")]
        with monkeypatch.context() as patched:
            patched.setattr("socket.socket", starved)
            for _ in range(2):
                with pytest.raises(BackendError, match="Too many open files"):
                    client.generation()
        with pytest.raises(BackendError, match="Bad file descriptor"):
            client.generation() if operation == "ask" else client.transact(todo)
        assert client.generation() >= 0
        assert client._nf_tables._socket.port_id == port
        client.close()

    space.call(work)


# --- Malformed answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.behaviour("The kernel: A kernel that does not answer")
def test_nftables_rejects_malformed_answers(space: NetNS, peer: MakePeer, answer: bytes) -> None:
    def work() -> None:
        client = NftablesClient(V4)
        peer(NETFILTER, answer).plays(client._nf_tables._socket)
        before = _refused("malformed")
        with pytest.raises(BackendError, match=r"bytes|half"):
            client.dump(1)
        assert _refused("malformed") == before + 1
        assert client.generation() >= 0
        client.close()

    space.call(work)


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.behaviour("The kernel: A kernel that does not answer")
def test_requests_reject_malformed_answers(space: NetNS, peer: MakePeer, answer: bytes) -> None:
    def work() -> None:
        client = NetlinkClient(ROUTE)
        peer(ROUTE, answer).plays(client.socket)
        before = _refused("malformed")
        with pytest.raises(OSError, match=r"bytes|half") as error:
            client.dump(LINKS)
        assert error.value.errno == errno.EBADMSG
        assert _refused("malformed") == before + 1
        assert client.dump(LINKS)
        client.close()

    space.call(work)


def test_other_processes_cannot_answer_for_the_kernel(space: NetNS, peer: MakePeer) -> None:
    def work() -> None:
        client, other = NftablesClient(V4), peer(NETFILTER)
        with pytest.raises(ConnectionRefusedError):
            other.socket.sendto(bytes(16), (client.port_id, 0))
        client.close()

    space.call(work)


# --- Lost events ---------------------------------------------------------------------------------


def _flood(space: NetNS) -> None:
    """Change a table so often that the events overflow the smallest buffer."""
    commands = "".join(f"add chain ip svcproxy c{n}\n" for n in range(300))
    space.run("nft", "-f", "-", stdin=f"add table ip svcproxy\n{commands}")


@pytest.mark.behaviour("The kernel: Lost events")
def test_lost_nftables_events_trigger_a_resync(space: NetNS) -> None:
    reported: list[ExternalChange] = []
    before = _refused("enobufs")
    watcher = space.call(lambda: NftablesWatcher(reported.append))
    watcher._listener._socket._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    _flood(space)
    watcher.start()
    eventually(lambda: LOST in {change.process for change in reported}, "the loss")
    watcher.stop()
    assert _refused("enobufs") > before


@pytest.mark.behaviour("The kernel: Lost events")
def test_lost_address_events_trigger_a_resync(space: NetNS) -> None:
    calls: list[bool] = []
    before = _refused("enobufs")
    watcher = space.call(lambda: AddressWatcher("kube-ipvs0", lambda: calls.append(True)))
    watcher._listener._socket._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    added = "".join(f"addr add 10.9.0.{n}/32 dev lo\n" for n in range(1, 200))
    space.run("ip", "-batch", "-", stdin=added)
    watcher.start()
    eventually(lambda: bool(calls), "the loss")
    watcher.stop()
    assert _refused("enobufs") > before


def test_errors_that_overflow_the_buffer_are_counted_and_the_first_ones_reported(
    space: NetNS,
) -> None:
    """A transaction is refused, not undecided, if its errors overflow the buffer."""

    def work() -> None:
        client = NftablesClient(V4)
        before = _refused("enobufs")
        todo = [
            Message(DELETE_SET, 0, text(TABLE_OF, "none") + text(2, f"s{n}"), f"set s{n}")
            for n in range(100)
        ]
        with pytest.raises(RefusedError) as whole:
            client.transact(todo)
        assert len(whole.value.refusals) == 100
        raw = client._nf_tables._socket._socket
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with pytest.raises(RefusedError) as part:
            client.transact(todo)
        assert 0 < len(part.value.refusals) < 100
        assert _refused("enobufs") == before + 1
        client.close()

    space.call(work)
