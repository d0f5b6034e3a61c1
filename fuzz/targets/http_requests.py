"""Requests to svcproxy's HTTP ports, in any pieces.

Each gets a valid answer or none, memory is bounded, and a client beside it is answered at once.
"""

import re
import selectors
import socket
from contextlib import ExitStack

from fuzz.structure import Source
from svcproxy.observe.client_connections import ClientConnections, ClientLimits, HttpHandler
from svcproxy.observe.core.http1 import Http1Session, HttpRequest, ParserLimits
from svcproxy.observe.core.routes import TEXT, Reply

SEEDS: tuple[bytes, ...] = (
    b"",
    b"\0GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\0GET / HTTP/1.0\n\nGET / HTTP/1.1\n\n",
    b"\0PUT /debug/flags/v HTTP/1.1\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n4",
    b"\0PUT / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"\0GET / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"\0GET / HTTP/1.1\r\na: b\r\n folded\r\n\r\n",
    b"\0PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\0\x16\x03\x01\x02\x00",
    b"\0" + b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100,
    b"\1" + bytes(range(64)),
    b"\1" + b"\x05\x06\x07\x08" * 40,
)

# Parts of requests; the generator joins them in any order
_PARTS = (
    b"GET / HTTP/1.1\r\n",
    b"HEAD /x?y=z HTTP/1.1\r\n",
    b"PUT / HTTP/1.1\r\n",
    b"POST / HTTP/1.0\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"Host: x\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 4096\r\n",
    b"Content-Length: " + b"1" * 30 + b"\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"hello",
    b" ",
    b"\0",
    b"\xff",
    b"a: " + b"b" * 2000 + b"\r\n",
    b"a" * 4000,
    b"a: b\r\n" * 20,
    bytes(5000),
)
_ANSWER = re.compile(
    rb"(?:HTTP/1\.1 100 Continue\r\n\r\n)?"
    rb"HTTP/1\.1 [2-5][0-9]{2} [A-Za-z -]+\r\n(?:[A-Za-z-]+: [\x20-\x7e]+\r\n)+\r\n([^\r]*)"
)
_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n")
_GOOD = b"GET /good HTTP/1.1\r\nHost: x\r\n\r\n"
_CHUNK = 4096
_BOUNDS = ParserLimits()
_MOST_HELD = max(_BOUNDS.line + _BOUNDS.header_bytes, _BOUNDS.body) + _CHUNK


def check(data: bytes) -> None:
    """Send one input as the only client, and beside a well-behaved client."""
    source = Source(data)
    keep_alive = True
    if source.number(256) % 2:
        keep_alive = source.flag()
        whole = b"".join(source.choice(_PARTS) for _ in range(source.number(64)))
    else:
        whole = source.rest()
    pieces = (
        source.pieces(whole)
        if source.left
        else [*(whole[i : i + 7] for i in range(0, 70, 7)), whole[70:]]
    )
    pieces = [p[i : i + _CHUNK] for p in pieces for i in range(0, len(p), _CHUNK)]
    _converse(pieces, keep_alive=keep_alive)
    _beside_another(pieces, keep_alive=keep_alive)


def _converse(pieces: list[bytes], *, keep_alive: bool) -> None:
    session = Http1Session(_BOUNDS, keep_alive=keep_alive, date=lambda: "now")
    for piece in pieces:
        session.feed(piece)
        while (request := session.next()) is not None:
            assert len(request.body) <= _BOUNDS.body
            session.answer(Reply(200, TEXT, b"ok"))
            _check_answer(session.out, request)
            session.out = b""
        assert session.held <= _MOST_HELD, session.held
        if session.refused:
            assert session.closing
            _check_answer(session.out, None)
            return
        if session.closing:
            return


def _check_answer(out: bytes, request: HttpRequest | None) -> None:
    match = _ANSWER.fullmatch(out)
    length = _LENGTH.search(out)
    assert match is not None, out
    assert length is not None, out
    bodiless = request is not None and request.head.method == "HEAD"
    assert len(match[1]) == (0 if bodiless else int(length[1])), out


def _beside_another(pieces: list[bytes], *, keep_alive: bool) -> None:
    handler = HttpHandler(lambda _request: Reply(200, TEXT, b"ok"), keep_alive=keep_alive)
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        connections = ClientConnections(selector, ClientLimits(connections=2))
        stack.callback(connections.close)
        hostile = _client(stack, connections, handler, b"hostile")
        for piece in pieces:
            try:
                hostile.send(piece)
            except OSError:
                break
            _turn(selector, connections)
        good = _client(stack, connections, handler, b"good", _GOOD)
        _turn(selector, connections)
        assert good.recv(_CHUNK).startswith(b"HTTP/1.1 200 OK\r\n")


def _client(
    stack: ExitStack,
    connections: ClientConnections,
    handler: HttpHandler,
    peer: bytes,
    sent: bytes = b"",
) -> socket.socket:
    ours, theirs = socket.socketpair()
    stack.enter_context(theirs)
    theirs.settimeout(0)
    if sent:
        theirs.send(sent)
    connections.add(ours, peer, handler)
    return theirs


def _turn(selector: selectors.BaseSelector, connections: ClientConnections) -> None:
    for key, _ in selector.select(0):
        connections.serve(key.data)
    connections.serve_pipelined()
