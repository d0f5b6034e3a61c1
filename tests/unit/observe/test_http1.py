"""The framing rules of HTTP/1.1, and the parser's limits."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.observe.core.http1 import (
    Http1Session,
    HttpRequest,
    ParserLimits,
    RequestHead,
    RequestParser,
    RequestRefused,
)
from svcproxy.observe.core.routes import TEXT, Reply

HOST = b"Host: x\r\n"
END = b"\r\n"
GET = b"GET / HTTP/1.1\r\n"
PUT = b"PUT / HTTP/1.1\r\n"


def parse(data: bytes) -> RequestHead | None:
    parser = RequestParser(ParserLimits())
    parser.feed(data)
    return parser.head()


def session(*, keep_alive: bool = True) -> Http1Session:
    return Http1Session(ParserLimits(), keep_alive=keep_alive, date=lambda: "now")


def say(data: bytes, *, keep_alive: bool = True) -> tuple[list[HttpRequest], Http1Session]:
    """Send requests and answer each with ``ok``."""
    made, asked = session(keep_alive=keep_alive), []
    made.feed(data)
    while (request := made.next()) is not None:
        asked.append(request)
        made.answer(Reply(200, TEXT, b"ok"))
    return asked, made


def test_a_request() -> None:
    head = parse(b"GET /metrics?x=y HTTP/1.1\r\nHost: x\r\nAccept:  a \r\naccept: b\r\n\r\n")
    assert head is not None
    assert (head.method, head.target, head.minor, head.length) == ("GET", "/metrics?x=y", 1, 0)
    assert head.headers == {"host": "x", "accept": "a, b"}


@pytest.mark.parametrize(
    "data",
    [
        GET + HOST + END,
        b"\r\n\r\n" + GET + END,
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"BREW * HTTP/1.0\r\n\r\n",
        GET + b"a:\r\nb: \t\r\nc: d\te\r\n\r\n",
        GET + b"Transfer-Encoding: Chunked\r\n\r\n",
        PUT + b"Content-Length: 0007\r\n\r\n",
        b"GET /" + b"a" * 4080 + b" HTTP/1.1\r\n\r\n",
        GET + b"a: b\r\n" * 64 + END,
    ],
)
def test_accepted_requests(data: bytes) -> None:
    assert parse(data) is not None


MALFORMED = [
    b"nonsense\r\n",
    b"GET /\r\n",
    b"GET  / HTTP/1.1\r\n",
    b"GET / HTTP/1.1 \r\n",
    b" GET / HTTP/1.1\r\n",
    b"GET /\xc3\xa9 HTTP/1.1\r\n",
    b"GET /\0 HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\r\n",
    b"GET /\rX: y HTTP/1.1\r\n",
    b"GET / http/1.1\r\n",
    b"G(T / HTTP/1.1\r\n",
    b"\x16\x03\x01\x02\x00",
    GET + b" folded\r\n\r\n",
    GET + b"a: b\r\n c\r\n\r\n",
    GET + b"a: b\r\n\tc\r\n\r\n",
    GET + b"a : b\r\n\r\n",
    GET + b": b\r\n\r\n",
    GET + b"ab\r\n\r\n",
    GET + b"a: b\rc\r\n\r\n",
    GET + b"a: \0\r\n\r\n",
    GET + b"a: \x7f\r\n\r\n",
    GET + b"a: \xff\r\n\r\n",
    GET + HOST + HOST + END,
    PUT + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n",
    PUT + b"Content-Length: 3, 3\r\n\r\n",
    PUT + b"Content-Length: +3\r\n\r\n",
    PUT + b"Content-Length: -3\r\n\r\n",
    PUT + b"Content-Length: 0x3\r\n\r\n",
    PUT + b"Content-Length: \r\n\r\n",
    PUT + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    PUT + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    PUT + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
]


@pytest.mark.parametrize("data", MALFORMED)
def test_malformed_requests(data: bytes) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse(data)
    assert (caught.value.status, caught.value.limit) == (400, "malformed")


@pytest.mark.parametrize(
    ("data", "status", "limit"),
    [
        (b"a" * 4097, 431, "request_line_bytes"),
        (b"GET /" + b"a" * 4096 + b" HTTP/1.1\r\n", 431, "request_line_bytes"),
        (b"\r\n" * 2049, 431, "request_line_bytes"),
        (GET + b"a" * 8193, 431, "header_bytes"),
        (GET + b"a: " + b"b" * 8200 + b"\r\n\r\n", 431, "header_bytes"),
        (GET + b"a: b\r\n" * 65, 431, "headers"),
        (b"GET / HTTP/2.0\r\n", 505, "unsupported"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "unsupported"),
        (b"GET / HTTP/0.9\r\n", 505, "unsupported"),
        (PUT + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "unsupported"),
    ],
)
def test_requests_beyond_limits_or_unsupported(data: bytes, status: int, limit: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse(data)
    assert (caught.value.status, caught.value.limit) == (status, limit)


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"close", False),
        (b"1.1", b"x, Close", False),
        (b"1.0", b"", False),
        (b"1.0", b"Keep-Alive", True),
    ],
)
def test_how_long_a_connection_is_kept(version: bytes, connection: bytes, *, kept: bool) -> None:
    header = b"Connection: " + connection + END if connection else b""
    _, made = say(b"GET / HTTP/" + version + END + header + END)
    assert made.closing is not kept
    assert (b"\r\nConnection: close\r\n" in made.out) is not kept
    assert (b"\r\nConnection: keep-alive\r\n" in made.out) is (version == b"1.0" and kept)


def test_requests_in_one_piece_are_answered_in_turn() -> None:
    asked, made = say(GET + END + PUT + b"Content-Length: 2\r\n\r\nhi" + GET + END)
    assert [(a.head.method, a.body) for a in asked] == [("GET", b""), ("PUT", b"hi"), ("GET", b"")]
    assert made.out.count(b"HTTP/1.1 200 OK\r\n") == 3


def test_a_body_that_is_not_read_ends_the_connection() -> None:
    for header in (b"Content-Length: 20\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
        asked, made = say(b"POST / HTTP/1.1\r\n" + header + GET + END)
        assert (len(asked), made.closing) == (1, True)


@pytest.mark.parametrize(
    ("header", "status", "limit"),
    [
        (b"Content-Length: 4097\r\n", b"413", "body_bytes"),
        (b"Content-Length: 999999999999999999\r\n", b"413", "body_bytes"),
        (b"Transfer-Encoding: chunked\r\n", b"411", "unsupported"),
    ],
)
def test_bodies_that_are_refused(header: bytes, status: bytes, limit: str) -> None:
    asked, made = say(PUT + header + END)
    assert (asked, made.refused, made.closing) == ([], limit, True)
    assert made.out.startswith(b"HTTP/1.1 " + status)


def test_expect_100_continue_is_answered() -> None:
    made = session()
    made.feed(PUT + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert made.next() is None
    assert made.out == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert made.next() is None
    assert made.out.count(b"100") == 1
    made.feed(b"hi")
    request = made.next()
    assert request is not None
    assert request.body == b"hi"


def test_without_keep_alive_bodies_are_not_read() -> None:
    asked, made = say(PUT + b"Content-Length: 999999\r\n\r\n", keep_alive=False)
    assert (len(asked), made.closing) == (1, True)


def test_data_after_the_last_request_is_discarded() -> None:
    _, made = say(b"nonsense\r\n")
    for _ in range(10):
        made.feed(bytes(100_000))
    assert made.next() is None
    assert made.out.count(b"HTTP/1.1") == 1


@given(data=st.sampled_from([*MALFORMED, GET + HOST + END + GET]), cuts=st.sets(st.integers(0, 60)))
def test_requests_may_arrive_in_any_pieces(data: bytes, cuts: set[int]) -> None:
    places = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    made, requests = session(), 0
    for start, end in pairwise(places):
        made.feed(data[start:end])
        while made.next() is not None:
            requests += 1
            made.answer(Reply(200, TEXT, b"ok"))
    whole, at_once = say(data)
    assert (requests, made.out, made.refused) == (len(whole), at_once.out, at_once.refused)
