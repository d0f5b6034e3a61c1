"""The daemon's side of the admin socket: HTTP/1.1 on a Unix socket for root.

1. One request per connection, each in a thread of its own; a few at a time. Others wait in the
   kernel's queue, where they cost nothing.
2. Answers are sent in chunks as they are computed, so that no answer is held as a whole. Clients
   that read slowly are cut off.
3. Nothing here is needed for serving: if the socket cannot be opened, the daemon works without it,
   and tries again.
"""

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import structlog

from svcproxy import limits, threads
from svcproxy.admin.pages import Answer, Query, failure
from svcproxy.admin.place import SocketPlace
from svcproxy.observe.core.http1 import ParserLimits, RequestHead, RequestParser, RequestRefused
from svcproxy.observe.log_throttle import LogThrottle
from svcproxy.refusals import REFUSALS

_log = structlog.get_logger()

_CHECK_SECONDS = 10.0
_LINGER_SECONDS = 0.5
_STOP_SECONDS = 0.2
_RECEIVE_BYTES = 1 << 12
_CREDENTIALS = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid

Respond = Callable[[str, Query], Answer]


class AdminServer:
    """Serves the admin socket.

    Args:
        path: the path of the socket.
        respond: answers a GET request, given path and query.
        check_seconds: how often to check that the socket is still there.
    """

    def __init__(
        self, path: str, respond: Respond, *, check_seconds: float = _CHECK_SECONDS
    ) -> None:
        self._path = path
        self._place = SocketPlace(path)
        self._respond = respond
        self._check_seconds = check_seconds
        self._stopping = threading.Event()
        self._slots = threading.Semaphore(limits.ADMIN_CONNECTIONS)
        self._listening: socket.socket | None = None
        self._wake_w, self._wake_r = socket.socketpair()
        self._open: set[socket.socket] = set()
        self._replaced = False
        self._defects = LogThrottle()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the socket and serve it in a thread; never fails."""
        try:
            taken_over = self._place.served()
            self._listen()
            if taken_over:
                _log.info("admin.taken_over", path=self._path, effect="commands ask this daemon")
        except OSError as error:
            _log.warning(
                "admin.not_serving",
                path=self._path,
                reason=error.strerror or str(error),
                effect="the commands of svcproxy cannot ask this daemon",
                remedy="make its folder writable or set --svcproxy-admin-socket",
                retry_in_s=self._check_seconds,
            )
        self._thread = threads.spawn(self._run, "admin")

    def stop(self) -> None:
        """Close all connections, and remove the socket unless another daemon has replaced it."""
        self._stopping.set()
        self._wake_w.close()
        for sock in tuple(self._open):
            with suppress(OSError):  # closed by its thread meanwhile
                sock.shutdown(socket.SHUT_RDWR)
        self._place.remove()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def _listen(self) -> None:
        former, self._listening = self._listening, None
        if former is not None:
            former.close()
        self._listening = self._place.listen()
        self._listening.settimeout(0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            threads.waiting()
            try:
                self._step()
            except Exception:  # noqa: BLE001 - a defect here must not end the daemon
                self._report_defect()
                self._stopping.wait(self._check_seconds)
        if self._listening is not None:
            self._listening.close()
        self._wake_r.close()
        self._place.remove()  # it may have been made again while ``stop`` removed it

    def _step(self) -> None:
        """Serve one connection, or keep the socket in place."""
        if not self._slots.acquire(timeout=self._check_seconds):
            return
        sock = None
        try:
            sock = self._accept()
            if sock is not None:
                self._open.add(sock)
                threads.spawn(partial(self._serve, sock), "admin-client")
        except BaseException:
            if sock is not None:
                self._end(sock)
            raise
        finally:
            if sock is None:
                self._slots.release()

    def _accept(self) -> socket.socket | None:
        """Wait for a connection; ``None`` if there is none or its peer has no right to it."""
        if self._wait():
            try:
                assert self._listening is not None, "there is a connection"
                sock, _ = self._listening.accept()
            except BlockingIOError:  # the client has gone
                return None
            except OSError:  # out of descriptors
                self._stopping.wait(self._check_seconds / 10)
                return None
            return self._admitted(sock)
        if not self._stopping.is_set():
            self._check_place()
        return None

    def _check_place(self) -> None:
        """Make the socket if there is none; leave that of another daemon."""
        if self._listening is None or self._place.missing():
            with suppress(OSError):  # reported at the start
                self._listen()
                self._replaced = False
                _log.info("admin.serving", path=self._path)
        elif self._place.replaced() and not self._replaced:
            self._replaced = True
            _log.info("admin.replaced", path=self._path, effect="commands ask another daemon")

    def _wait(self) -> bool:
        """Wait until there is a connection, or it is time to check; return which."""
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        if self._listening is not None:
            poll.register(self._listening, select.POLLIN)
        ready = poll.poll(self._check_seconds * 1000)
        return bool(ready) and not self._stopping.is_set()

    def _admitted(self, sock: socket.socket) -> socket.socket | None:
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _pid, uid, _gid = _CREDENTIALS.unpack(found)
        if uid in {0, os.geteuid()}:
            return sock
        REFUSALS.count("admin", "user")
        sock.close()
        return None

    def _serve(self, sock: socket.socket) -> None:
        """Answer the request of a connection, in a thread of its own."""
        threads.working(
            limits.ADMIN_REQUEST_SECONDS + limits.ADMIN_ANSWER_SECONDS + limits.THREAD_STEP_SECONDS
        )
        try:
            _exchange(sock, self._respond)
        except TimeoutError:
            REFUSALS.count("admin", "seconds")
        except OSError:  # the client has gone
            pass
        except Exception:  # noqa: BLE001 - a defect in one answer must not end the daemon
            self._report_defect()
        finally:
            self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        self._open.discard(sock)
        sock.close()
        self._slots.release()

    def _report_defect(self) -> None:
        if self._defects.allow("admin"):
            _log.exception("admin.failed")


def _exchange(sock: socket.socket, respond: Respond) -> None:
    """Read a request and answer it.

    Raises:
        TimeoutError: the client is too slow.
        OSError: the client has gone.
    """
    try:
        head = _read_head(sock)
    except RequestRefused as refusal:
        REFUSALS.count("admin", "request")
        _send(sock, failure(refusal.status))
    else:
        if head is None:
            return
        _send(sock, _answer(head, respond))
    sock.shutdown(socket.SHUT_WR)
    _linger(sock)


def _read_head(sock: socket.socket) -> RequestHead | None:
    """Read the head of a request; ``None`` if the client closed the connection first."""
    parser = RequestParser(ParserLimits())
    deadline = time.monotonic() + limits.ADMIN_REQUEST_SECONDS
    while (head := parser.head()) is None:
        sock.settimeout(_left(deadline))
        data = sock.recv(_RECEIVE_BYTES)
        if not data:
            return None
        parser.feed(data)
    return head


def _answer(head: RequestHead, respond: Respond) -> Answer:
    if head.method != "GET":
        return failure(HTTPStatus.METHOD_NOT_ALLOWED)
    try:
        target = urlsplit(head.target)
        query = dict(parse_qsl(target.query, keep_blank_values=True, max_num_fields=16))
    except ValueError:
        return failure(HTTPStatus.BAD_REQUEST)
    return respond(target.path, query)


def _send(sock: socket.socket, answer: Answer) -> None:
    """Send an answer in chunks; one that fails midway stays without its last chunk."""
    deadline = time.monotonic() + limits.ADMIN_ANSWER_SECONDS
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.content_type}",
        "Transfer-Encoding: chunked",
        "Connection: close",
        "",
        "",
    )
    buffered = "\r\n".join(head).encode()
    for piece in answer.pieces:
        if not piece:
            _check_client(sock)
        else:
            sock.settimeout(min(limits.ADMIN_SEND_SECONDS, _left(deadline)))
            sock.sendall(b"%b%x\r\n%b\r\n" % (buffered, len(piece), piece))
            buffered = b""
    sock.settimeout(min(limits.ADMIN_SEND_SECONDS, _left(deadline)))
    sock.sendall(buffered + b"0\r\n\r\n")


def _check_client(sock: socket.socket) -> None:
    """Check that the client still waits for the answer.

    Raises:
        ConnectionResetError: it has closed the connection.
    """
    sock.settimeout(0)
    with suppress(BlockingIOError):
        if not sock.recv(1, socket.MSG_PEEK):
            raise ConnectionResetError


def _linger(sock: socket.socket) -> None:
    """Read what the client still sends: closing with unread data would discard the answer."""
    deadline = time.monotonic() + _LINGER_SECONDS
    with suppress(TimeoutError):
        while time.monotonic() < deadline:
            sock.settimeout(_left(deadline))
            if not sock.recv(_RECEIVE_BYTES):
                return


def _left(deadline: float) -> float:
    """Return the seconds until a deadline.

    Raises:
        TimeoutError: it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
