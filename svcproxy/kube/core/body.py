"""Collects the body of a response, decompressed, up to a limit.

Pure. A few kilobytes of gzip can hold gigabytes, so decompression stops at the limit.
"""

import zlib

_GZIP = 16 + zlib.MAX_WBITS


class Body:
    """Collects a body.

    Args:
        encoding: the Content-Encoding: gzip, identity, or empty.
        limit: the longest body, in decompressed bytes.

    Raises:
        ValueError: the encoding is unknown.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        encoding = encoding.strip().lower()
        if encoding not in {"", "identity", "gzip"}:
            raise ValueError(
                f"the body has the encoding {encoding[:40]!r}, which was not requested"
            )
        self._gzip = zlib.decompressobj(_GZIP) if encoding == "gzip" else None
        self._pieces: list[bytes] = []
        self._left = limit

    def feed(self, received: bytes) -> bool:
        """Add the next bytes as they were sent; return whether the body is within the limit.

        Raises:
            ValueError: the compressed data is malformed.
        """
        piece = received
        if self._gzip is not None:
            if self._gzip.eof:
                raise ValueError("data follows the end of the compressed body")
            try:
                # One byte more than allowed: it shows an excess, and 0 would mean no limit.
                piece = self._gzip.decompress(received, self._left + 1)
            except zlib.error as error:
                raise ValueError(f"the body cannot be decompressed: {error}") from error
        self._pieces.append(piece[: self._left])
        self._left -= len(piece)
        return self._left >= 0

    def read(self) -> bytes:
        """Return what was received, up to the limit."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def whole(self) -> bytes:
        """Return the whole body.

        Raises:
            ValueError: the compressed data ends too early.
        """
        if self._gzip is not None and not self._gzip.eof and self._pieces:
            raise ValueError("the compressed body ends too early")
        return self.read()
