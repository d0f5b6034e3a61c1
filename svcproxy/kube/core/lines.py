"""Splits a watch stream into lines, from chunks of any size.

The cost is linear in the number of bytes, however small the chunks are. Only the head of a line
that exceeds the limit is kept.
"""

import msgspec

_HEAD_BYTES = 4096


class LongLine(msgspec.Struct, frozen=True, gc=False):
    """The head of a line that exceeds the limit; it may still name the object."""

    head: bytes


class LineSplitter:
    """Splits a stream into lines.

    Args:
        limit: the maximum length of a line, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self._skipping = False

    def feed(self, chunk: bytes) -> list[bytes | LongLine]:
        """Add a chunk; return the lines that it completes, without line ends.

        Empty lines are skipped: decoding one takes longer than sending one. A line that exceeds the
        limit is returned as soon as it does; its rest is skipped.
        """
        first, *others = chunk.split(b"\n")
        lines: list[bytes | LongLine] = []
        self._append(first, lines)
        if not others:
            return lines
        self._end(lines)
        last = others.pop()
        lines += [
            line if len(line) <= self._limit else LongLine(line[:_HEAD_BYTES])
            for line in others
            if line.strip() or len(line) > self._limit
        ]
        self._append(last, lines)
        return lines

    def _append(self, piece: bytes, lines: list[bytes | LongLine]) -> None:
        """Append to the incomplete line."""
        if self._skipping or not piece:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            lines.append(LongLine(b"".join(self._pieces)[:_HEAD_BYTES]))
            self._pieces, self._size = [], 0
            self._skipping = True

    def _end(self, lines: list[bytes | LongLine]) -> None:
        """Complete the incomplete line."""
        if not self._skipping:
            pieces = self._pieces
            line = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if line.strip():
                lines.append(line)
            self._pieces, self._size = [], 0
        self._skipping = False
