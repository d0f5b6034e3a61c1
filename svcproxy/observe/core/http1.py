"""A strict and bounded HTTP/1.1 server protocol without I/O. Pure.

Framing follows RFC 9112 and takes the strict option where the RFC leaves a choice, except that a
bare LF ends a line, as in Go's server. ADR 11 explains why this is not a library.
"""

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

from svcproxy import limits
from svcproxy.observe.core.routes import TEXT, Reply

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_NOT_IN_A_LINE = re.compile(rb"[^\t\x20-\x7e]")
_NOT_IN_A_HEAD = re.compile(rb"[^\t\r\n\x20-\x7e]")
# Enough digits for any sensible length; int() raises on thousands of digits
_LENGTH = re.compile(r"[0-9]{1,18}")
# A repeated one of these makes the request ambiguous: where its body ends, or for which host it is
_NOT_REPEATABLE = frozenset({"content-length", "host", "transfer-encoding"})


class ParserLimits(NamedTuple):
    """How much of a request is accepted, in bytes; ``headers`` is a number of lines."""

    line: int = limits.HTTP_REQUEST_LINE_BYTES
    header_bytes: int = limits.HTTP_HEADER_BYTES
    headers: int = limits.HTTP_HEADERS
    body: int = limits.HTTP_BODY_BYTES


class RequestRefused(Exception):  # noqa: N818 - an error of the client, not of svcproxy
    """A request that is rejected with ``status``, and counted under ``limit``."""

    def __init__(self, status: HTTPStatus, limit: str) -> None:
        super().__init__(limit)
        self.status = status
        self.limit = limit


class RequestHead(NamedTuple):
    """The request line and the headers of a request.

    ``minor`` is the minor HTTP version. ``headers`` has names in lower case; values of a repeated
    header are joined by commas. ``length`` is that of the body in bytes, ``None`` if it is chunked.
    """

    method: str
    target: str
    minor: int
    headers: Mapping[str, str]
    length: int | None

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants to send more requests on this connection."""
        options = {o.strip() for o in self.headers.get("connection", "").lower().split(",")}
        return "keep-alive" in options if self.minor == 0 else "close" not in options


class _RequestLine(NamedTuple):
    method: str
    target: str
    minor: int


class RequestParser:
    """Parses request heads from bytes that arrive in pieces of any size."""

    def __init__(self, bounds: ParserLimits) -> None:
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
    def mid_request(self) -> bool:
        """Whether a head has been received in part."""
        return bool(self._pending or self._spent or self._request)

    @property
    def held(self) -> int:
        """How many bytes are buffered: at most one head or body, and the last piece that was fed."""
        return len(self._pending) + sum(map(len, (*self._headers, *self._headers.values())))

    def feed(self, data: bytes) -> None:
        """Buffer received bytes."""
        self._pending += data

    def head(self) -> RequestHead | None:
        """Return the next request head, ``None`` if more bytes are needed.

        Raises:
            RequestRefused: it is malformed or too big; the rest of the stream cannot be parsed.
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
        """Return the body of ``length`` bytes after the last head, ``None`` if more are needed."""
        if len(self._pending) < length:
            return None
        data = bytes(self._pending[:length])
        del self._pending[:length]
        return data

    def _line(self) -> bytes | None:
        end = self._pending.find(b"\n", self._searched)
        self._check_size(self._spent + (end + 1 if end >= 0 else len(self._pending)))
        if end < 0:
            # Reject a TLS handshake, for example, without waiting for the end of a line
            if _NOT_IN_A_HEAD.search(self._pending, self._searched):
                raise RequestRefused(HTTPStatus.BAD_REQUEST, "malformed")
            self._searched = len(self._pending)
            return None
        line = bytes(self._pending[:end]).removesuffix(b"\r")
        del self._pending[: end + 1]
        self._searched = 0
        self._spent += end + 1
        if _NOT_IN_A_LINE.search(line):
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "malformed")
        return line

    def _check_size(self, size: int) -> None:
        of_line = self._request is None
        if size > (self._bounds.line if of_line else self._bounds.header_bytes):
            limit = "request_line_bytes" if of_line else "header_bytes"
            raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, limit)

    def _add_header(self, line: bytes) -> None:
        self._lines += 1
        if self._lines > self._bounds.headers:
            raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers")
        name, colon, value = line.partition(b":")
        # A continuation line (obs-fold) begins with a space, which no header name does
        if not colon or not _TOKEN.fullmatch(name):
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "malformed")
        key, text = name.decode().lower(), value.strip(b" \t").decode()
        if key not in self._headers:
            self._headers[key] = text
        elif key in _NOT_REPEATABLE:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "malformed")
        else:
            self._headers[key] += f", {text}"


def _request_line(line: bytes) -> _RequestLine:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "malformed")
    if match[3] != b"1":
        raise RequestRefused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "unsupported")
    return _RequestLine(match[1].decode(), match[2].decode(), int(match[4]))


def _framed(line: _RequestLine, headers: Mapping[str, str]) -> RequestHead:
    """Determine the length of the body (RFC 9112, section 6.3)."""
    length = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if length is not None or line.minor == 0:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "malformed")
        if coding.lower() != "chunked":
            raise RequestRefused(HTTPStatus.NOT_IMPLEMENTED, "unsupported")
        return RequestHead(*line, headers, None)
    if length is not None and not _LENGTH.fullmatch(length):
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "malformed")
    return RequestHead(*line, headers, int(length or 0))


class HttpRequest(NamedTuple):
    """A complete request; the body is empty unless the method is PUT."""

    head: RequestHead
    body: bytes


class Http1Session:
    """The protocol state of one connection: received bytes in, requests and bytes to send out.

    Call ``feed``, then ``next`` until it returns ``None``; call ``answer`` for each request before
    the next. Send ``out`` after each call. Once ``closing`` is set, received bytes are discarded,
    and the connection ends when ``out`` has been sent.

    Args:
        bounds: how much of a request is accepted.
        keep_alive: whether the connection may serve several requests, and bodies of PUTs are read.
        date: returns the value of the ``Date`` header.
    """

    def __init__(self, bounds: ParserLimits, *, keep_alive: bool, date: Callable[[], str]) -> None:
        self.out = b""
        self.closing = False
        self.refused = ""
        """The limit that the client exceeded, empty if none."""
        self._bounds = bounds
        self._keep_alive = keep_alive
        self._date = date
        self._parser = RequestParser(bounds)
        self._head: RequestHead | None = None
        self._answering = False

    @property
    def mid_request(self) -> bool:
        """Whether a request has been received in part."""
        return not self._answering and (self._head is not None or self._parser.mid_request)

    @property
    def held(self) -> int:
        """How many bytes of incomplete requests are buffered."""
        return self._parser.held

    def feed(self, data: bytes) -> None:
        """Process received bytes; after the last answer they are discarded."""
        if not self.closing:
            self._parser.feed(data)

    def next(self) -> HttpRequest | None:
        """Return the next complete request; ``None`` if there is none, or it was refused."""
        if self.closing or self._answering:
            return None
        try:
            return self._next()
        except RequestRefused as refusal:
            self.refused = refusal.limit
            self.closing = True
            text = f"{refusal.status.value} {refusal.status.phrase}\n"
            self.answer(Reply(refusal.status, TEXT, text.encode()))
            return None

    def _next(self) -> HttpRequest | None:
        begins = self._head is None
        head = self._head or self._parser.head()
        if head is None:
            return None
        self._head = head
        body = self._body(head, begins=begins) if head.method == "PUT" and self._keep_alive else b""
        if body is None:
            return None
        # A body that is not read must not be parsed as the next request
        unread = head.method != "PUT" and head.length != 0
        self.closing = unread or not (self._keep_alive and head.keeps_alive)
        self._answering = True
        return HttpRequest(head, body)

    def _body(self, head: RequestHead, *, begins: bool) -> bytes | None:
        if head.length is None:
            raise RequestRefused(HTTPStatus.LENGTH_REQUIRED, "unsupported")
        if head.length > self._bounds.body:
            raise RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_bytes")
        body = self._parser.body(head.length)
        if body is None and begins and head.headers.get("expect", "").lower() == "100-continue":
            self.out += b"HTTP/1.1 100 Continue\r\n\r\n"
        return body

    def answer(self, reply: Reply) -> None:
        """Append the answer to the last request to ``out``."""
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
