"""Decodes HTTP's chunked transfer coding (RFC 9112, section 7.1), many chunks per call.

The standard library returns one chunk per call, and an API server sends each watch event in one or
more chunks: every call has a cost, in the worst case a switch between threads.
"""

_HEXADECIMAL = b"0123456789abcdefABCDEF"
_LONGEST_LINE = 1 << 16
_LONGEST_TRAILER = 1 << 16


class MalformedChunksError(ValueError):
    """The data do not conform to the chunked transfer coding."""


class Dechunker:
    """Removes the chunk framing from a body, incrementally."""

    def __init__(self) -> None:
        self._line = b""
        self._remaining = 0
        self._between = False
        self._trailing = False
        self._trailer = 0
        self.ended = False
        """Whether the last chunk and the trailer are complete."""

    def feed(self, received: bytes) -> bytes:
        """Return the body data in ``received``, which continues the previous call's bytes.

        Raises:
            MalformedChunksError: a chunk size is missing or malformed, or a line or the trailer
                exceeds its limit.
        """
        received = self._line + received
        self._line = b""
        pieces, position = [], 0
        while position < len(received) and not self.ended:
            if self._remaining:
                piece = received[position : position + self._remaining]
                position += len(piece)
                self._remaining -= len(piece)
                self._between = not self._remaining
                pieces.append(piece)
                continue
            end = received.find(b"\n", position) + 1
            if not end:
                self._line = received[position:]
                if len(self._line) > _LONGEST_LINE:
                    raise MalformedChunksError("a line before a chunk does not end")
                break
            self._process_line(received[position:end].strip())
            position = end
        return b"".join(pieces)

    def _process_line(self, line: bytes) -> None:
        """Process a line before, between or after chunks."""
        if self._trailing:
            self.ended = not line
            # Without a limit, the reader would wait for data forever.
            self._trailer += len(line) + 2
            if self._trailer > _LONGEST_TRAILER:
                raise MalformedChunksError("the trailer does not end")
        elif self._between:
            self._between = False
            if line:
                raise MalformedChunksError(f"data after the end of a chunk: {line[:40]!r}")
        else:
            size = line.partition(b";")[0].strip()
            if not size or size.strip(_HEXADECIMAL):
                raise MalformedChunksError(f"{size[:40]!r} is not a chunk size")
            self._remaining = int(size, 16)
            self._trailing = not self._remaining
