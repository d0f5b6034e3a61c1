"""``docs/commands.md`` names all commands, exit codes and reasons."""

import re
from pathlib import Path

from svcproxy.commands.core.exit_codes import ExitCode
from svcproxy.state.reasons import Reason

TEXT = (Path(__file__).parents[3] / "docs" / "commands.md").read_text(encoding="utf-8")


def test_exit_codes() -> None:
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)]
    assert codes == sorted(ExitCode)


def test_reasons() -> None:
    named = set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", TEXT))
    assert {reason.value for reason in Reason} <= named


def test_there_is_a_section_on_show() -> None:
    assert "\n## svcproxy show\n" in TEXT
