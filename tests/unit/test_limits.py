"""The tables in docs/limits.md agree with svcproxy/limits.py."""

import re
from pathlib import Path
from typing import NamedTuple

from svcproxy import limits
from svcproxy.refusals import KNOWN

ROOT = Path(__file__).parents[2]
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Row(NamedTuple):
    constant: str
    value: str
    bounds: str
    at_the_limit: str
    source: str
    limit: str


def rows(*, counted_only: bool = False) -> list[Row]:
    """The rows of constants; ``counted_only`` ones have labels, and may have no constant."""
    text = (ROOT / "docs/limits.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"\| (`|- )", line)]
    found = [Row(*(cell.strip(" `") for cell in line.strip("|").split("|"))) for line in lines]
    return [row for row in found if (row.source if counted_only else row.constant) != "-"]


def constants() -> dict[str, float]:
    return {name: value for name, value in vars(limits).items() if name.isupper()}


def test_every_constant_has_a_row_and_every_row_a_constant() -> None:
    named = [row.constant for row in rows()]
    assert len(named) == len(set(named))
    assert set(named) == set(constants())


def test_every_row_has_the_value_of_its_constant() -> None:
    for row in rows():
        found = re.fullmatch(r"([0-9,.]+)( KiB| MiB| GiB| s|)", row.value)
        assert found, row
        value = float(found[1].replace(",", "")) * _UNITS.get(found[2].strip(), 1)
        assert value == constants()[row.constant], row


def test_every_row_has_a_description_and_an_effect() -> None:
    assert all(row.bounds and row.at_the_limit for row in rows())


def test_every_counted_refusal_is_in_the_table() -> None:
    labels = {(row.source, row.limit) for row in rows(counted_only=True)}
    assert labels == set(KNOWN)


def test_every_constant_is_documented() -> None:
    text = (ROOT / "svcproxy/limits.py").read_text(encoding="utf-8")
    for name in constants():
        assert re.search(rf'^{name}\b.*(\n(?!"""|[A-Z#]).*)*\n"""', text, re.MULTILINE), name
