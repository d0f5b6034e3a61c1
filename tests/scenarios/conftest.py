"""Fixtures of the scenarios."""

import pytest


@pytest.fixture
def regenerate(request: pytest.FixtureRequest) -> bool:
    """Whether to write the output sections instead of comparing them."""
    return bool(request.config.getoption("--regenerate"))
