"""Text and JSON output of the commands."""

import io
import json

import msgspec
import pytest

from svcproxy.commands.output import Cell, Output, Style, escaped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", ["\x1b[31m", "a\rb", "a\x00b", "\x9b2J", "\u202eabc", "a\u2028b"])
def test_text_that_steers_a_terminal_is_escaped(text: str) -> None:
    shown = escaped(text)
    assert shown.isascii()
    assert shown.isprintable()


def test_a_line_break_in_a_name_begins_no_line() -> None:
    stream = io.StringIO()
    output = Output(stream)
    output.line("a\nb")
    output.table([("c\nd", Cell("e\nf")), ("g", "h")])
    assert stream.getvalue() == "a\\nb\nc\\nd  e\\nf\ng     h\n"


def test_columns_align_and_lines_have_no_trailing_blanks() -> None:
    stream = io.StringIO()
    Output(stream).table([("a", "bb", ""), ("ccc", "d", "e")], ("ONE", "TWO", "3"))
    assert stream.getvalue() == "ONE  TWO  3\na    bb\nccc  d    e\n"


def test_colour_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    cell = Cell("bad", Style.BAD)
    assert Output(Terminal()).styled(cell) == "\x1b[31mbad\x1b[0m"
    assert Output(io.StringIO()).styled(cell) == "bad"
    assert Output(Terminal(), as_json=True).styled(cell) == "bad"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Output(Terminal()).styled(cell) == "bad"


def test_a_document_is_one_line_for_programs() -> None:
    class Thing(msgspec.Struct):
        name: str

    stream = io.StringIO()
    Output(stream, as_json=True).document(Thing("a\nb\x1b"))
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line) == {"name": "a\nb\x1b"}


def test_a_document_does_not_steer_a_terminal() -> None:
    class Thing(msgspec.Struct):
        name: str

    stream = Terminal()
    Output(stream, as_json=True).document(Thing("\x9b2J\u202ea\x7f"))
    assert stream.getvalue().isascii()
    assert json.loads(stream.getvalue()) == {"name": "\x9b2J\u202ea\x7f"}
