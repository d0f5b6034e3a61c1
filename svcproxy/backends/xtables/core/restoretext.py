"""The input of iptables-restore as text: the last check before it leaves the process.

The renderers quote or refuse anything that could break a rule. This is the second barrier: a rule is
exactly one line, and no line is longer than iptables-restore's buffer. iptables-restore would split
a longer line and read the rest as a line of its own.
"""

import re
from collections.abc import Sequence

from svcproxy.backends.base import TransactionError

LINE_BYTES = 10_000
"""iptables-restore reads lines into a buffer of 10,240 bytes."""
_FAILED_LINE = re.compile(r"(?m)(?:^|: )(?:Error occurred at )?line:? (\d+)\b")


class RestoreRefused(TransactionError):  # noqa: N818 - as the kernel's refusals are called
    """iptables-restore, or our own check before it, refused an input because of its contents.

    Attributes:
        lines: the input lines that iptables-restore named as the cause; empty if it named none,
            for example because the kernel refused a legacy table as a whole.
        partial: whether a table before the refused one may have been committed.
    """

    def __init__(self, message: str, lines: tuple[str, ...] = (), *, partial: bool = False) -> None:
        super().__init__(message)
        self.lines = lines
        self.partial = partial


def joined(lines: Sequence[str]) -> str:
    """Join the lines of a restore input.

    Raises:
        RestoreRefused: a line would be read as more than one, or not as written.
    """
    text = "\n".join((*lines, "")) if lines else ""
    if not _is_sound(text, lines):
        unsound = tuple(line for line in lines if not _is_sound(f"{line}\n", (line,)))
        shown = "; ".join(ascii(line[:200]) for line in unsound[:3])
        raise RestoreRefused(f"not given to iptables-restore: {shown}", unsound)
    return text


def _is_sound(text: str, lines: Sequence[str]) -> bool:
    return (
        text.count("\n") == len(lines)
        and "\0" not in text
        and "\r" not in text
        and _is_narrow(text)
        # A backslash escapes within quotes; only foreign rules that are to be deleted have one.
        and ("\\" in text or not any(line.count('"') & 1 for line in lines if '"' in line))
        and (text.isascii() or max(len(line.encode(*ENCODING)) for line in lines) <= LINE_BYTES)
    )


def _is_narrow(text: str) -> bool:
    """Whether all lines are short enough; looks for one line end in each stretch of that length."""
    begin = 0
    while len(text) - begin > LINE_BYTES:
        end = text.rfind("\n", begin, begin + LINE_BYTES + 1)
        if end < 0:
            return False
        begin = end + 1
    return True


ENCODING = ("utf-8", "surrogateescape")
"""Encoding and error handler for text of iptables: bytes that are not UTF-8 are preserved."""


def refusal(program: str, stderr: str, text: str) -> RestoreRefused:
    """Return the error for a failed restore.

    Args:
        program: the name of the program.
        stderr: what it said.
        text: its input.
    """
    said = " ".join(stderr.split())[:500] or "failed without a message"
    lines = text.split("\n")
    numbers = sorted({n for found in _FAILED_LINE.findall(stderr) if (n := _number(found))})
    named = [(n, lines[n - 1]) for n in numbers if n <= len(lines)]
    if named:
        number, line = named[0]
        said += f" [input line {number}: {line[:300]}]"
    first = named[0][0] if named else len(lines)
    partial = "COMMIT" in lines[: first - 1]
    # A COMMIT that failed says nothing about the cause.
    causes = tuple(line for _, line in named if line != "COMMIT")
    return RestoreRefused(f"{program}: {said}", causes, partial=partial)


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 10 else 0
