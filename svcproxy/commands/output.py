"""The output of commands: text for people, JSON for programs.

Names and texts from the API, from other processes and from the kernel reach a terminal here only,
so control characters are escaped in one place.
"""

import os
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TextIO

import msgspec

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Style(StrEnum):
    """A terminal style by its meaning; the value is the parameter of the escape sequence."""

    PLAIN = ""
    GOOD = "32"
    BAD = "31"
    WARNING = "33"
    STRONG = "1"
    FAINT = "2"


class Cell(msgspec.Struct, frozen=True):
    """A text with a style."""

    text: str
    style: Style = Style.PLAIN


def escaped(text: str) -> str:
    r"""Return a text with control and bidirectional characters as ``\\x1b`` or ``\\u202e``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _in_one_line(text: str) -> str:
    r"""Return an escaped text in one line: a line break in a name becomes ``\\n``."""
    return escaped(text).replace("\n", "\\n")


class Output:
    """Where a command writes its result.

    Args:
        stream: the stream, usually stdout.
        as_json: whether to write JSON (``-o json``).
        colour: whether to use colour; ``None`` for only on a terminal, unless ``NO_COLOR`` is set.
    """

    def __init__(
        self, stream: TextIO, *, as_json: bool = False, colour: bool | None = None
    ) -> None:
        self._stream = stream
        self.as_json = as_json
        if colour is None:
            colour = stream.isatty() and not os.environ.get("NO_COLOR")
        self._colour = colour and not as_json

    def document(self, document: msgspec.Struct) -> None:
        """Write a document as JSON, in one line if the stream is not a terminal."""
        data = msgspec.json.encode(document)
        if self._stream.isatty():
            data = msgspec.json.format(data)
        # JSON escapes C0 control characters only; the others can occur in strings only.
        text = _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", data.decode())
        self._stream.write(text + "\n")
        self._stream.flush()

    def styled(self, cell: str | Cell) -> str:
        """Return a text for this stream: escaped, and with its style if there is colour."""
        if isinstance(cell, str):
            return _in_one_line(cell)
        text = _in_one_line(cell.text)
        return f"\x1b[{cell.style}m{text}\x1b[0m" if self._colour and cell.style else text

    def line(self, *cells: str | Cell) -> None:
        """Write a line of texts, without separators."""
        self._stream.write("".join(map(self.styled, cells)) + "\n")

    def table(
        self, rows: Iterable[Sequence[str | Cell]], header: Sequence[str] = (), indent: int = 0
    ) -> None:
        """Write rows in aligned columns; the last column is not padded."""
        lines: list[Sequence[str | Cell]] = [*([header] if header else []), *rows]
        plain = [[_in_one_line(c if isinstance(c, str) else c.text) for c in row] for row in lines]
        columns = max(map(len, plain), default=0)
        widths = [
            max((len(row[i]) for row in plain if i < len(row)), default=0) for i in range(columns)
        ]
        for row, texts in zip(lines, plain, strict=True):
            parts = [
                self.styled(cell) + " " * (width - len(text) if n < len(row) - 1 else 0)
                for n, (cell, text, width) in enumerate(zip(row, texts, widths, strict=False))
            ]
            self._stream.write((" " * indent + "  ".join(parts)).rstrip() + "\n")

    def clear(self) -> None:
        """Clear the screen, if the stream is a terminal."""
        if self._stream.isatty():
            self._stream.write("\x1b[H\x1b[2J")

    def flush(self) -> None:
        """Write what is buffered."""
        self._stream.flush()
