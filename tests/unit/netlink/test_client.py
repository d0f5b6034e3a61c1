"""Conversations of the netlink client with a scripted socket."""

import errno
import struct
from collections.abc import Iterator

import pytest

from svcproxy.netlink.client import DUMP_ATTEMPTS, NetlinkClient, RefusedRequest
from svcproxy.netlink.core.messages import (
    DONE,
    ERROR,
    FLAG_ACK,
    FLAG_DUMP,
    FLAG_INTERRUPTED,
    FLAG_REQUEST,
    NetlinkRequest,
    messages,
)
from svcproxy.netlink.errors import (
    BufferOverrunError,
    InterruptedDumpError,
    MalformedError,
    NetlinkError,
    RequestRefusedError,
    TimedOutError,
)
from svcproxy.netlink.socket import ROUTE

REQUEST = NetlinkRequest(18, 0, b"body")
ITEM = 16


def message(kind: int, sequence: int, body: bytes = b"item", flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def code(kind: int, sequence: int, number: int = 0) -> bytes:
    return message(kind, sequence, struct.pack("=i", -number))


class ScriptedSocket:
    """Receives the datagrams of a script, or raises its errors."""

    def __init__(self, script: list[bytes | NetlinkError]) -> None:
        self.script = script
        self.sent: list[bytes] = []
        self.replaced: list[NetlinkError] = []
        self.buffer = memoryview(bytearray(4096))

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def replace_after(self, error: NetlinkError) -> None:
        self.replaced.append(error)

    def receive(self) -> bytes:
        step = self.script.pop(0)
        if isinstance(step, NetlinkError):
            raise step
        return step

    def receive_size(self) -> int:
        data = self.receive()
        self.buffer[: len(data)] = data
        return len(data)


class Scene:
    """A client with a scripted socket."""

    def __init__(self, client: NetlinkClient) -> None:
        self.client = client
        self.socket = ScriptedSocket([])

    def play(self, *script: bytes | NetlinkError) -> NetlinkClient:
        self.socket.script = list(script)
        self.client.socket = self.socket  # type: ignore[assignment]
        return self.client


@pytest.fixture
def scene() -> Iterator[Scene]:
    with NetlinkClient(ROUTE) as client:
        opened = client.socket
        made = Scene(client)
        yield made
        assert made.socket.script == [], "everything was received"
        client.socket = opened


def test_a_dump_returns_the_bodies_of_all_datagrams(scene: Scene) -> None:
    first = message(ITEM, 1, b"a___") + message(ITEM, 1, b"b___")
    client = scene.play(first, message(ITEM, 1, b"c___"), code(DONE, 1))
    assert client.dump(REQUEST) == [b"a___", b"b___", b"c___"]
    (sent,) = messages(scene.socket.sent[0])
    assert sent.flags == FLAG_REQUEST | FLAG_DUMP


def test_a_dump_can_leave_out_the_start_of_each_body(scene: Scene) -> None:
    found: list[bytes] = []
    scene.play(message(ITEM, 1, b"headrest") + code(DONE, 1))
    scene.client.dump_each(REQUEST, found.append, skip=4)
    assert found == [b"rest"]


def test_late_answers_are_ignored(scene: Scene) -> None:
    client = scene.play(
        *(message(ITEM, 1), code(DONE, 1)),
        *(code(DONE, 1) + message(ITEM, 2, b"new_"), code(DONE, 2)),
        *(code(ERROR, 2, errno.EPERM), message(ITEM, 3)),
        *(code(ERROR, 3, errno.EPERM), code(ERROR, 4)),
    )
    assert client.dump(REQUEST) == [b"item"]
    assert client.dump(REQUEST) == [b"new_"]
    assert client.get(REQUEST).body == b"item"
    assert client.execute([REQUEST]) == []


@pytest.mark.parametrize(
    "interrupted",
    [
        [message(ITEM, 1, flags=FLAG_INTERRUPTED), code(DONE, 1)],
        [message(ITEM, 1), code(DONE, 1, errno.EINTR)],
        [message(ITEM, 1), BufferOverrunError()],
    ],
    ids=["flag", "EINTR", "overrun"],
)
def test_an_interrupted_dump_is_repeated(
    scene: Scene, interrupted: list[bytes | NetlinkError]
) -> None:
    client = scene.play(*interrupted, message(ITEM, 2, b"new_") + code(DONE, 2))
    assert client.dump(REQUEST) == [b"new_"]


def test_a_dump_that_is_always_interrupted_fails(scene: Scene) -> None:
    client = scene.play(*(code(DONE, n, errno.EINTR) for n in range(1, DUMP_ATTEMPTS + 1)))
    with pytest.raises(InterruptedDumpError, match=f"interrupted {DUMP_ATTEMPTS} times"):
        client.dump(REQUEST)
    assert scene.socket.replaced == [], "the socket is intact"


def test_a_refused_request_leaves_the_socket_intact(scene: Scene) -> None:
    client = scene.play(code(ERROR, 1, errno.EPERM), code(ERROR, 2, errno.ENOENT))
    with pytest.raises(RequestRefusedError, match="not permitted"):
        client.dump(REQUEST)
    with pytest.raises(RequestRefusedError) as error:
        client.get(REQUEST)
    assert error.value.errno == errno.ENOENT
    assert scene.socket.replaced == []


@pytest.mark.parametrize(
    "failure", [TimedOutError(), b"short", message(DONE, 1, b"?")], ids=["late", "short", "no code"]
)
def test_a_failed_conversation_replaces_the_socket(
    scene: Scene, failure: bytes | NetlinkError
) -> None:
    client = scene.play(failure)
    with pytest.raises((TimedOutError, MalformedError)) as error:
        client.dump(REQUEST)
    assert scene.socket.replaced == [error.value]


def test_a_batch_returns_the_refused_requests(scene: Scene) -> None:
    client = scene.play(code(ERROR, 2, errno.EEXIST), code(ERROR, 3))
    assert client.execute([REQUEST] * 3) == [RefusedRequest(1, errno.EEXIST, b"")]
    assert client.sent == 3
    sent = list(messages(scene.socket.sent[0]))
    assert [m.flags for m in sent] == [FLAG_REQUEST, FLAG_REQUEST, FLAG_REQUEST | FLAG_ACK]
