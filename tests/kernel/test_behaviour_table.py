"""The table of behaviours names existing tests only, and all tests that it must name."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parent.parent / "docs" / "behaviour.md"
_ID = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def _named() -> set[tuple[str, str]]:
    return set(_ID.findall(TABLE.read_text(encoding="utf-8")))


def _existing(module: str) -> set[tuple[str, str]]:
    path = HERE / module
    if not path.exists():
        return set()
    functions = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {(module, function) for function in functions}


def test_every_named_test_exists() -> None:
    named = _named()
    assert len(named) > 100
    assert not named - {test for module, _ in named for test in _existing(module)}


def test_every_line_names_a_test() -> None:
    rows = [
        line
        for line in TABLE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| Behaviour")
    ]
    assert len(rows) > 50
    assert not [row for row in rows if not _ID.search(row)]
    assert not [row for row in rows if "planned" in row.lower()]
