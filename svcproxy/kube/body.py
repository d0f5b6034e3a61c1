"""The body of an answer, decompressed as it comes, and never more of it than a limit.

Pure. A few kilobytes of gzip can hold gigabytes, so decompression ends at the limit.
"""

import zlib

_GZIP = 16 + zlib.MAX_WBITS


class Body:
    """Collects a body.

    Args:
        encoding: the Content-Encoding; only gzip and none at all are known.
        limit: how many bytes to collect, decompressed.

    Raises:
        ValueError: the encoding is another one.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        encoding = encoding.strip().lower()
        if encoding not in {"", "identity", "gzip"}:
            raise ValueError(f"the body has the encoding {encoding[:40]!r}, which nobody asked for")
        self._gzip = zlib.decompressobj(_GZIP) if encoding == "gzip" else None
        self._pieces: list[bytes] = []
        self._left = limit

    def feed(self, received: bytes) -> bool:
        """Take the next bytes as they were sent; tell whether the body is within the limit.

        Raises:
            ValueError: what should be compressed is not.
        """
        piece = received
        if self._gzip is not None:
            if self._gzip.eof:
                raise ValueError("the compressed body goes on behind its end")
            try:
                # One byte more than allowed shows that there is more; 0 would mean no limit.
                piece = self._gzip.decompress(received, self._left + 1)
            except zlib.error as error:
                raise ValueError(f"the body cannot be decompressed: {error}") from error
        self._pieces.append(piece[: self._left])
        self._left -= len(piece)
        return self._left >= 0

    def read(self) -> bytes:
        """Give what has come, up to the limit."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def whole(self) -> bytes:
        """Give the whole body.

        Raises:
            ValueError: it is compressed and ends too early.
        """
        if self._gzip is not None and not self._gzip.eof and self._pieces:
            raise ValueError("the compressed body ends too early")
        return self.read()
