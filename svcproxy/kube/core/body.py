"""Collects and decompresses the body of a response, up to a limit.

A few kilobytes of gzip can expand to gigabytes, so decompression stops at the limit.
"""

import zlib

_GZIP = 16 + zlib.MAX_WBITS


class Body:
    """Collects a response body.

    Args:
        encoding: the Content-Encoding: gzip, identity or empty.
        limit: the maximum size of the body, in decompressed bytes.

    Raises:
        ValueError: the encoding is not supported.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        encoding = encoding.strip().lower()
        if encoding not in {"", "identity", "gzip"}:
            raise ValueError(
                f"the body has the encoding {encoding[:40]!r}, which was not requested"
            )
        self._gzip = zlib.decompressobj(_GZIP) if encoding == "gzip" else None
        self._pieces: list[bytes] = []
        self._remaining = limit

    def feed(self, received: bytes) -> bool:
        """Add received bytes; return whether the body is still within the limit.

        Raises:
            ValueError: the compressed data is malformed.
        """
        piece = received
        if self._gzip is not None:
            if self._gzip.eof:
                raise ValueError("data follows the end of the compressed body")
            try:
                # Ask for one byte more, to detect an excess; 0 would mean unlimited.
                piece = self._gzip.decompress(received, self._remaining + 1)
            except zlib.error as error:
                raise ValueError(f"the body cannot be decompressed: {error}") from error
        self._pieces.append(piece[: self._remaining])
        self._remaining -= len(piece)
        return self._remaining >= 0

    def read(self) -> bytes:
        """Return what was received, up to the limit."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def whole(self) -> bytes:
        """Return the whole body.

        Raises:
            ValueError: the compressed data are truncated.
        """
        if self._gzip is not None and not self._gzip.eof and self._pieces:
            raise ValueError("the compressed body ends too early")
        return self.read()
