import http.client
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcproxy.kube.core.chunked import Dechunker, MalformedChunksError


class Sock:
    """The part of a socket that a response uses."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + self._data)


def by_the_library(body: bytes) -> bytes:
    response = http.client.HTTPResponse(Sock(body))  # type: ignore[arg-type]
    response.begin()
    return response.read()


CHUNK = st.tuples(
    st.binary(min_size=1, max_size=20), st.sampled_from([b"", b";x=y", b' ; q="1"']), st.booleans()
)


@given(st.lists(CHUNK), st.sampled_from([b"", b"Checksum: 1\r\n"]), st.data())
def test_any_split_decodes_like_the_standard_library(
    chunks: list[tuple[bytes, bytes, bool]], trailer: bytes, data: st.DataObject
) -> None:
    body = b"".join(
        (b"%X" if upper else b"%x") % len(piece) + extension + b"\r\n" + piece + b"\r\n"
        for piece, extension, upper in chunks
    )
    body += b"0\r\n" + trailer + b"\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    dechunker, found = Dechunker(), b""
    for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        assert not dechunker.ended or begin == len(body)
        found += dechunker.feed(body[begin:end])
    assert found == by_the_library(body)
    assert dechunker.ended


@pytest.mark.parametrize(
    "body",
    [b"\r\n", b"x\r\n", b"-1\r\n", b"0x1\r\na", b"1\r\nab\r\n", b"1" * 70000],
    ids=["nothing", "no number", "negative", "prefix", "too long a chunk", "endless line"],
)
def test_malformed_chunks_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedChunksError):
        Dechunker().feed(body)


def test_a_trailer_without_end_is_refused() -> None:
    """An endless trailer yields no data, so a reader would wait forever."""
    dechunker = Dechunker()
    assert dechunker.feed(b"1\r\na\r\n0\r\n" + b"X: y\r\n" * 1000) == b"a"
    with pytest.raises(MalformedChunksError, match="trailer does not end"):
        dechunker.feed(b"X: y\r\n" * 10_000)
