"""The input of iptables-restore as text, and a last check of it.

Rendering already quotes or refuses any text that could break a rule. This module is the second line
of defence: each rule must be exactly one line, no longer than the buffer of iptables-restore, which
would read the rest of a longer line as another line.
"""

import re
from collections.abc import Sequence

from svcproxy.backends.base import TransactionError

LINE_BYTES = 10_000
"""iptables-restore reads lines into a buffer of 10,240 bytes."""
_FAILED_LINE = re.compile(r"(?m)(?:^|: )(?:Error occurred at )?line:? (\d+)\b")


class RestoreRefused(TransactionError):  # noqa: N818 - states what happened, not a fault
    """iptables-restore, or the check before it, refused an input because of its contents.

    Attributes:
        lines: the input lines that iptables-restore named as the cause. Empty if it named none, for
            example because the kernel refused a legacy table as a whole.
        partial: whether a table before the refused one may have been committed.
    """

    def __init__(self, message: str, lines: tuple[str, ...] = (), *, partial: bool = False) -> None:
        super().__init__(message)
        self.lines = lines
        self.partial = partial


def join_lines(lines: Sequence[str]) -> str:
    """Join the lines of a restore input.

    Raises:
        RestoreRefused: iptables-restore would not read a line as exactly this line.
    """
    text = "\n".join((*lines, "")) if lines else ""
    if not _is_sound(text, lines):
        unsound = tuple(line for line in lines if not _is_sound(f"{line}\n", (line,)))
        shown = "; ".join(ascii(line[:200]) for line in unsound[:3])
        raise RestoreRefused(f"not sent to iptables-restore: {shown}", unsound)
    return text


def _is_sound(text: str, lines: Sequence[str]) -> bool:
    return (
        text.count("\n") == len(lines)
        and "\0" not in text
        and "\r" not in text
        and _is_narrow(text)
        # A backslash escapes a quote. Only rules of other programs, to be deleted, have one.
        and ("\\" in text or not any(line.count('"') & 1 for line in lines if '"' in line))
        and (text.isascii() or max(len(line.encode(*ENCODING)) for line in lines) <= LINE_BYTES)
    )


def _is_narrow(text: str) -> bool:
    """Whether all lines are short enough: any ``LINE_BYTES`` in a row must hold a line end."""
    begin = 0
    while len(text) - begin > LINE_BYTES:
        end = text.rfind("\n", begin, begin + LINE_BYTES + 1)
        if end < 0:
            return False
        begin = end + 1
    return True


ENCODING = ("utf-8", "surrogateescape")
"""Encoding and error handler for the text of rules; preserves bytes that are not UTF-8."""


def refusal(program: str, stderr: str, text: str) -> RestoreRefused:
    """Return the error for a failed restore.

    Args:
        program: the name of the program.
        stderr: its error output.
        text: its input.
    """
    message = " ".join(stderr.split())[:500] or "failed without a message"
    lines = text.split("\n")
    numbers = sorted({n for found in _FAILED_LINE.findall(stderr) if (n := _number(found))})
    named = [(n, lines[n - 1]) for n in numbers if n <= len(lines)]
    if named:
        number, line = named[0]
        message += f" [input line {number}: {line[:300]}]"
    first = named[0][0] if named else len(lines)
    partial = "COMMIT" in lines[: first - 1]
    # A refused COMMIT does not identify the cause.
    causes = tuple(line for _, line in named if line != "COMMIT")
    return RestoreRefused(f"{program}: {message}", causes, partial=partial)


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 10 else 0
