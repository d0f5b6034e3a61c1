"""The index from the guarantees of ``docs/behaviour.md`` to the tests that prove them.

Tests name their guarantees with ``@pytest.mark.behaviour("Section: Behaviour", ...)``. Running this
module writes ``docs/behaviour-tests.md``; a unit test compares it with the markers.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
GUARANTEES = ROOT / "docs" / "behaviour.md"
INDEX = ROOT / "docs" / "behaviour-tests.md"

_HEAD = """\
# Tests of each guarantee

The tests that prove the guarantees of [behaviour.md](behaviour.md), generated from their
`behaviour` markers by `.venv/bin/python -m tests.behaviour_index`. Run one with
`.venv/bin/python -m pytest tests/kernel/test_x.py -k test_y`, as root. They fail, and are not
skipped, if iptables or privileges are missing.
"""


def guarantees(text: str) -> list[tuple[str, str]]:
    """Return section and behaviour of each table row, in order."""
    found: list[tuple[str, str]] = []
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").strip()
        elif line.startswith("| ") and not line.startswith("| Behaviour "):
            found.append((section, line.split("|")[1].strip()))
    return found


def marked(folder: Path = ROOT / "tests") -> dict[str, list[str]]:
    """Return the tests of each marker text, as ``file::function``, in order of the files."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("test_*.py")):
        name = path.relative_to(folder).as_posix()
        for function in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(function, ast.FunctionDef):
                for text in _behaviours(function):
                    found[text].append(f"{name}::{function.name}")
    return found


def _behaviours(function: ast.FunctionDef) -> Iterator[str]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(
            "mark.behaviour"
        ):
            yield from (str(ast.literal_eval(argument)) for argument in decorator.args)


def index() -> str:
    """Return the text of the index."""
    tests = marked()
    lines = [_HEAD]
    last = ""
    for section, behaviour in guarantees(GUARANTEES.read_text(encoding="utf-8")):
        if section != last:
            lines += [f"\n## {section}\n", "| Behaviour | Tests |", "|---|---|"]
            last = section
        named = ", ".join(f"`{test}`" for test in tests.get(f"{section}: {behaviour}", []))
        lines.append(f"| {behaviour} | {named} |")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


if __name__ == "__main__":
    INDEX.write_text(index(), encoding="utf-8")
