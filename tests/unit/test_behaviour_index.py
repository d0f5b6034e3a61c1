"""Every guarantee of ``docs/behaviour.md`` has a test, and the generated index is current."""

from tests.behaviour_index import GUARANTEES, INDEX, guarantees, index, marked


def _rows() -> list[str]:
    text = GUARANTEES.read_text(encoding="utf-8")
    return [f"{section}: {behaviour}" for section, behaviour in guarantees(text)]


def test_every_guarantee_has_a_test() -> None:
    rows = _rows()
    assert len(rows) > 100
    assert len(set(rows)) == len(rows)
    tested = marked()
    assert [row for row in rows if row not in tested] == []


def test_every_marker_names_a_guarantee() -> None:
    assert marked().keys() - set(_rows()) == set()


def test_the_index_is_current() -> None:
    assert INDEX.read_text(encoding="utf-8") == index(), "run python -m tests.behaviour_index"
