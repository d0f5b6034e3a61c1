"""docs/design.md names functions and files that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/design.md").read_text(encoding="utf-8")
STOPS = 15


def _defined() -> set[str]:
    """The functions of svcproxy: ``function``, ``module.function`` and ``Class.method``."""
    found: set[str] = set()
    for path in (ROOT / "svcproxy").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                found |= {node.name, f"{path.stem}.{node.name}"}
            elif isinstance(node, ast.ClassDef):
                methods = (each for each in node.body if isinstance(each, ast.FunctionDef))
                found |= {f"{node.name}.{method.name}" for method in methods}
    return found


def _path_of_a_change() -> list[list[str]]:
    section = TEXT.partition("## The path of one change")[2].partition("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if re.match(r"\| \d+ \|", line)
    ]


def test_the_path_of_a_change_has_at_most_fifteen_stops() -> None:
    rows = _path_of_a_change()
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert 0 < len(rows) <= STOPS


def test_every_function_on_the_path_exists() -> None:
    named = re.findall(r"`([\w.]+)`", "".join("".join(row) for row in _path_of_a_change()))
    defined = _defined()
    assert len(named) > STOPS
    assert [name for name in named if name not in defined] == []


def test_every_file_exists() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.py")}
    paths = set(re.findall(r"`([\w/<>]+\.py)\b", TEXT))
    ours = {path for path in paths if "<" not in path}
    assert ours
    assert [
        path for path in ours if not any(f"/{name}".endswith(f"/{path}") for name in files)
    ] == []
