"""The admin server, over real sockets."""

import socket
import stat
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
import structlog.testing

from svcproxy import limits
from svcproxy.admin.pages import Answer, Query, failure
from svcproxy.admin.server import AdminServer
from svcproxy.observe.core.routes import TEXT
from testbed.waiting import eventually


def respond(path: str, query: Query) -> Answer:
    match path:
        case "/hello":
            return Answer(HTTPStatus.OK, TEXT, iter((b"hello ", query.get("name", "").encode())))
        case "/endless":
            return Answer(HTTPStatus.OK, TEXT, iter(lambda: b"x" * 65536, b""))
        case "/broken":
            raise ValueError(path)
        case _:
            return failure(HTTPStatus.NOT_FOUND)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "admin.sock"


@pytest.fixture
def server(path: Path) -> Iterator[AdminServer]:
    made = AdminServer(str(path), respond, check_seconds=0.05)
    made.start()
    yield made
    made.stop()


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(20)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


def exchange(path: Path, request: bytes) -> bytes:
    with connected(path) as sock:
        sock.sendall(request)
        return b"".join(iter(lambda: sock.recv(65536), b""))


HELLO = b"GET /hello?name=you HTTP/1.1\r\n\r\n"


def is_served(path: Path) -> bool:
    try:
        return b"hello " in exchange(path, HELLO)
    except OSError:
        return False


@pytest.mark.usefixtures("server")
def test_it_answers_in_chunks_and_closes(path: Path) -> None:
    head, _, body = exchange(path, HELLO).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close" in head
    assert body == b"6\r\nhello \r\n3\r\nyou\r\n0\r\n\r\n"


@pytest.mark.usefixtures("server")
def test_only_this_user_can_open_it(path: Path) -> None:
    assert stat.filemode(path.lstat().st_mode) == "srw-------"
    assert stat.filemode(path.parent.lstat().st_mode) == "drwx------"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01", b"400"),
        (b"POST /hello HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", b"405"),
        (b"GET /hello?" + b"a=1&" * 100 + b" HTTP/1.1\r\n\r\n", b"400"),
        (b"GET //[ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 8192, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10000, b"431"),
        (b"GET /nowhere HTTP/1.1\r\n\r\n", b"404"),
        (b"GET / HTTP/2.0\r\n\r\n", b"505"),
    ],
)
@pytest.mark.usefixtures("server")
def test_malformed_requests(path: Path, request_: bytes, status: bytes) -> None:
    assert exchange(path, request_).startswith(b"HTTP/1.1 " + status)
    assert is_served(path)


@pytest.mark.usefixtures("server")
def test_a_defect_in_an_answer_ends_only_that_connection(path: Path) -> None:
    assert exchange(path, b"GET /broken HTTP/1.1\r\n\r\n") == b""
    assert is_served(path)


@pytest.mark.usefixtures("server")
def test_a_hundred_connections_are_served_a_few_at_a_time(path: Path) -> None:
    served: list[bool] = []
    clients = [
        threading.Thread(target=lambda: served.append(is_served(path)), daemon=True)
        for _ in range(60)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(30)
    assert served == [True] * 60


@pytest.mark.usefixtures("server")
def test_slow_clients_are_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ADMIN_REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(limits, "ADMIN_SEND_SECONDS", 0.2)
    silent = [connected(path) for _ in range(limits.ADMIN_CONNECTIONS // 2)]
    reading_nothing = [connected(path) for _ in range(limits.ADMIN_CONNECTIONS // 2)]
    for sock in reading_nothing:
        sock.sendall(b"GET /endless HTTP/1.1\r\n\r\n")
    assert is_served(path)
    for sock in silent:
        assert sock.recv(1) == b""
    for sock in (*silent, *reading_nothing):
        sock.close()


@pytest.mark.usefixtures("server")
def test_an_answer_ends_at_its_deadline(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads a little now and then cannot hold a connection for ever."""
    monkeypatch.setattr(limits, "ADMIN_ANSWER_SECONDS", 0.3)
    received = exchange(path, b"GET /endless HTTP/1.1\r\n\r\n")
    assert not received.endswith(b"0\r\n\r\n")


def test_a_stale_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = AdminServer(str(path), respond)
    server.start()
    assert is_served(path)
    server.stop()
    assert not path.exists()


def test_the_newest_of_two_daemons_is_asked_and_the_older_one_leaves_its_socket(path: Path) -> None:
    older, newer = (
        AdminServer(str(path), respond, check_seconds=0.05),
        AdminServer(str(path), respond),
    )
    older.start()
    with structlog.testing.capture_logs() as logs:
        newer.start()
        eventually(lambda: {"admin.taken_over", "admin.replaced"} == {e["event"] for e in logs})
    own = path.lstat().st_ino
    older.stop()
    assert path.lstat().st_ino == own
    assert is_served(path)
    newer.stop()
    assert not path.exists()


@pytest.mark.usefixtures("server")
def test_a_removed_socket_is_made_again(path: Path) -> None:
    path.unlink()
    eventually(lambda: is_served(path), timeout=20)


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_fail(path: Path) -> None:
    path.parent.write_text("a file, not a folder")
    server = AdminServer(str(path), respond, check_seconds=0.05)
    server.start()
    path.parent.unlink()
    eventually(lambda: is_served(path), timeout=20)
    server.stop()


def test_only_a_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("something precious")
    server = AdminServer(str(path), respond, check_seconds=0.05)
    server.start()
    server.stop()
    assert path.read_text() == "something precious"
    assert list(path.parent.iterdir()) == [path]
