"""Structured inputs from raw bytes, so that a fuzzer reaches the code behind a parser."""

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


class Source:
    """Reads decisions from bytes; when these are used up, each further decision is the simplest one.

    Args:
        data: the bytes of the fuzzer.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been read yet."""
        return len(self._data) - self._at

    def number(self, below: int) -> int:
        """Return a number from 0 to ``below`` - 1; 0 when the bytes are used up."""
        size = max(1, ((below - 1).bit_length() + 7) // 8)
        return int.from_bytes(self.take(size), "big") % below

    def flag(self) -> bool:
        """Return yes or no; no when the bytes are used up."""
        return bool(self.number(2))

    def choice(self, values: Sequence[_T]) -> _T:
        """Return one of the values; the first when the bytes are used up."""
        return values[self.number(len(values))]

    def take(self, size: int) -> bytes:
        """Return up to ``size`` bytes as they are."""
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.take(self.left)

    def text(self, longest: int = 64) -> str:
        """Return text: the next byte is its length, the bytes after that its UTF-8.

        Invalid UTF-8 becomes lone surrogates, which JSON may carry as escapes.
        """
        return self.take(self.number(longest + 1)).decode("utf-8", "surrogateescape")

    def pieces(self, whole: bytes, most: int = 8) -> list[bytes]:
        """Cut bytes into up to ``most`` pieces, as a socket may deliver them."""
        pieces = []
        for _ in range(self.number(most)):
            cut = self.number(len(whole) + 1)
            pieces.append(whole[:cut])
            whole = whole[cut:]
        return [*pieces, whole]
