"""What netlink sockets do when the kernel does not answer, drops answers, or answers nonsense.

The kernel does none of this on demand. So the sockets are connected to another socket of this
process, which plays the kernel.
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
from svcproxy.backends.ipvs.address_watcher import AddressWatcher
from svcproxy.backends.nf_tables_watcher import LOST, NftablesWatcher
from svcproxy.backends.nftables.connection import Connection as NftConnection
from svcproxy.backends.nftables.connection import RefusedError
from svcproxy.conntrack import table as conntrack_table
from svcproxy.conntrack.core.stale import Key
from svcproxy.conntrack.table import ConntrackError, Table
from svcproxy.model.names import IPFamily
from svcproxy.netlink.connection import NETFILTER, ROUTE, Connection
from svcproxy.netlink.core.attributes import text
from svcproxy.netlink.core.messages import Request
from svcproxy.netlink.core.nf_tables.protocol import DELETE_SET, TABLE_OF
from svcproxy.netlink.core.nf_tables.transaction import Message
from svcproxy.refusals import REFUSALS
from testbed import netns
from testbed.netns import NetNS
from testbed.waiting import eventually

pytestmark = pytest.mark.kernel

V4 = IPFamily.IPV4
LINKS = Request(18, 0, bytes(16))
"""RTM_GETLINK."""
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33
_SHORT = struct.pack("@ll", 0, 50_000)

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
    for module in ("svcproxy.netlink.connection", "svcproxy.backends.nftables.connection"):
        monkeypatch.setattr(f"{module}.PATIENCE", _SHORT)
    monkeypatch.setattr(conntrack_table, "NETLINK_PATIENCE_SECONDS", 0.05)


class Peer:
    """A process that plays the kernel; it answers what it is told to, or nothing."""

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

    def plays(self, made: socket.socket) -> None:
        made.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 4 << 20)
        made.connect((self.port, 0))
        if self.answer is not None:
            self._thread.start()

    def _run(self) -> None:
        _, sender = self.socket.recvfrom(1 << 20)
        assert self.answer is not None
        self.socket.sendto(self.answer, sender)


MakePeer = Callable[..., Peer]


@pytest.fixture
def peer() -> Iterator[MakePeer]:
    """Makes peers in the calling thread's namespace; they are closed in the end."""
    with contextlib.ExitStack() as stack:

        def make(protocol: int, answer: bytes | None = None) -> Peer:
            made = Peer(protocol, answer)
            stack.enter_context(made.socket)
            return made

        yield make


def _refused(what: str) -> int:
    return REFUSALS.totals()["netlink", what]


# --- No answer -----------------------------------------------------------------------------------


def test_nftables_waits_no_longer_than_it_must(space: NetNS, peer: MakePeer) -> None:
    def work() -> None:
        connection = NftConnection(V4)
        port = connection.port_id
        peer(NETFILTER).plays(connection._socket)
        with pytest.raises(BackendError, match="timed out"):
            connection.generation()
        assert connection.generation() >= 0, "a fresh socket"
        assert connection.port_id == port, "by which the watcher tells our events"
        connection.close()

    space.call(work)


def test_requests_wait_no_longer_than_they_must(space: NetNS, peer: MakePeer) -> None:
    asking: list[Callable[[Connection], object]] = [
        lambda c: c.ask(LINKS),
        lambda c: c.dump(LINKS),
        lambda c: c.execute([LINKS]),
    ]

    def work() -> None:
        for ask in asking:
            connection = Connection(ROUTE)
            peer(ROUTE).plays(connection._socket)
            with pytest.raises(OSError, match="timed out") as error:
                ask(connection)
            assert error.value.errno == errno.ETIMEDOUT
            assert connection.dump(LINKS), "a fresh socket"
            connection.close()

    space.call(work)


def test_conntrack_waits_no_longer_than_it_must(
    space: NetNS, peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = conntrack_table._opened

    def mute(protocol: int) -> socket.socket:
        made = opened(protocol)
        peer(protocol).plays(made)
        return made

    def work() -> None:
        monkeypatch.setattr(conntrack_table, "_opened", mute)
        table = Table(V4)
        with pytest.raises(ConntrackError, match="no answer within"):
            table.find(Key(17, b"\1\2\3\4", 53), lambda _: True)
        with pytest.raises(ConntrackError, match="no answer within"):
            table.is_local(b"\1\2\3\4")
        monkeypatch.setattr(conntrack_table, "_opened", opened)
        assert table.is_local(b"\x7f\0\0\1")

    space.call(work)


def test_a_dump_that_was_given_up_is_not_in_the_way_of_the_next(space: NetNS) -> None:
    """The kernel begins no second dump on a socket (EBUSY), and old answers could come late."""

    def work() -> None:
        connection = NftConnection(V4)
        receive = connection._receive

        def late(flags: int = 0) -> bytes:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        connection._receive = late  # type: ignore[method-assign]
        with pytest.raises(BackendError, match="timed out"):
            connection.dump(1)
        connection._receive = receive  # type: ignore[method-assign]
        assert connection.dump(1) == [], "no tables here"
        connection.close()

    space.call(work)


@pytest.mark.parametrize("operation", ["ask", "transact"])
def test_nftables_recovers_from_a_time_without_descriptors(
    space: NetNS, peer: MakePeer, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """A failure replaces the socket. That may fail as well, but must not be final."""

    def starved(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def work() -> None:
        connection = NftConnection(V4)
        port = connection.port_id
        peer(NETFILTER).plays(connection._socket)
        todo = [Message(DELETE_SET, 0, text(TABLE_OF, "none") + text(2, "s"), "set s")]
        with monkeypatch.context() as patched:
            patched.setattr("socket.socket", starved)
            for _ in range(2):
                with pytest.raises(BackendError, match="Too many open files"):
                    connection.generation()
        with pytest.raises(BackendError, match="Bad file descriptor"):
            connection.generation() if operation == "ask" else connection.transact(todo)
        assert connection.generation() >= 0
        assert connection.port_id == port
        connection.close()

    space.call(work)


# --- Nonsense ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
def test_nftables_refuses_nonsense(space: NetNS, peer: MakePeer, answer: bytes) -> None:
    def work() -> None:
        connection = NftConnection(V4)
        peer(NETFILTER, answer).plays(connection._socket)
        before = _refused("malformed")
        with pytest.raises(BackendError, match=r"bytes|half"):
            connection.dump(1)
        assert _refused("malformed") == before + 1
        assert connection.generation() >= 0
        connection.close()

    space.call(work)


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
def test_requests_refuse_nonsense(space: NetNS, peer: MakePeer, answer: bytes) -> None:
    def work() -> None:
        connection = Connection(ROUTE)
        peer(ROUTE, answer).plays(connection._socket)
        before = _refused("malformed")
        with pytest.raises(OSError, match=r"bytes|half") as error:
            connection.dump(LINKS)
        assert error.value.errno == errno.EBADMSG
        assert _refused("malformed") == before + 1
        assert connection.dump(LINKS)
        connection.close()

    space.call(work)


def test_other_processes_cannot_answer_for_the_kernel(space: NetNS, peer: MakePeer) -> None:
    def work() -> None:
        connection, other = NftConnection(V4), peer(NETFILTER)
        with pytest.raises(ConnectionRefusedError):
            other.socket.sendto(bytes(16), (connection.port_id, 0))
        connection.close()

    space.call(work)


# --- Lost events ---------------------------------------------------------------------------------


def _flood(space: NetNS) -> None:
    """Change a table so often that the events do not fit into the smallest buffer."""
    commands = "".join(f"add chain ip svcproxy c{n}\n" for n in range(300))
    space.run("nft", "-f", "-", stdin=f"add table ip svcproxy\n{commands}")


def test_lost_nftables_events_lead_to_a_comparison(space: NetNS) -> None:
    told: list[ExternalChange] = []
    before = _refused("enobufs")
    watcher = space.call(lambda: NftablesWatcher(told.append))
    watcher._listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    _flood(space)
    watcher.start()
    eventually(lambda: LOST in {change.process for change in told}, "the loss")
    watcher.stop()
    assert _refused("enobufs") > before


def test_lost_events_of_addresses_lead_to_a_comparison(space: NetNS) -> None:
    told: list[bool] = []
    before = _refused("enobufs")
    watcher = space.call(lambda: AddressWatcher(lambda: told.append(True)))
    watcher._listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    added = "".join(f"addr add 10.9.0.{n}/32 dev lo\n" for n in range(1, 200))
    space.run("ip", "-batch", "-", stdin=added)
    watcher.start()
    eventually(lambda: bool(told), "the loss")
    watcher.stop()
    assert _refused("enobufs") > before


def test_errors_that_do_not_fit_are_counted_and_the_first_ones_known(space: NetNS) -> None:
    """A transaction with more errors than the buffer has room for is refused, not unknown."""

    def work() -> None:
        connection = NftConnection(V4)
        before = _refused("enobufs")
        todo = [
            Message(DELETE_SET, 0, text(TABLE_OF, "none") + text(2, f"s{n}"), f"set s{n}")
            for n in range(100)
        ]
        with pytest.raises(RefusedError) as whole:
            connection.transact(todo)
        assert len(whole.value.refusals) == 100
        connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with pytest.raises(RefusedError) as part:
            connection.transact(todo)
        assert 0 < len(part.value.refusals) < 100
        assert _refused("enobufs") == before + 1
        connection.close()

    space.call(work)
