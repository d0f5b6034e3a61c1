"""HTTP's chunked transfer coding (RFC 9112, section 7.1), taken off many chunks at a time.

Pure. The standard library gives the data of one chunk after the other, and an API server sends
an event in one or more of its own: each costs calls, and a hand-over between threads at worst.
"""

_HEXADECIMAL = b"0123456789abcdefABCDEF"
_LONGEST_LINE = 1 << 16
_LONGEST_TRAILER = 1 << 16


class MalformedChunksError(ValueError):
    """What came is not in chunks."""


class Dechunker:
    """Takes the framing off a body as it comes."""

    def __init__(self) -> None:
        self._line = b""
        self._left = 0
        self._between = False
        self._trailing = False
        self._trailer = 0
        self.ended = False
        """Whether the last chunk has come, and what may follow it."""

    def feed(self, received: bytes) -> bytes:
        """Give the data in ``received``, which goes on where the last call ended.

        Raises:
            MalformedChunksError: there is no size where one has to be, or a line or the trailer
                does not end.
        """
        received = self._line + received
        self._line = b""
        pieces, position = [], 0
        while position < len(received) and not self.ended:
            if self._left:
                piece = received[position : position + self._left]
                position += len(piece)
                self._left -= len(piece)
                self._between = not self._left
                pieces.append(piece)
                continue
            end = received.find(b"\n", position) + 1
            if not end:
                self._line = received[position:]
                if len(self._line) > _LONGEST_LINE:
                    raise MalformedChunksError("a line before a chunk does not end")
                break
            self._take_line(received[position:end].strip())
            position = end
        return b"".join(pieces)

    def _take_line(self, line: bytes) -> None:
        """Take what stands before, between or after chunks."""
        if self._trailing:
            self.ended = not line
            # Whoever waits for data would read on for ever
            self._trailer += len(line) + 2
            if self._trailer > _LONGEST_TRAILER:
                raise MalformedChunksError("the trailer does not end")
        elif self._between:
            self._between = False
            if line:
                raise MalformedChunksError(f"a chunk does not end at its end: {line[:40]!r}")
        else:
            size = line.partition(b";")[0].strip()
            if not size or size.strip(_HEXADECIMAL):
                raise MalformedChunksError(f"{size[:40]!r} is no size of a chunk")
            self._left = int(size, 16)
            self._trailing = not self._left
