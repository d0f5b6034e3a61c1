"""How many examples property tests try.

``pytest --quick`` tries a tenth of them, so that ``./dev unit`` ends within a minute; ``./dev test``
tries all.
"""

_FEWEST = 10

quick = False
"""Set by ``--quick`` before any test module is imported."""


def examples(number: int) -> int:
    """The number of examples for a test that tries ``number`` of them in a full run."""
    return min(number, max(_FEWEST, number // 10)) if quick else number
