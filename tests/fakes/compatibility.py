"""The tables of docs/compatibility.md, read as people read them."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def rows(section: str, *, columns: int) -> list[tuple[str, ...]]:
    """The rows of all tables below the heading ``section``, up to the next of its rank.

    Backquotes are left out of all cells but the last one.
    """
    text = PAGE.read_text(encoding="utf-8")
    match = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, f"{PAGE.name} has no section {section!r}"
    found = []
    for line in match[1].splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == columns, line
            found.append((*(cell.replace("`", "") for cell in cells[:-1]), cells[-1]))
    return found
