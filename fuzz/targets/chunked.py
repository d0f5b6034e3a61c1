"""HTTP's chunked transfer coding: any bytes, and valid chunks, in any pieces."""

from collections.abc import Iterable

from fuzz.apibytes import Source
from svcproxy.kube.core.chunked import Dechunker, MalformedChunksError

SEEDS: tuple[bytes, ...] = (
    b"",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;x=y\r\nhello\r\n0\r\nTrailer: 1\r\n\r\n",
    b"ffffffffffffffffffff\r\n",
    b"-1\r\n",
    b"5\r\nhelloworld",
)


def check(data: bytes) -> None:
    """Decode; the result must not depend on the pieces, and valid chunks must decode to the body."""
    source = Source(data)
    assert _decode([data]) == _decode(source.pieces(data))
    chunks = [source.take(source.number(300)) for _ in range(source.number(10))]
    sent = b"".join(b"%x;e=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks if chunk)
    sent += b"0\r\nT: 1\r\n\r\n"
    assert _decode(source.pieces(sent)) == (b"".join(chunks), True, False)


def _decode(pieces: Iterable[bytes]) -> tuple[bytes, bool, bool]:
    """Return the data before the first error, whether the body ended, and whether there was an error."""
    dechunker, found = Dechunker(), b""
    for piece in pieces:
        # Byte by byte, because a call that fails returns no data.
        try:
            found += dechunker.feed(piece)
        except MalformedChunksError:
            return b"", False, True
    return found, dechunker.ended, False
