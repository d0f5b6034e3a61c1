"""HTTP/1.1 as bytes: a strict, bounded parser and one connection's state. Pure.

The framing rules are those of RFC 9112, the strict choice wherever it leaves one, except that a
single LF ends a line, as in Go's server. ADR 11 says why this is no library.
"""

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

from svcproxy import limits
from svcproxy.observe.core.exchange import TEXT, Reply

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_NOT_IN_A_LINE = re.compile(rb"[^\t\x20-\x7e]")
_NOT_IN_A_HEAD = re.compile(rb"[^\t\r\n\x20-\x7e]")
# More digits than any length that is not nonsense; int() of thousands of digits raises
_LENGTH = re.compile(r"[0-9]{1,18}")
# Repeated, these make the end of the request, or the server it is for, a matter of opinion
_ONCE = frozenset({"content-length", "host", "transfer-encoding"})


class Bounds(NamedTuple):
    """How much of a request is read, in bytes; ``headers`` is a number of lines."""

    line: int = limits.HTTP_REQUEST_LINE_BYTES
    header_bytes: int = limits.HTTP_HEADER_BYTES
    headers: int = limits.HTTP_HEADERS
    body: int = limits.HTTP_BODY_BYTES


class Refusal(Exception):  # noqa: N818 - it is the client's fault, not an error of ours
    """A request that is not answered: the status it gets, and the limit to count it under."""

    def __init__(self, status: HTTPStatus, limit: str) -> None:
        super().__init__(limit)
        self.status = status
        self.limit = limit


class Head(NamedTuple):
    """A request without its body.

    ``headers`` have names in lower case, and the values of a repeated one joined by commas.
    ``length`` is that of the body in bytes, ``None`` for a chunked one.
    """

    method: str
    target: str
    minor: int
    headers: Mapping[str, str]
    length: int | None

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants to use the connection for more requests."""
        options = {o.strip() for o in self.headers.get("connection", "").lower().split(",")}
        return "keep-alive" in options if self.minor == 0 else "close" not in options


class _RequestLine(NamedTuple):
    method: str
    target: str
    minor: int


class Parser:
    """Takes bytes in any pieces and gives the heads of requests, line by line as they come."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._pending = bytearray()
        self._searched = 0
        self._begin()

    def _begin(self) -> None:
        self._spent = 0
        self._lines = 0
        self._request: _RequestLine | None = None
        self._headers: dict[str, str] = {}

    @property
    def begun(self) -> bool:
        """Whether a part of a head has come and its end has not."""
        return bool(self._pending or self._spent or self._request)

    @property
    def held(self) -> int:
        """How many bytes are kept: at most one head or body, and what was fed at once."""
        return len(self._pending) + sum(map(len, (*self._headers, *self._headers.values())))

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self._pending += data

    def head(self) -> Head | None:
        """Give the next request, ``None`` if more bytes are needed.

        Raises:
            Refusal: it is malformed or too big; nothing after it can be read.
        """
        while (line := self._line()) is not None:
            if self._request is None:
                if line:  # empty lines before a request are skipped: RFC 9112, 2.2
                    self._request, self._spent = _request_line(line), 0
            elif line:
                self._add_header(line)
            else:
                head = _framed(self._request, self._headers)
                self._begin()
                return head
        return None

    def body(self, length: int) -> bytes | None:
        """Give the body after the last head, ``None`` if more bytes are needed."""
        if len(self._pending) < length:
            return None
        data = bytes(self._pending[:length])
        del self._pending[:length]
        return data

    def _line(self) -> bytes | None:
        end = self._pending.find(b"\n", self._searched)
        self._check_size(self._spent + (end + 1 if end >= 0 else len(self._pending)))
        if end < 0:
            # A TLS handshake, say, need not wait for a line to end
            if _NOT_IN_A_HEAD.search(self._pending, self._searched):
                raise Refusal(HTTPStatus.BAD_REQUEST, "malformed")
            self._searched = len(self._pending)
            return None
        line = bytes(self._pending[:end]).removesuffix(b"\r")
        del self._pending[: end + 1]
        self._searched = 0
        self._spent += end + 1
        if _NOT_IN_A_LINE.search(line):
            raise Refusal(HTTPStatus.BAD_REQUEST, "malformed")
        return line

    def _check_size(self, size: int) -> None:
        of_line = self._request is None
        if size > (self._bounds.line if of_line else self._bounds.header_bytes):
            limit = "request_line_bytes" if of_line else "header_bytes"
            raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, limit)

    def _add_header(self, line: bytes) -> None:
        self._lines += 1
        if self._lines > self._bounds.headers:
            raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers")
        name, colon, value = line.partition(b":")
        # A line that goes on with the last one (obs-fold) begins with a space, which no name does
        if not colon or not _TOKEN.fullmatch(name):
            raise Refusal(HTTPStatus.BAD_REQUEST, "malformed")
        key, text = name.decode().lower(), value.strip(b" \t").decode()
        if key not in self._headers:
            self._headers[key] = text
        elif key in _ONCE:
            raise Refusal(HTTPStatus.BAD_REQUEST, "malformed")
        else:
            self._headers[key] += f", {text}"


def _request_line(line: bytes) -> _RequestLine:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Refusal(HTTPStatus.BAD_REQUEST, "malformed")
    if match[3] != b"1":
        raise Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "unsupported")
    return _RequestLine(match[1].decode(), match[2].decode(), int(match[4]))


def _framed(line: _RequestLine, headers: Mapping[str, str]) -> Head:
    """Find out where the body ends; RFC 9112, 6.3."""
    length = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if length is not None or line.minor == 0:
            raise Refusal(HTTPStatus.BAD_REQUEST, "malformed")
        if coding.lower() != "chunked":
            raise Refusal(HTTPStatus.NOT_IMPLEMENTED, "unsupported")
        return Head(*line, headers, None)
    if length is not None and not _LENGTH.fullmatch(length):
        raise Refusal(HTTPStatus.BAD_REQUEST, "malformed")
    return Head(*line, headers, int(length or 0))


class Ask(NamedTuple):
    """A complete request; the body is empty unless it is a PUT."""

    head: Head
    body: bytes


class Conversation:
    """One connection: requests from the bytes that come in, the bytes to send in return.

    Feed it, then call ``next`` until it returns ``None``; answer each request before the next.
    ``out`` is to be sent after each call. Once ``closing`` is set, nothing more is read, and the
    connection ends when ``out`` has been sent.

    Args:
        bounds: how much is read.
        keeps: whether the connection may serve several requests, and bodies of PUTs are read.
        date: gives the time for the ``Date`` header.
    """

    def __init__(self, bounds: Bounds, *, keeps: bool, date: Callable[[], str]) -> None:
        self.out = b""
        self.closing = False
        self.refused = ""
        """The limit that the client ran into, empty if none."""
        self._bounds = bounds
        self._keeps = keeps
        self._date = date
        self._parser = Parser(bounds)
        self._head: Head | None = None
        self._answering = False

    @property
    def begun(self) -> bool:
        """Whether a part of a request has come and its end has not."""
        return not self._answering and (self._head is not None or self._parser.begun)

    @property
    def held(self) -> int:
        """How many bytes of unfinished requests are kept."""
        return self._parser.held

    def feed(self, data: bytes) -> None:
        """Take what the client sent; after the last answer it is dropped."""
        if not self.closing:
            self._parser.feed(data)

    def next(self) -> Ask | None:
        """Give the next complete request; ``None`` if there is none, or it was refused."""
        if self.closing or self._answering:
            return None
        try:
            return self._next()
        except Refusal as refusal:
            self.refused = refusal.limit
            self.closing = True
            text = f"{refusal.status.value} {refusal.status.phrase}\n"
            self.answer(Reply(refusal.status, TEXT, text.encode()))
            return None

    def _next(self) -> Ask | None:
        begins = self._head is None
        head = self._head or self._parser.head()
        if head is None:
            return None
        self._head = head
        body = self._body(head, begins=begins) if head.method == "PUT" and self._keeps else b""
        if body is None:
            return None
        # A body that is not read must not become a request
        unread = head.method != "PUT" and head.length != 0
        self.closing = unread or not (self._keeps and head.keeps_alive)
        self._answering = True
        return Ask(head, body)

    def _body(self, head: Head, *, begins: bool) -> bytes | None:
        if head.length is None:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "unsupported")
        if head.length > self._bounds.body:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_bytes")
        body = self._parser.body(head.length)
        if body is None and begins and head.headers.get("expect", "").lower() == "100-continue":
            self.out += b"HTTP/1.1 100 Continue\r\n\r\n"
        return body

    def answer(self, reply: Reply) -> None:
        """Put the answer to the last request into ``out``."""
        head, self._head, self._answering = self._head, None, False
        headers = {
            "Server": "svcproxy",
            "Date": self._date(),
            "Content-Type": reply.content_type,
            "Content-Length": str(len(reply.body)),
            "X-Content-Type-Options": "nosniff",
            **reply.headers,
        }
        if self.closing:
            headers["Connection"] = "close"
        elif head is not None and head.minor == 0:
            headers["Connection"] = "keep-alive"
        status = HTTPStatus(reply.status)
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            *(f"{k}: {v}" for k, v in headers.items()),
        )
        self.out += "\r\n".join((*lines, "", "")).encode()
        if head is None or head.method != "HEAD":
            self.out += reply.body
