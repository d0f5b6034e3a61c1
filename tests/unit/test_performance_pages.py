"""The figures on the pages are those of the stored runs."""

import re
from pathlib import Path

import pytest

from benchmarks import document


@pytest.mark.parametrize("page", document.PAGES, ids=lambda page: page.name)
def test_a_page_shows_the_stored_runs(page: Path) -> None:
    kept = document.reports()
    assert kept, "no run is kept"
    assert page.read_text() == document.with_figures(page, kept), (
        "run: python -m benchmarks.document"
    )


def test_a_stored_run_names_no_folder_of_its_machine() -> None:
    arguments = [argument for _, report in document.reports() for argument in report.arguments]
    assert arguments
    words = [word for argument in arguments for word in re.split(r"[ =,']", argument)]
    assert not any(word.startswith(("/", "~", "./", "../")) for word in words)
