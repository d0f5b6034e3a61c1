"""Numbered steps, notes and tables on a terminal."""

import time
from collections.abc import Callable, Sequence


class Console:
    """Prints; with ``color`` it uses ANSI colours."""

    def __init__(self, *, color: bool) -> None:
        self._color = color

    def paint(self, text: str, code: str) -> str:
        """Colour a text; ``code`` is an ANSI attribute such as ``31`` (red) or ``1`` (bold)."""
        return f"\033[{code}m{text}\033[0m" if self._color else text

    def step(self, number: int, total: int, title: str, action: Callable[[], None]) -> None:
        """Print a step's title, run it, and print how long it took."""
        print(self.paint(f"[{number}/{total}] {title}", "1"), flush=True)
        began = time.monotonic()
        action()
        took = self.paint(f"({milliseconds(time.monotonic() - began)})", "2")
        print(f"      {self.paint('ok', '32')} {took}", flush=True)

    def say(self, *lines: str) -> None:
        """Print lines that belong to the current step."""
        for line in lines:
            print(f"      {line}", flush=True)

    def quote(self, *lines: str) -> None:
        """Print lines of another program's output."""
        self.say(*(self.paint(line, "36") for line in lines))

    def error(self, text: str) -> None:
        """Print an error."""
        print(f"\n{self.paint('failed:', '1;31')} {text}", flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; columns of figures are right-aligned."""
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        self.say(self.paint("  ".join(map(str.ljust, head, widths)).rstrip(), "4"))
        for row in rows:
            cells = (
                cell.rjust(width) if cell.isdecimal() else cell.ljust(width)
                for cell, width in zip(row, widths, strict=True)
            )
            self.say("  ".join(cells).rstrip())


def milliseconds(seconds: float) -> str:
    """Format a duration: ``0.4 ms``, ``12 ms``, ``1.53 s``."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
